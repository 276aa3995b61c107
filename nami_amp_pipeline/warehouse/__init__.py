"""Reading the events table. Nothing here ever writes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.warehouse.base import EventRow, Finding, Lookup, Places, Source, Unplaced, Warehouse

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings

__all__ = [
    "ENTRY_POINTS",
    "WAREHOUSES",
    "EventRow",
    "Finding",
    "Lookup",
    "Places",
    "Source",
    "Unplaced",
    "Warehouse",
    "is_known",
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


def _parquet(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.parquet_folder import ParquetWarehouse

    return ParquetWarehouse(settings)


def _snowflake(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.snowflake import SnowflakeWarehouse

    return SnowflakeWarehouse(settings)


def _bigquery(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.bigquery import BigQueryWarehouse

    return BigQueryWarehouse(settings)


def _parquet_bucket(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.parquet_folder import ParquetBucketWarehouse

    return ParquetBucketWarehouse(settings)


def _delta(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.lakes import DeltaWarehouse

    return DeltaWarehouse(settings)


def _iceberg(settings: Settings) -> Warehouse:
    from nami_amp_pipeline.warehouse.lakes import IcebergWarehouse

    return IcebergWarehouse(settings)


Opener = Callable[["Settings"], Warehouse]

WAREHOUSES: Mapping[str, Opener] = {
    "duckdb": _duckdb,
    "parquet": _parquet,
    **dict.fromkeys(("parquet+s3", "parquet+gs", "parquet+az"), _parquet_bucket),
    **dict.fromkeys(("delta", "delta+s3", "delta+gs", "delta+az"), _delta),
    "iceberg": _iceberg,
    "postgresql": _postgres,
    "postgres": _postgres,
    "snowflake": _snowflake,
    "bigquery": _bigquery,
}
"""How to open a warehouse, by the scheme of its address."""

ENTRY_POINTS: Final = "nami_amp_pipeline.warehouses"
"""The group of entry points by which packages add others: the name is the scheme, the object takes the settings."""


def schemes() -> tuple[str, ...]:
    """The schemes of the addresses of warehouses that can be read, those of other packages last."""
    return (*WAREHOUSES, *sorted(point.name for point in entry_points(group=ENTRY_POINTS)))


def is_known(scheme: str) -> bool:
    """Whether there is a warehouse of this scheme. Other packages are asked only for one that is none of ours."""
    return scheme in WAREHOUSES or bool(entry_points(group=ENTRY_POINTS, name=scheme))


def open_warehouse(settings: Settings) -> Warehouse:
    """The warehouse that the settings name.

    Raises:
        Misconfigured: the address is of a kind that is not supported, or the package that adds it cannot be used.
    """
    scheme, _, rest = settings.warehouse_url.partition("://")
    if not is_known(scheme) or (scheme == "duckdb" and not rest.startswith("/")):
        raise Misconfigured(
            "NAMI_AMP_WAREHOUSE_URL must be duckdb:///PATH, parquet://FOLDER, postgresql://USER@HOST/DATABASE or "
            "another of docs/warehouses.md"
        )
    return (WAREHOUSES.get(scheme) or _added(scheme))(settings)


def _added(scheme: str) -> Opener:
    found = list(entry_points(group=ENTRY_POINTS, name=scheme))
    if len(found) > 1:
        packages = ", ".join(sorted({point.dist.name if point.dist else point.value for point in found}))
        raise Misconfigured(f"several packages add the warehouse {scheme}: {packages}; uninstall all but one")
    try:
        opener: Opener = found[0].load()
    except (ImportError, AttributeError) as error:
        raise Misconfigured(f"the warehouse {scheme} cannot be loaded from {found[0].value}: {error}") from None
    return opener
