"""The segments of a tick while they are written: rows spread over files, in few large row groups."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nami_amp_pipeline.segments import DataFolder

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
    ]
)
"""Columns of a segment file (Parquet). ``well_formed``: the payload is a JSON object. ``shape``: the same for payloads
of a segment that have the same fields in the same order."""

ROW_GROUP_BYTES = 16_000_000
GATHERED_BYTES = 64_000_000
_UNDER_WAY = 2


class SegmentFiles:
    """One file for each bucket of rows; written whole at the end of the ``with`` block, and not at all after an error.

    Args:
        folder: where they go.
        parallel: whether writing goes on in a thread while more rows come.

    Attributes:
        rows: file name to rows.
    """

    def __init__(self, folder: DataFolder, *, parallel: bool) -> None:
        self.rows: dict[str, int] = {}
        self._folder = folder
        self._files = ExitStack()
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
        with self._files:
            try:
                if error is None:
                    self._flush()
                    self._wait(0)
            finally:
                while self._under_way:  # no file is closed under a thread that writes it
                    with suppress(BaseException):
                        self._under_way.popleft().result()
                if self._pool is not None:
                    self._pool.shutdown()
            if error is not None:
                raise error

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
            self._writers[bucket] = self._files.enter_context(self._folder.parquet(name, SEGMENT_SCHEMA))
            self._names[bucket] = name
        self._writers[bucket].write_table(rows)
        name = self._names[bucket]
        self.rows[name] = self.rows.get(name, 0) + rows.num_rows
