"""Immutable Arrow files: written under a temporary name, synced, then renamed; a row in the store registers them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nami_amp_pipeline.errors import Blocked

if TYPE_CHECKING:  # imported lazily: pyarrow would be a third of `nami-amp status`'s run time
    import pyarrow as pa
    import pyarrow.parquet as pq


KINDS: Final = ("segments", "ledger", "snapshots", "outboxes", "receipts")
"""The kinds of files; each has a folder."""

_DISK_THREADS: Final = 4


class DataFolder:
    """The folder of segments, the ledger, snapshots, outboxes and receipts.

    Files are named ``<kind>/<id>.<suffix>``; the store keeps that relative name. A file is written once, published,
    and then named by a row; it never changes. Here the disk is all there is, so that publishing and fetching do
    nothing; with an object storage behind it, it is a :class:`~nami_amp_pipeline.storage.cached_folder.CachedFolder`.

    Args:
        root: of the folder.
        make: whether it is made where it is missing.

    Raises:
        Blocked: the folder cannot be written.
    """

    short_lived: str | None = None
    """Compression of files that are read soon and removed soon after: on a disk none pays."""

    def __init__(self, root: Path, *, make: bool = True) -> None:
        self.root = root
        for kind in KINDS if make else ():
            with disk(root):
                (root / kind).mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """Where the files are, for people."""
        return str(self.root)

    def new_name(self, kind: str, suffix: str) -> str:
        """A name that no file has yet."""
        return f"{kind}/{uuid.uuid4().hex}.{suffix}"

    def path(self, name: str) -> Path:
        """Where a file is on this disk, once it is there: where it is written, and what :meth:`fetch` returns."""
        return self.root / name

    def publish(self, names: Iterable[str]) -> None:
        """Makes whole files readable for every process; call it before the commit of the rows that name them.

        Raises:
            FilesUnavailable: no row may name them.
        """

    def fetch(self, name: str) -> Path:
        """The path of a file to read; if the file does not exist anywhere, nothing is at the path.

        Raises:
            FilesUnavailable: it cannot be read now.
        """
        return self.root / name

    def fetch_all(self, names: Iterable[str]) -> list[Path]:
        """The same for several files."""
        return [self.fetch(name) for name in names]

    def exists(self, name: str) -> bool:
        """Whether a file exists."""
        return self.path(name).exists()

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of many files that do not exist."""
        return [name for name in names if not self.path(name).exists()]

    def sizes(self, names: Iterable[str]) -> list[int]:
        """The sizes of files; those that do not exist are left out."""
        paths = (self.path(name) for name in names)
        return [path.stat().st_size for path in paths if path.exists()]

    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""
        self.path(name).unlink(missing_ok=True)

    def put_back(self, name: str) -> bool:
        """Makes a missing file exist again from what this disk still has of it; whether it could."""
        return self.path(name).exists()

    def let_go(self, names: Iterable[str], now: float) -> list[int]:
        """Notes that no row names these files from now on; retention removes them later.

        Args:
            names: of the files.
            now: in seconds since the epoch.

        Returns:
            Their sizes; files that no longer exist are left out.
        """
        sizes = []
        for name in names:
            path = self.path(name)
            try:
                os.utime(path, (now, now))
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        return sizes

    @contextmanager
    def parquet(
        self,
        name: str,
        schema: pa.Schema,
        *,
        bloom: Mapping[str, int] | None = None,
        among: Together | None = None,
    ) -> Iterator[pq.ParquetWriter]:
        """A Parquet file that exists under its name only when whole and on disk.

        Args:
            name: of the file.
            schema: of what will be written.
            among: the files of which it is one, see :meth:`together`.
            bloom: columns by which few rows will be looked up, with the most distinct values of a row group: Bloom
                filters let a reader skip row groups.
        """
        import pyarrow.parquet as pq

        filters = {column: {"ndv": max(1, distinct), "fpp": 0.01} for column, distinct in (bloom or {}).items()}
        with (
            self._aside(name, among) as aside,
            pq.ParquetWriter(
                aside,
                schema,
                compression="lz4",
                use_dictionary=False,
                write_statistics=["app_id"],
                version="2.6",
                bloom_filter_options=filters or None,
            ) as writer,
        ):
            yield writer

    @contextmanager
    def ipc(
        self, name: str, schema: pa.Schema, *, compression: str | None = "lz4"
    ) -> Iterator[pa.RecordBatchFileWriter]:
        """An Arrow IPC file that exists under its name only when whole and on disk."""
        from pyarrow import ipc

        options = ipc.IpcWriteOptions(compression=compression)
        with self._aside(name) as aside, ipc.new_file(str(aside), schema, options=options) as writer:
            yield writer

    def open_ipc(self, name: str, *, mapped: bool = True) -> pa.RecordBatchFileReader:
        """Opens an Arrow IPC file.

        Args:
            name: of the file.
            mapped: whether its pages are mapped, which costs nothing until they are read; otherwise a record batch is
                read, and its memory is freed with it.
        """
        import pyarrow as pa
        import pyarrow.ipc

        path = str(self.fetch(name))
        return pa.ipc.open_file(pa.memory_map(path) if mapped else pa.OSFile(path))

    @contextmanager
    def together(self) -> Iterator[Together]:
        """Small files that exist under their names from the end of the block on, or none of them.

        They go to disk side by side, which takes half as long as one after the other.
        """
        files = Together()
        with disk(self.root):
            try:
                yield files
                _put(files.moves)
            except BaseException:
                for aside, _ in files.moves:
                    aside.unlink(missing_ok=True)
                raise

    @contextmanager
    def _aside(self, name: str, among: Together | None = None) -> Iterator[Path]:
        final = self.path(name)
        aside = final.with_suffix(final.suffix + ".part")
        with disk(self.root):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield aside
                if among is None:
                    _put([(aside, final)])
                else:
                    among.moves.append((aside, final))
            except BaseException:
                aside.unlink(missing_ok=True)
                raise


@dataclass
class Together:
    """Files of one :meth:`DataFolder.together`.

    Attributes:
        moves: from where each was written to where it will be.
    """

    moves: list[tuple[Path, Path]] = field(default_factory=list)


def _put(moves: Sequence[tuple[Path, Path]]) -> None:
    """Renames files once they are on disk."""
    if len(moves) > 1:
        with ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk") as pool:
            list(pool.map(_to_disk, [aside for aside, _ in moves]))
    else:
        for aside, _ in moves:
            _to_disk(aside)
    for aside, final in moves:
        aside.rename(final)
    for folder in {final.parent for _, final in moves}:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def disk(root: Path) -> Iterator[None]:
    """Says in one line that a folder cannot be written.

    Raises:
        Blocked: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise Blocked(f"cannot write to {root}: {error.strerror or error}") from None
