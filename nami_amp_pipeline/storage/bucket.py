"""Buckets of S3, Google Cloud Storage and Azure, through the library obstore.

Who may read and write is said by the environment, as for every tool of these clouds (``AWS_ACCESS_KEY_ID``,
``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` …).
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.errors import FilesUnavailable, Misconfigured
from nami_amp_pipeline.storage.object_storage import StoredObject

SCHEMES: Final = ("s3", "gs", "az")

TIMEOUT_SECONDS: Final = 120
"""How long one request to a bucket may take, its body included."""

_RETRY_SECONDS: Final = 45
_RETRIES: Final = 1_000
"""More than fit into that time: only the time counts."""

_FIRST_WAIT: Final = timedelta(milliseconds=200)
_LONGEST_WAIT: Final = timedelta(seconds=5)

_WHOLE_BYTES: Final = 64_000_000
"""A larger file is sent in parts, of which a bucket makes one object at the end."""

_PART_BYTES: Final = 16_000_000
_PARTS_AT_ONCE: Final = 4
_READ_BYTES: Final = 1 << 20

_QUERY: Final = re.compile(r"\?\S*")


def open_bucket(address: str) -> Any:
    """The store of obstore at an address.

    Args:
        address: ``s3://bucket/folder``, ``gs://bucket/folder`` or ``az://container/folder``; all names are below it.

    Raises:
        Misconfigured: the library is not installed, or the environment says nothing usable.
    """
    try:
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise Misconfigured(
            f"{address}: this needs the library obstore: pip install 'nami-amp-pipeline[object-storage]'"
        ) from None
    scheme, _, rest = address.partition("://")
    bucket, _, folder = rest.partition("/")
    options: dict[str, Any] = {
        "prefix": folder.strip("/") or None,
        "client_options": {"timeout": timedelta(seconds=TIMEOUT_SECONDS), "allow_http": is_plain()},
        "retry_config": {
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
            "backoff": {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 2},
        },
    }
    kinds = {"s3": obstore.store.S3Store, "gs": obstore.store.GCSStore, "az": obstore.store.AzureStore}
    try:
        return kinds[scheme](bucket, **options)
    except (ValueError, OSError, obstore.exceptions.BaseError) as error:
        raise Misconfigured(f"{address} cannot be used: {cause(error)}") from None


def cause(error: Exception) -> str:
    """The first words of an error of the library, which quotes requests and answers behind them.

    The query of an address is left out: Azure's holds a signature.
    """
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {_QUERY.sub('', first)[:200]}"


def is_plain() -> bool:
    """Whether the environment asks for plain http, as a server on this machine does."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
    return any(os.environ.get(name, "").startswith("http://") for name in names)


class Bucket:
    """An :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage` in a cloud.

    Args:
        address: as :func:`open_bucket` takes it.

    Raises:
        Misconfigured: as :func:`open_bucket`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._store = open_bucket(address)

    def create(self, name: str, path: Path) -> None:
        """See :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage`.

        Where the answer to a first try was lost, the second finds the object there.
        """
        import obstore
        import obstore.exceptions

        size = path.stat().st_size
        with self._said(f"{name} cannot be written"):
            try:
                if size > _WHOLE_BYTES:
                    obstore.put(self._store, name, path, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
                    return
                with path.open("rb") as file:
                    body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
                    obstore.put(self._store, name, body, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                if self.size(name) != size:
                    raise FilesUnavailable(f"{self.address}: {name} is there already, and is another file") from None

    def read(self, name: str, path: Path) -> bool:
        """See :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage`."""
        import obstore

        with self._said(f"{name} cannot be read"):
            try:
                found = obstore.get(self._store, name)
            except FileNotFoundError:
                return False
            with path.open("wb") as file:
                for part in found.stream(min_chunk_size=_READ_BYTES):
                    file.write(part)
            if path.stat().st_size != found.meta["size"]:
                raise FilesUnavailable(f"{self.address}: {name} was cut off while it was read")
        return True

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """See :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage`."""
        import obstore

        with self._said(f"{prefix}* cannot be listed"):
            for page in obstore.list(self._store, prefix=prefix.strip("/") or None):
                for found in page:
                    yield StoredObject(found["path"], found["size"], from_datetime(found["last_modified"]))

    def size(self, name: str) -> int | None:
        """See :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage`."""
        import obstore

        with self._said(f"{name} cannot be looked up"):
            try:
                size: int = obstore.head(self._store, name)["size"]
            except FileNotFoundError:
                return None
        return size

    def delete(self, names: Iterable[str]) -> None:
        """See :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage`."""
        import obstore

        with self._said("objects cannot be removed"):
            if gone := list(names):
                obstore.delete(self._store, gone)

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        import obstore.exceptions

        try:
            yield
        except (OSError, ValueError, obstore.exceptions.BaseError) as error:
            raise FilesUnavailable(f"{self.address}: {what}: {cause(error)}") from None
