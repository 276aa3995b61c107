"""Immutable Arrow files: written under a temporary name, synced, then renamed; a row in the store registers them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nami_amp_pipeline.errors import Blocked

if TYPE_CHECKING:  # imported lazily: pyarrow would be a third of `nami-amp status`'s run time
    import pyarrow as pa
    import pyarrow.parquet as pq


class DataFolder:
    """The folder of segments, the ledger, snapshots, outboxes and receipts.

    Files are named ``<kind>/<id>.<suffix>``; the store keeps that relative name.

    Args:
        root: made where it is missing.

    Raises:
        Blocked: the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for kind in ("segments", "ledger", "snapshots", "outboxes", "receipts", "spill"):
            with _disk(root):
                (root / kind).mkdir(parents=True, exist_ok=True)

    def new_name(self, kind: str, suffix: str) -> str:
        """A name that no file has yet."""
        return f"{kind}/{uuid.uuid4().hex}.{suffix}"

    def path(self, name: str) -> Path:
        """Where a file is."""
        return self.root / name

    def remove(self, name: str) -> None:
        """Removes a file, if it exists."""
        self.path(name).unlink(missing_ok=True)

    @contextmanager
    def parquet(
        self, name: str, schema: pa.Schema, *, bloom: Mapping[str, int] | None = None
    ) -> Iterator[pq.ParquetWriter]:
        """A Parquet file that exists under its name only when whole and on disk.

        Args:
            name: of the file.
            schema: of what will be written.
            bloom: columns by which few rows will be looked up, with the most distinct values of a row group: Bloom
                filters let a reader skip row groups.
        """
        import pyarrow.parquet as pq

        filters = {column: {"ndv": max(1, distinct), "fpp": 0.01} for column, distinct in (bloom or {}).items()}
        with (
            self._aside(name) as aside,
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

        path = str(self.path(name))
        return pa.ipc.open_file(pa.memory_map(path) if mapped else pa.OSFile(path))

    @contextmanager
    def _aside(self, name: str) -> Iterator[Path]:
        final = self.path(name)
        aside = final.with_suffix(final.suffix + ".part")
        with _disk(self.root):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield aside
                with aside.open("rb+") as file:
                    os.fsync(file.fileno())
                aside.rename(final)
                folder = os.open(final.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Blocked(f"cannot write to {root}: {error.strerror or error}") from None
