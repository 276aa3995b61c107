"""The data folder as a bounded cache of an object storage, which several machines share."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from nami_amp_pipeline.errors import Blocked, FilesUnavailable
from nami_amp_pipeline.storage.data_folder import KINDS, DataFolder, disk
from nami_amp_pipeline.storage.object_storage import ObjectStorage

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings

SPILL: Final = "spill"
"""The folder within the data folder where the compute engine puts what exceeds its memory."""

CACHE: Final = "cache"
"""The folder of the copies, within the data folder: files of a plain data folder are never taken for copies."""

IN_USE_SECONDS: Final = 600
"""A copy that was used within this time stays, whatever the bound: somebody may be about to open it.

One that is opened later than that after all is gone for its reader, who fails as for a lost file, and the next run
fetches it again."""

_AT_ONCE: Final = 4
_PUBLISHED: Final = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH

T = TypeVar("T")
R = TypeVar("R")

_LOG = logging.getLogger("nami_amp_pipeline.storage")


def open_folder(settings: Settings, *, make: bool = True) -> DataFolder:
    """The folder of the files of the stages: on this disk, or a cache of the object storage of the settings.

    Args:
        settings: where.
        make: whether folders are made where they are missing.

    Raises:
        Misconfigured: the object storage cannot be used.
        Blocked: the folder cannot be written.
    """
    if make:
        with disk(settings.data_dir):
            (settings.data_dir / SPILL).mkdir(parents=True, exist_ok=True)
    if not settings.data_url:
        return DataFolder(settings.data_dir, make=make)
    from nami_amp_pipeline.storage.bucket import Bucket

    return CachedFolder(
        settings.data_dir,
        Bucket(settings.data_url),
        most_bytes=settings.cache_max_bytes,
        unused_seconds=settings.unused_file_retention_days * 86_400,
        make=make,
    )


class CachedFolder(DataFolder):
    """Files are written and read on this disk; an object storage has all that a row names, and other machines read it.

    A copy that is in the storage is read-only on the disk, and its time is that of its last use. Copies leave when they
    have not been used for a while, and the least recently used ones when all take more than the bound. What is not in
    the storage is of a process at work, or of one that was killed; it leaves when it is old.

    Args:
        root: the data folder.
        storage: where published files go.
        most_bytes: of the copies.
        unused_seconds: how long a copy that nobody uses stays.
        make: whether its folders are made where they are missing.
    """

    short_lived = "lz4"  # they go over the network

    def __init__(
        self, root: Path, storage: ObjectStorage, *, most_bytes: int, unused_seconds: float, make: bool = True
    ) -> None:
        super().__init__(root / CACHE, make=make)
        self.storage = storage
        self._most_bytes = most_bytes
        self._unused_seconds = unused_seconds
        self._new_bytes: float = most_bytes  # since the last look: the first is due
        self._looking = threading.Lock()

    @property
    def address(self) -> str:
        """See :class:`DataFolder`."""
        return self.storage.address

    def publish(self, names: Iterable[str]) -> None:
        """See :class:`DataFolder`."""
        self._each(self._publish, names)
        self._trim()

    def _publish(self, name: str) -> None:
        path = self.path(name)
        try:
            if _is_published(path):
                return
            self.storage.create(name, path)
            path.chmod(_PUBLISHED)
            self._new_bytes += path.stat().st_size
        except FileNotFoundError:
            raise Blocked(f"{path} is gone before it was copied to {self.address}") from None

    def fetch(self, name: str) -> Path:
        """See :class:`DataFolder`."""
        path = self.path(name)
        try:
            os.utime(path)
        except FileNotFoundError:
            self._copy(name, path)
            self._trim()
        return path

    def fetch_all(self, names: Iterable[str]) -> list[Path]:
        """See :class:`DataFolder`."""
        wanted = list(names)
        self._each(self.fetch, [name for name in wanted if not self.path(name).exists()])
        return [self.fetch(name) for name in wanted]

    def _copy(self, name: str, path: Path) -> None:
        aside = path.with_suffix(f"{path.suffix}.{uuid.uuid4().hex}.part")
        with disk(self.root):
            try:
                if self.storage.read(name, aside):
                    aside.chmod(_PUBLISHED)
                    self._new_bytes += aside.stat().st_size
                    aside.rename(path)
            finally:
                aside.unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        """See :class:`DataFolder`."""
        return self.path(name).exists() or self.storage.size(name) is not None

    def missing(self, names: Iterable[str]) -> list[str]:
        """See :class:`DataFolder`; what is on this disk only is missing for the others."""
        wanted = list(names)
        kinds = {name.partition("/")[0] for name in wanted}
        there = {found.name for kind in sorted(kinds) for found in self.storage.list(f"{kind}/")}
        doubtful = [name for name in wanted if name not in there]
        # A listing may lack what is there, and somebody is about to repair it.
        sizes = self._each(self.storage.size, doubtful)
        return [name for name, size in zip(doubtful, sizes, strict=True) if size is None]

    def sizes(self, names: Iterable[str]) -> list[int]:
        """See :class:`DataFolder`."""
        return [size for size in self._each(self._size, names) if size is not None]

    def _size(self, name: str) -> int | None:
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return self.storage.size(name)

    def remove(self, name: str) -> None:
        """See :class:`DataFolder`; an object that cannot be removed now is left to retention."""
        path = self.path(name)
        is_trial = path.exists() and not _is_published(path)
        path.unlink(missing_ok=True)
        if is_trial:
            return
        try:
            self.storage.delete([name])
        except FilesUnavailable as error:
            _LOG.info("left to retention: %s", error)

    def put_back(self, name: str) -> bool:
        """See :class:`DataFolder`; a copy that left the storage by accident."""
        path = self.path(name)
        if not path.exists():
            return False
        self.storage.create(name, path)
        return True

    def remove_all(self, names: Iterable[str]) -> None:
        """Removes files that no row names.

        Raises:
            FilesUnavailable: some of them may still exist.
        """
        gone = list(names)
        self.storage.delete(gone)
        for name in gone:
            self.path(name).unlink(missing_ok=True)

    def let_go(self, names: Iterable[str], now: float) -> list[int]:
        """See :class:`DataFolder`; nothing is noted here, see :mod:`nami_amp_pipeline.retention.objects`."""
        return self.sizes(names)

    def _each(self, act: Callable[[T], R], items: Iterable[T]) -> list[R]:
        wanted = list(items)
        if len(wanted) < 2:
            return [act(item) for item in wanted]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="objects") as pool:
            return list(pool.map(act, wanted))

    def _trim(self) -> None:
        """Removes what must leave the disk; looks again when a sixteenth of the bound was added."""
        if self._new_bytes < self._most_bytes / 16 or not self._looking.acquire(blocking=False):
            return
        try:
            self._new_bytes = 0
            self.trim()
        finally:
            self._looking.release()

    def trim(self) -> None:
        """Removes the copies that are unused or beyond the bound, and what killed processes left."""
        now, total = time.time(), 0
        copies: list[tuple[float, int, Path]] = []
        for path, found in self._all():
            if found.st_mtime < now - max(self._unused_seconds, IN_USE_SECONDS):
                path.unlink(missing_ok=True)
                continue
            total += found.st_size
            if not found.st_mode & stat.S_IWUSR and found.st_mtime < now - IN_USE_SECONDS:
                copies.append((found.st_mtime, found.st_size, path))
        for _, size, path in sorted(copies):
            if total <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _all(self) -> Iterator[tuple[Path, os.stat_result]]:
        for kind in KINDS:
            for entry in os.scandir(self.root / kind):
                try:
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


def _is_published(path: Path) -> bool:
    return not path.stat().st_mode & stat.S_IWUSR
