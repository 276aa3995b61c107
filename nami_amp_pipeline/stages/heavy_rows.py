"""Stage 1 where rows are so large that thousands of them do not fit into the memory: few at a time, counted in bytes.

DuckDB works on vectors of 2,048 rows, and Arrow's batches are bounded by rows too. So rows that are heavy are fetched
by their numbers: as many at a time as the ones before let expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from nami_amp_pipeline import contract
from nami_amp_pipeline.storage.duckdb_engine import more_memory, stream
from nami_amp_pipeline.warehouse import Source

Numbers = np.ndarray[Any, np.dtype[np.int64]]

VECTOR_ROWS = 2_048
"""What DuckDB works on at once, and the smallest batch that it gives at no cost."""

GATHERED_ROWS = 20_000
GATHERED_BYTES = 32_000_000
"""What goes on together, at most: so many rows, or a batch more than so many bytes."""

MOST_BYTES = 64_000_000
"""A batch of more has rows that are heavy."""

_FEW_BYTES = 32_000_000
_FEW_ROWS = 64
_FEWEST_AT_ONCE = 16

_ROOM = 4
"""So many times the memory is allowed for reading a vector that DuckDB reads whole or not at all. It counts memory that
it reserves, by powers of two, and not what it uses of it."""


class Heavy(Exception):
    """The rows have to be read a few at a time."""


def gathered(reader: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches put together.

    Raises:
        Heavy: one of them is large all the same.
    """
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        if batch.nbytes > MOST_BYTES:
            raise Heavy
        held.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= GATHERED_ROWS or size >= GATHERED_BYTES:
            yield pa.Table.from_batches(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def read_heavy(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    max_payload_bytes: int,
    judged: Callable[[pa.Table], Iterator[pa.Table]],
) -> Iterator[pa.Table]:
    """The rows of the table ``fresh``, as they are judged, some MB at a time.

    Args:
        connection: has the table.
        source: the events table.
        max_payload_bytes: a longer payload is cut to a byte more, so that it is still seen to be too long.
        judged: rows of the source as a segment has them.
    """
    order = connection.sql(f"SELECT rid FROM fresh ORDER BY {source.order}").to_arrow_table()  # noqa: S608
    wanted = order["rid"].to_numpy()
    rows, is_roomy = _FEW_ROWS, False
    with ExitStack() as room:
        while len(wanted):
            part = wanted[:rows]
            try:
                table, is_whole = _fetch(connection, source, part, max_payload_bytes)
            except duckdb.OutOfMemoryException:
                if len(part) > _FEWEST_AT_ONCE or (is_roomy and len(part) > 1):
                    rows = len(part) // 4
                elif not is_roomy:
                    room.enter_context(more_memory(connection, _ROOM))
                    is_roomy = True
                else:
                    raise
                continue
            got = table["rid"].to_numpy()
            wanted = wanted[len(part) :] if is_whole else wanted[~np.isin(wanted, got)]
            expected = _FEW_BYTES * len(got) // max(1, table.nbytes) if len(got) else rows
            rows = max(1, min(8 * rows, GATHERED_ROWS, expected))
            yield from _in_pieces(table, judged)


def _fetch(
    connection: duckdb.DuckDBPyConnection, source: Source, numbers: Numbers, max_payload_bytes: int
) -> tuple[pa.Table, bool]:
    """Rows by their numbers, each once; and whether these are all, or only as many as go together."""
    query = f"""
        SELECT * REPLACE (
            CASE WHEN strlen(payload::VARCHAR) > {max_payload_bytes}
                THEN left(payload::VARCHAR, {max_payload_bytes} + 1)
                ELSE payload::VARCHAR
            END AS payload,
            CASE WHEN strlen(user_id) > {contract.MAX_ID_BYTES} THEN left(user_id, {contract.MAX_ID_BYTES} + 1)
                ELSE user_id
            END AS user_id
        )
        FROM {source.few(numbers.tolist())}
    """  # noqa: S608
    held: list[pa.RecordBatch] = []
    missing, size = numbers, 0
    reader = stream(connection, query, _FEWEST_AT_ONCE)
    try:
        for batch in reader:
            at = batch["rid"].to_numpy()
            first = np.zeros(len(at), bool)
            first[np.unique(at, return_index=True)[1]] = True
            chosen = first & np.isin(at, missing)
            held.append(batch if chosen.all() else batch.filter(pa.array(chosen)))
            missing, size = missing[~np.isin(missing, at)], size + held[-1].nbytes
            if not missing.size:
                return pa.Table.from_batches(held), True
            if size > 2 * _FEW_BYTES:
                return pa.Table.from_batches(held), False
    finally:
        reader.close()
    return pa.Table.from_batches(held) if held else pa.table({"rid": pa.array([], pa.int64())}), True


def _in_pieces(table: pa.Table, judged: Callable[[pa.Table], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Rows as they are judged, in halves where the judging of all of them takes too much memory."""
    done = 0
    try:
        for part in judged(table):
            done += part.num_rows
            yield part
    except duckdb.OutOfMemoryException:
        if done or table.num_rows < 2:
            raise
        half = table.num_rows // 2
        yield from _in_pieces(table.slice(0, half), judged)
        yield from _in_pieces(table.slice(half), judged)
