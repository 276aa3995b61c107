"""Reading outboxes: which rows come next, and their bytes as one request body."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

LANE_BATCH_ROWS = 5_000
"""Rows of each record batch of a lane but its last."""

HOT_ROWS = 100
"""The rate of an identity with more rows than this in a record batch is watched."""

_CACHED_BYTES = 256_000_000
_OPEN_FILES = 8
_MOST_BYTES = 2**31 - 1

Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, eq=False)
class OutboxBatch:
    """A record batch of a lane, with the bytes of its bodies at hand.

    Attributes:
        rows: the columns.
        offsets: where each body begins in ``data``, and where the last ends.
        data: the bodies, one behind the other, each behind a comma.
    """

    rows: pa.RecordBatch
    offsets: Ints
    data: memoryview

    @staticmethod
    def of(rows: pa.RecordBatch) -> OutboxBatch:
        """Lays the buffers of the body column open."""
        bodies = rows["body"]
        _, offsets, data = bodies.buffers()
        numbers = np.frombuffer(offsets, dtype=np.int32)[bodies.offset : bodies.offset + len(bodies) + 1]
        return OutboxBatch(rows, numbers, memoryview(data) if data is not None else memoryview(b""))

    def end_within(self, start: int, events: int, size: int) -> int:
        """The row behind the longest span from ``start`` of at most ``events`` events and ``size`` bytes, or of one."""
        end = min(start + events, len(self.offsets) - 1)
        most = np.int32(min(int(self.offsets[start]) + size, _MOST_BYTES))  # of the offsets' type: they are not copied
        fitting = int(self.offsets.searchsorted(most, side="right")) - 1
        return max(start + 1, min(end, fitting))

    def size(self, row: int) -> int:
        """Bytes of one body, its comma included."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def text(self, head: bytes, spans: Iterable[tuple[int, int]], tail: bytes) -> bytes:
        """A request body: the events of spans of rows (start, end) between ``head`` and ``tail``."""
        parts: list[bytes | memoryview] = [head]
        skip = 1  # the first body's comma
        for start, end in spans:
            parts.append(self.data[int(self.offsets[start]) + skip : int(self.offsets[end])])
            skip = 0
        parts.append(tail)
        return b"".join(parts)

    def bodies(self, rows: Sequence[int]) -> list[bytes]:
        """Single bodies, without their commas."""
        return [bytes(self.data[self.offsets[row] + 1 : self.offsets[row + 1]]) for row in rows]

    @cached_property
    def _codes(self) -> tuple[Ints, list[str]]:
        """The identity of each row as a number, and the identities by number."""
        encoded = pc.dictionary_encode(self.rows["identity"])
        return encoded.indices.to_numpy(), texts_of(encoded.dictionary)

    @cached_property
    def _types(self) -> tuple[Ints, list[str]]:
        """The event type of each row as a number, and the types by number."""
        encoded = pc.dictionary_encode(self.rows["event_type"])
        return encoded.indices.to_numpy(), texts_of(encoded.dictionary)

    def types_in(self, spans: Iterable[tuple[int, int]]) -> dict[str, int]:
        """How many events of each type are in spans of rows (start, end)."""
        if len(self.offsets) <= HOT_ROWS:
            texts = texts_of(self.rows["event_type"])
            return dict(Counter(text for start, end in spans for text in texts[start:end]))
        codes, names = self._types
        numbers = sum(np.bincount(codes[start:end], minlength=len(names)) for start, end in spans)
        return {name: number for name, number in zip(names, np.atleast_1d(numbers).tolist(), strict=False) if number}

    @cached_property
    def hot(self) -> dict[str, Ints]:
        """The rows, in order, of each identity that has many."""
        if len(self.offsets) <= HOT_ROWS:
            return {}
        codes, names = self._codes
        counts = np.bincount(codes, minlength=len(names))
        return {
            names[int(code)]: np.flatnonzero(codes == code).astype(np.int32)
            for code in np.flatnonzero(counts > HOT_ROWS)
        }

    def among(self, start: int, end: int, identities: Collection[str]) -> list[int]:
        """The rows from ``start`` to ``end`` of these identities."""
        codes, names = self._codes
        here = codes[start:end]
        wanted = [int(code) for code in np.unique(here) if names[int(code)] in identities]
        if not wanted:
            return []
        found: list[int] = (np.flatnonzero(np.isin(here, wanted)) + start).tolist()
        return found

    def identities(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """The identities by which each of these events may be throttled; see :func:`identities_of`."""
        codes, names = self._codes
        return [identities_of(names[codes[row]], body) for row, body in zip(rows, self.bodies(rows), strict=True)]


def texts_of(column: pa.Array) -> list[str]:
    """The values of a text column; what a damaged file has in place of a character is replaced by U+FFFD."""
    with suppress(UnicodeDecodeError):
        texts: list[str] = column.to_pylist()  # the usual case; a cast would wait for other threads
        return texts
    return [value.decode(errors="replace") for value in column.cast(pa.binary()).to_pylist()]


def identities_of(own: str, body: bytes) -> tuple[str, ...]:
    """The identities by which an event may be throttled: its lane's identity, then its device."""
    device = orjson.loads(body).get("device_id")
    return (own,) if device is None or own == f"d:{device}" else (own, f"d:{device}")


class OutboxCache:
    """The open outbox files, shared by all integrations, with the recently used record batches.

    Args:
        open_file: opens a file of the data folder by its name.
    """

    def __init__(self, open_file: Callable[[str], pa.RecordBatchFileReader]) -> None:
        self._open_file = open_file
        self._readers: OrderedDict[str, pa.RecordBatchFileReader] = OrderedDict()
        self._batches: OrderedDict[tuple[str, int], OutboxBatch] = OrderedDict()
        self._bytes = 0

    def batch(self, name: str, number: int) -> OutboxBatch:
        """One record batch of a file.

        Raises:
            OSError: the file cannot be read.
            pyarrow.ArrowException: it is not an outbox.
        """
        key = (name, number)
        if key in self._batches:
            self._batches.move_to_end(key)
            return self._batches[key]
        batch = OutboxBatch.of(self._reader(name).get_batch(number))
        self._batches[key] = batch
        self._bytes += batch.rows.nbytes
        while self._bytes > _CACHED_BYTES and len(self._batches) > 1:
            self._bytes -= self._batches.popitem(last=False)[1].rows.nbytes
        return batch

    def _reader(self, name: str) -> pa.RecordBatchFileReader:
        if name not in self._readers:
            self._readers[name] = self._open_file(name)
            if len(self._readers) > _OPEN_FILES:
                self._readers.popitem(last=False)
        self._readers.move_to_end(name)
        return self._readers[name]

    def drop(self, name: str, number: int) -> None:
        """Drops a record batch, so that the next batch can use its memory."""
        batch = self._batches.pop((name, number), None)
        if batch is not None:
            self._bytes -= batch.rows.nbytes


def spans_without(start: int, end: int, skipped: Sequence[int]) -> list[tuple[int, int]]:
    """The spans of rows from ``start`` to ``end`` that remain without the (sorted) skipped ones."""
    spans = []
    for row in skipped:
        if row > start:
            spans.append((start, row))
        start = max(start, row + 1)
    if start < end:
        spans.append((start, end))
    return spans
