"""Reading the events table. Nothing here ever writes to it."""

from __future__ import annotations

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.warehouse.base import EventRow, Finding, Lookup, Places, Source, Warehouse

__all__ = ["EventRow", "Finding", "Lookup", "Places", "Source", "Warehouse", "open_warehouse"]


def open_warehouse(settings: Settings) -> Warehouse:
    """The warehouse that the settings name.

    Raises:
        Misconfigured: the address is of a kind that is not supported.
    """
    # Engines and drivers are imported by who reads: most of the time it takes to say how things stand would go there.
    if settings.warehouse_url.startswith("duckdb:///"):
        from nami_amp_pipeline.warehouse.duckdb_file import DuckDBWarehouse

        return DuckDBWarehouse(settings)
    if settings.warehouse_url.startswith("postgresql://"):
        from nami_amp_pipeline.warehouse.postgres import PostgresWarehouse

        return PostgresWarehouse(settings)
    raise Misconfigured("NAMI_AMP_WAREHOUSE_URL must be duckdb:///PATH or postgresql://USER@HOST/DATABASE")
