"""Reading the events table. Nothing here ever writes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.warehouse.base import EventRow, Finding, Lookup, Places, Source, Unplaced, Warehouse

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings

__all__ = [
    "WAREHOUSES",
    "EventRow",
    "Finding",
    "Lookup",
    "Places",
    "Source",
    "Unplaced",
    "Warehouse",
    "open_warehouse",
    "schemes",
]


# Imported lazily: engines and drivers would be most of `nami-amp status`'s run time.


def _duckdb(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.duckdb_file import DuckDBWarehouse

    return DuckDBWarehouse(settings)


def _postgres(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.postgres import PostgresWarehouse

    return PostgresWarehouse(settings)


WAREHOUSES: Mapping[str, Callable[[Settings], Warehouse]] = {
    "duckdb": _duckdb,
    "postgresql": _postgres,
    "postgres": _postgres,
}
"""How to open a warehouse, by the scheme of its address."""


def schemes() -> tuple[str, ...]:
    """The schemes of the addresses of warehouses that can be read."""
    return tuple(WAREHOUSES)


def open_warehouse(settings: Settings) -> Warehouse:
    """The warehouse that the settings name.

    Raises:
        Misconfigured: the address is of a kind that is not supported.
    """
    scheme, _, rest = settings.warehouse_url.partition("://")
    if scheme not in WAREHOUSES or (scheme == "duckdb" and not rest.startswith("/")):
        raise Misconfigured("NAMI_AMP_WAREHOUSE_URL must be duckdb:///PATH or postgresql://USER@HOST/DATABASE")
    return WAREHOUSES[scheme](settings)
