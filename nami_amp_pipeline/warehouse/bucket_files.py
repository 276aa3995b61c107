"""Objects of buckets as files that several of DuckDB's threads read at once."""

from __future__ import annotations

import threading
from typing import Any

import obstore
from fsspec import AbstractFileSystem

from nami_amp_pipeline.storage.bucket import open_bucket


class BucketFiles(AbstractFileSystem):  # type: ignore[misc]
    """What DuckDB asks of a file system to read from it, for all buckets of one cloud.

    Args:
        scheme: with which the addresses begin.
    """

    cachable = False  # one for each reading: an object may be another one by the next

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.protocol = scheme
        self._stores: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and date of an object, asked for once; files of a table are never written a second time."""
        if path not in self._known:
            found = obstore.head(*self._at(path))
            self._known[path] = {
                "name": path,
                "size": found["size"],
                "type": "file",
                "modified": found["last_modified"],
            }
        return self._known[path]

    def modified(self, path: str) -> Any:
        """When an object was written."""
        return self.info(path)["modified"]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise PermissionError(f"{path} is only read")
        return _Object(*self._at(path), self.info(path)["size"])

    def _at(self, path: str) -> tuple[Any, str]:
        """The store and the name of an object."""
        bucket, _, name = path.removeprefix(f"{self.protocol}://").partition("/")
        if bucket not in self._stores:
            self._stores[bucket] = open_bucket(f"{self.protocol}://{bucket}")
        return self._stores[bucket], name


class _Object:
    """An object that is open, with a position for each thread.

    DuckDB seeks and reads in two calls, in several threads at once.
    """

    def __init__(self, store: Any, name: str, size: int) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._at = threading.local()
        self.closed = False

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at.offset = offset + (0, self.tell(), self._size)[whence]
        return self.tell()

    def tell(self) -> int:
        return int(getattr(self._at, "offset", 0))

    def read(self, length: int = -1) -> bytes:
        start = self.tell()
        end = self._size if length < 0 else min(self._size, start + length)
        if end <= start:
            return b""
        data = obstore.get_range(self._store, self._name, start=start, end=end).to_bytes()
        self._at.offset = end
        return bytes(data)

    def close(self) -> None:
        self.closed = True
