"""The storage of whole files under unique names: four verbs, over a bucket or over whatever a test passes in."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from nami_amp_pipeline.errors import FilesUnavailable

PROBES: Final = "probes/"
"""The folder of the objects that only show what can be done."""


class StoredObject(NamedTuple):
    """An object as a listing shows it.

    Attributes:
        name: relative to the storage, such as ``segments/1f….parquet``.
        size: in bytes.
        modified: when it was written, by the storage's clock, in µs since the epoch.
    """

    name: str
    size: int
    modified: int


class ObjectStorage(Protocol):
    """Whole objects that never change: a name is used once, so nothing is ever overwritten.

    All methods raise :class:`~nami_amp_pipeline.errors.FilesUnavailable` if the storage cannot be reached or refuses.

    Attributes:
        address: for people, without credentials.
    """

    address: str

    def create(self, name: str, path: Path) -> None:
        """Stores a file, whole or not at all; the same file under the same name again is no error."""

    def read(self, name: str, path: Path) -> bool:
        """Copies an object to a path; False if there is none. After an error the path may hold a part of it."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose names begin with ``prefix``, a folder with its slash."""

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None if there is none."""

    def delete(self, names: Iterable[str]) -> None:
        """Removes objects; one that does not exist is no error."""


def probe(storage: ObjectStorage) -> float:
    """Writes, reads, lists and removes a small object; returns how many seconds that took.

    Raises:
        FilesUnavailable: one of these cannot be done.
    """
    name, began = f"{PROBES}{uuid.uuid4().hex}", time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nami-amp-probe-") as folder:
        there, back = Path(folder) / "there", Path(folder) / "back"
        there.write_text(name, "utf-8")
        storage.create(name, there)
        try:
            if not storage.read(name, back) or back.read_bytes() != there.read_bytes():
                raise FilesUnavailable(f"{storage.address}: {name} was written and cannot be read")
            if name not in [found.name for found in storage.list(PROBES)]:
                raise FilesUnavailable(f"{storage.address}: {name} was written and is in no listing")
        finally:
            storage.delete([name])
    return time.monotonic() - began
