"""Tables of Delta Lake and Iceberg as the warehouse: their own libraries say which Parquet files count."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.storage.bucket import cause, is_plain
from nami_amp_pipeline.warehouse.base import COLUMNS
from nami_amp_pipeline.warehouse.parquet_files import ParquetFiles

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings

_HARMLESS: Final = frozenset({"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "variantType"})
"""Features of a Delta table that do not change which rows of its files count, nor how columns are called."""

_ALIASES: Final = re.compile("^s3[an]://")
"""What Hadoop calls S3; Spark writes such addresses into tables."""


class DeltaWarehouse(ParquetFiles):
    """A table of Delta Lake: ``delta://FOLDER`` or ``delta+s3://BUCKET/PREFIX``.

    Raises:
        Misconfigured: the library is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        url = settings.warehouse_url
        self._where = url.removeprefix("delta+") if url.startswith("delta+") else url.removeprefix("delta://")
        try:
            import deltalake  # noqa: F401 - only where such a table is read
        except ImportError:
            raise Misconfigured("reading Delta Lake needs a library: pip install 'nami-amp-pipeline[delta]'") from None

    @property
    def name(self) -> str:
        """The table as people call it."""
        return f"the Delta table {self._where}"

    def files(self) -> Sequence[str]:
        """See :class:`ParquetFiles`."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        if "://" not in self._where and not Path(self._where).is_dir():
            raise WarehouseUnavailable(f"there is no folder {self._where}: NAMI_AMP_WAREHOUSE_URL is delta://FOLDER")
        try:
            table = DeltaTable(self._where, storage_options={"AWS_ALLOW_HTTP": "true"} if is_plain() else None)
            features = set(table.protocol().reader_features or ()) - _HARMLESS
            if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
                features.add("columnMapping")
            found = table.file_uris()
        except (DeltaError, OSError, ValueError) as error:
            raise WarehouseUnavailable(f"cannot read {self.name}: {cause(error)}") from None
        if features:
            raise WarehouseUnavailable(
                f"{self.name} has features that are not read here: {', '.join(sorted(features))}; read it by a view of "
                "a database, or turn them off"
            )
        return sorted(found)


class IcebergWarehouse(ParquetFiles):
    """A table of a catalog of Iceberg: ``iceberg://CATALOG/NAMESPACE.TABLE``.

    The catalog is configured as pyiceberg wants it, in ``~/.pyiceberg.yaml`` or by ``PYICEBERG_CATALOG__…`` variables.

    Raises:
        Misconfigured: the address is none, or the library is not installed.
    """

    options: ClassVar[str] = "union_by_name = true, hive_partitioning = false"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._catalog, _, self._table_name = settings.warehouse_url.removeprefix("iceberg://").partition("/")
        if not self._catalog or "." not in self._table_name:
            raise Misconfigured("NAMI_AMP_WAREHOUSE_URL must be iceberg://CATALOG/NAMESPACE.TABLE")
        try:
            import pyiceberg.catalog  # noqa: F401 - only where such a table is read
        except ImportError:
            raise Misconfigured("reading Iceberg needs a library: pip install 'nami-amp-pipeline[iceberg]'") from None

    @property
    def name(self) -> str:
        """The table as people call it."""
        return f"the Iceberg table {self._table_name} of the catalog {self._catalog}"

    def files(self) -> Sequence[str]:
        """See :class:`ParquetFiles`."""
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError

        try:
            table = load_catalog(self._catalog).load_table(self._table_name)
            tasks = list(table.scan(selected_fields=tuple(COLUMNS)).plan_files())
        except NoSuchTableError:
            raise WarehouseUnavailable(f"there is no {self.name[4:]}") from None
        except Exception as error:  # noqa: BLE001 - catalogs are of many kinds, and so are their errors
            raise WarehouseUnavailable(f"cannot read {self.name}: {cause(error)}") from None
        if any(task.delete_files for task in tasks):
            raise WarehouseUnavailable(
                f"{self.name} has files of deleted rows, which are not read here: rewrite its data files"
            )
        if _renamed(table):
            raise WarehouseUnavailable(
                f"{self.name} has columns that were renamed, so that its older files name them otherwise: rewrite them"
            )
        return sorted(_ALIASES.sub("s3://", task.file.file_path).removeprefix("file://") for task in tasks)


def _renamed(table: Any) -> bool:
    """Whether a column of the contract had another name once, or another column its name."""
    ids = {(field.name, field.field_id) for schema in table.schemas().values() for field in schema.fields}
    now = {field.name: field.field_id for field in table.schema().fields}
    return any(
        (name in COLUMNS and now.get(name) != number)
        or (number in {now.get(column) for column in COLUMNS} and name not in COLUMNS)
        for name, number in ids
    )
