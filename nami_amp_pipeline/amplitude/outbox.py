"""Reading an outbox: which rows come next, and their bytes as one request body."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

LANE_BATCH_ROWS = 10_000
"""Rows of each record batch of a lane but its last."""

_CACHED_BATCHES = 32


@dataclass(frozen=True)
class OutboxBatch:
    """A record batch of a lane, with the bytes of its bodies at hand.

    Attributes:
        rows: the columns.
        offsets: where each body begins in ``data``, and where the last ends.
        data: the bodies, one behind the other, each behind a comma.
    """

    rows: pa.RecordBatch
    offsets: np.ndarray[Any, np.dtype[np.int32]]
    data: memoryview

    @staticmethod
    def of(rows: pa.RecordBatch) -> OutboxBatch:
        """Lays the buffers of the body column open."""
        bodies = rows["body"]
        _, offsets, data = bodies.buffers()
        numbers = np.frombuffer(offsets, dtype=np.int32)[bodies.offset : bodies.offset + len(bodies) + 1]
        return OutboxBatch(rows, numbers, memoryview(data) if data is not None else memoryview(b""))

    def end_within(self, start: int, events: int, size: int) -> int:
        """The row behind the longest run from ``start`` of at most ``events`` events and ``size`` bytes, but one at least."""
        end = min(start + events, len(self.offsets) - 1)
        fitting = int(np.searchsorted(self.offsets, int(self.offsets[start]) + size, side="right")) - 1
        return max(start + 1, min(end, fitting))

    def size(self, row: int) -> int:
        """Bytes of one body, its comma included."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def text(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """The bodies of runs of rows (start, end), separated by commas."""
        return b"".join(self.data[self.offsets[start] : self.offsets[end]] for start, end in runs)[1:]

    def bodies(self, rows: Sequence[int]) -> list[bytes]:
        """Single bodies, without their commas."""
        return [bytes(self.data[self.offsets[row] + 1 : self.offsets[row + 1]]) for row in rows]

    def among(self, start: int, end: int, identities: Sequence[str]) -> list[int]:
        """The rows from ``start`` to ``end`` of these identities."""
        column = self.rows["identity"].slice(start, end - start)
        found = pc.indices_nonzero(pc.is_in(column, value_set=pa.array(identities, pa.string())))
        return [start + row for row in found.to_pylist()]

    def identities(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """What Amplitude may throttle each of these events by: its lane's identity first, then its device."""
        lane = self.rows["identity"].take(pa.array(rows, pa.int64())).to_pylist()
        devices = [orjson.loads(body).get("device_id") for body in self.bodies(rows)]
        return [
            (own,) if device is None or own == f"d:{device}" else (own, f"d:{device}")
            for own, device in zip(lane, devices, strict=True)
        ]


class OutboxFile:
    """An outbox file with the record batches that were used last."""

    def __init__(self, reader: pa.RecordBatchFileReader) -> None:
        self._reader = reader
        self._cache: OrderedDict[int, OutboxBatch] = OrderedDict()

    def batch(self, number: int) -> OutboxBatch:
        """One record batch."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        batch = OutboxBatch.of(self._reader.get_batch(number))
        self._cache[number] = batch
        if len(self._cache) > _CACHED_BATCHES:
            self._cache.popitem(last=False)
        return batch


def runs_without(start: int, end: int, skipped: Sequence[int]) -> list[tuple[int, int]]:
    """The runs of rows from ``start`` to ``end`` that remain without the (sorted) skipped ones."""
    runs = []
    for row in skipped:
        if row > start:
            runs.append((start, row))
        start = max(start, row + 1)
    if start < end:
        runs.append((start, end))
    return runs
