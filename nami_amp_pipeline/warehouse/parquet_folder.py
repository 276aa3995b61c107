"""The warehouse as all Parquet files below a folder, or below a prefix of a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nami_amp_pipeline.errors import Misconfigured, WarehouseUnavailable
from nami_amp_pipeline.storage.bucket import cause, open_bucket
from nami_amp_pipeline.warehouse.parquet_files import ParquetFiles

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings


class ParquetWarehouse(ParquetFiles):
    """All ``*.parquet`` files in a folder and the folders below it.

    Names that begin with a dot or an underscore are not read: loaders write such files aside and rename them.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.path = Path(settings.warehouse_url.removeprefix("parquet://"))

    @property
    def name(self) -> str:
        """The table as people call it."""
        return f"the Parquet files in {self.path}"

    def files(self) -> Sequence[str]:
        """See :class:`ParquetFiles`."""
        if not self.path.is_dir():
            raise WarehouseUnavailable(f"there is no folder {self.path}: NAMI_AMP_WAREHOUSE_URL is parquet://FOLDER")
        try:
            found = sorted(self.path.rglob("*.parquet"))
        except OSError as error:
            raise WarehouseUnavailable(f"cannot read the folder {self.path}: {error.strerror or error}") from None
        return [str(path) for path in found if not any(map(_is_aside, path.relative_to(self.path).parts))]


class ParquetBucketWarehouse(ParquetFiles):
    """The same below a prefix of a bucket: ``parquet+s3://BUCKET/PREFIX``, ``parquet+gs://…`` or ``parquet+az://…``.

    Raises:
        Misconfigured: the address is none, the library that reads buckets is not installed, or the environment says
            nothing usable.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._url = settings.warehouse_url.removeprefix("parquet+").rstrip("/")
        bucket, _, self._prefix = self._url.partition("://")[2].partition("/")
        if not bucket:
            raise Misconfigured("NAMI_AMP_WAREHOUSE_URL must be parquet+s3://BUCKET/PREFIX")
        self._root = self._url.removesuffix(f"/{self._prefix}") if self._prefix else self._url
        self._store = open_bucket(self._root)

    @property
    def name(self) -> str:
        """The table as people call it."""
        return f"the Parquet files in {self._url}"

    def files(self) -> Sequence[str]:
        """See :class:`ParquetFiles`."""
        import obstore
        import obstore.exceptions

        try:
            pages = list(obstore.list(self._store, prefix=self._prefix or None))
        except (OSError, ValueError, obstore.exceptions.BaseError) as error:
            raise WarehouseUnavailable(f"{self._url} cannot be listed: {cause(error)}") from None
        below = f"{self._prefix}/" if self._prefix else ""
        found = sorted(str(each["path"]) for page in pages for each in page)
        return [
            f"{self._root}/{path}"
            for path in found
            if path.endswith(".parquet") and not any(map(_is_aside, path.removeprefix(below).split("/")))
        ]


def _is_aside(name: str) -> bool:
    return name.startswith((".", "_"))
