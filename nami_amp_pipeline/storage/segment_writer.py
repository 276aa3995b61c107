"""Writes the segments of a tick: rows spread over files, in few large row groups."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nami_amp_pipeline.storage.data_folder import DataFolder

SEGMENT_SCHEMA = pa.schema(
    [
        ("app_id", pa.string()),
        ("id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("created_date", pa.timestamp("us", tz="UTC")),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
        ("payload", pa.string()),
        ("well_formed", pa.bool_()),
        ("shape", pa.uint64()),
        ("problem", pa.string()),
    ]
)
"""Columns of a segment file (Parquet). ``well_formed``: the payload is a JSON object. ``shape``: the same for payloads
of a segment that have the same fields in the same order. ``problem``: why an event cannot be sent, where
that is not its payload's form; or ``half_characters``, if halves of surrogate pairs were replaced and it can. Older
files lack it."""

ROW_GROUP_BYTES = 16_000_000
GATHERED_BYTES = 64_000_000
_UNDER_WAY = 2
_CLOSED_AT_ONCE = 4


class SegmentWriter:
    """One file for each bucket of rows; written whole at the end of the ``with`` block, and not at all after an error.

    Args:
        folder: where they go.
        parallel: whether a thread writes while more rows come.

    Attributes:
        rows: file name to rows.
    """

    def __init__(self, folder: DataFolder, *, parallel: bool) -> None:
        self.rows: dict[str, int] = {}
        self._folder = folder
        self._files: list[AbstractContextManager[pq.ParquetWriter]] = []
        self._writers: dict[int, pq.ParquetWriter] = {}
        self._names: dict[int, str] = {}
        self._gathered: dict[int, list[pa.Table]] = {}
        self._bytes: dict[int, int] = {}
        self._held = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segment") if parallel else None
        self._under_way: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
                self._wait(0)
        except BaseException as own:  # noqa: BLE001 - it is raised once the files are closed
            error = own
        while self._under_way:  # no file is closed under a thread that writes it
            with suppress(BaseException):
                self._under_way.popleft().result()
        if self._pool is not None:
            self._pool.shutdown()
        for found in (*self._close(error), error):  # a file says in words what an error means
            if found is not None:
                raise found

    def _close(self, error: BaseException | None) -> list[BaseException | None]:
        """Closes all files, and removes them after an error; returns the result."""
        if self._pool is None or len(self._files) < 2:
            return [_closed(file, error) for file in self._files]
        # Until a file is on the disk takes a while, and for several at once little longer.
        with ThreadPoolExecutor(_CLOSED_AT_ONCE, thread_name_prefix="segment") as pool:
            return list(pool.map(lambda file: _closed(file, error), self._files))

    def add(self, table: pa.Table) -> None:
        """Takes rows with the columns of :data:`SEGMENT_SCHEMA` and ``bucket``, the number of their file."""
        numbers = table["bucket"].to_numpy()
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        rows = table.select(SEGMENT_SCHEMA.names).cast(SEGMENT_SCHEMA).take(order)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        for start, end in pairwise([*starts, len(numbers)]):
            bucket, part = int(numbers[start]), rows.slice(start, end - start)
            self._gathered.setdefault(bucket, []).append(part)
            self._bytes[bucket] = self._bytes.get(bucket, 0) + part.nbytes
            if self._bytes[bucket] >= ROW_GROUP_BYTES:
                self._write(bucket)
        self._held += rows.nbytes  # a part of it keeps all of it in memory
        if self._held >= GATHERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        for bucket in list(self._gathered):
            self._write(bucket)
        self._held = 0

    def _write(self, bucket: int) -> None:
        rows = self._gathered.pop(bucket)
        del self._bytes[bucket]
        if self._pool is None:
            self._write_rows(bucket, rows)
            return
        self._wait(_UNDER_WAY - 1)
        self._under_way.append(self._pool.submit(self._write_rows, bucket, rows))

    def _wait(self, most: int) -> None:
        while len(self._under_way) > most:
            self._under_way.popleft().result()

    def _write_rows(self, bucket: int, parts: list[pa.Table]) -> None:
        rows = pa.concat_tables(parts).combine_chunks()
        if bucket not in self._writers:
            name = self._folder.new_name("segments", "parquet")
            file = self._folder.parquet(name, SEGMENT_SCHEMA)
            self._writers[bucket] = file.__enter__()
            self._files.append(file)
            self._names[bucket] = name
        self._writers[bucket].write_table(rows)
        name = self._names[bucket]
        self.rows[name] = self.rows.get(name, 0) + rows.num_rows


def _closed(file: AbstractContextManager[object], error: BaseException | None) -> BaseException | None:
    try:
        file.__exit__(type(error) if error is not None else None, error, error.__traceback__ if error else None)
    except BaseException as own:  # noqa: BLE001 - for the thread that waits
        return own
    return None
