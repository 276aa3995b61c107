"""Stage 1's rows from the warehouse to the segments: all at once, or where they are large a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial

import duckdb
import pyarrow as pa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages import heavy_rows
from nami_amp_pipeline.stages.odd_rows import look_at_doubtful, set_aside
from nami_amp_pipeline.storage.duckdb_engine import sql, stream
from nami_amp_pipeline.storage.parallel import is_parallel
from nami_amp_pipeline.storage.row_faults import may_be_a_rows
from nami_amp_pipeline.storage.segment_writer import SegmentWriter
from nami_amp_pipeline.warehouse import Source
from nami_amp_pipeline.warehouse.base import one_line

MAX_TYPE_CHARACTERS = 200
"""An event type is cut to this many characters; every selectable type is shorter."""

JOINED_ROWS = 100_000
"""So many row numbers and fewer are joined: that takes no memory to speak of."""

BITS_PER_ROW = 16
MOST_BITS = 500_000_000
"""A bitmap has no more bits than so many for each row, and so many in all; a joined number takes a multiple."""

_TOO_MUCH = (duckdb.OutOfMemoryException, heavy_rows.Heavy)


def write_rows(
    context: Context, connection: duckdb.DuckDBPyConnection, source: Source, *, wanted: str = "true"
) -> dict[str, int]:
    """Writes the fresh rows, one file per bucket; returns file name to rows.

    Rows that are too large to be read thousands at a time are read a few at a time. A row that makes the whole read
    fail is searched for and set aside.

    Args:
        context: for the settings and the folder.
        connection: has the table ``fresh`` and the macro ``bucket_of``.
        source: the events table.
        wanted: SQL of which of these rows are written, by the columns of a segment.
    """
    is_heavy = is_searched = False
    while True:
        try:
            return _write_all(context, connection, source, wanted, is_heavy=is_heavy)
        except Exception as error:
            if not is_heavy and _is_too_much(error, source):
                is_heavy = True
                continue
            if is_searched or not may_be_a_rows(error) or source.broke():
                raise
            context.log.warning("a row makes the read fail; searching for it: %s", one_line(error))
            reading = partial(_read_in_any_way, context, connection, source, wanted, is_heavy=is_heavy)
            if not set_aside(connection, reading, one_line, source.broke):
                raise
            is_searched = True


def _is_too_much(error: Exception, source: Source) -> bool:
    return isinstance(error, _TOO_MUCH) or source.is_heavy()


def _read_in_any_way(
    context: Context, connection: duckdb.DuckDBPyConnection, source: Source, wanted: str, *, is_heavy: bool
) -> Iterator[pa.Table]:
    """The fresh rows; once more and a few at a time where they are too large, which is no row's fault."""
    try:
        yield from _read(context, connection, source, wanted, is_heavy=is_heavy)
    except Exception as error:
        if is_heavy or not _is_too_much(error, source):
            raise
        yield from _read(context, connection, source, wanted, is_heavy=True)


def _write_all(
    context: Context, connection: duckdb.DuckDBPyConnection, source: Source, wanted: str, *, is_heavy: bool
) -> dict[str, int]:
    with ExitStack() as stack:
        # Closed also where a file cannot be written: the warehouse could not be let go otherwise.
        segments = stack.enter_context(SegmentWriter(context.folder, parallel=is_parallel(context.settings)))
        for table in _read(context, connection, source, wanted, is_heavy=is_heavy):
            segments.add(table)
    pa.default_memory_pool().release_unused()  # what follows needs it
    return segments.rows


def _read(
    context: Context, connection: duckdb.DuckDBPyConnection, source: Source, wanted: str, *, is_heavy: bool
) -> Iterator[pa.Table]:
    """The fresh rows with the columns of a segment, and their bucket."""
    query = sql("capture_2_rows").format(
        max_id_bytes=contract.MAX_ID_BYTES,
        max_type_characters=MAX_TYPE_CHARACTERS,
        max_payload_bytes=context.settings.max_payload_bytes,
        first_moment=contract.FIRST_MOMENT,
        last_moment=contract.LAST_MOMENT,
        wanted=wanted,
    )

    def judged(rows: str) -> Iterator[pa.Table]:
        connection.execute(f"CREATE OR REPLACE TEMP VIEW source AS SELECT * FROM {rows}")  # noqa: S608
        with connection.cursor() as beside, closing(stream(connection, query, heavy_rows.VECTOR_ROWS)) as batches:
            for table in heavy_rows.gathered(batches):
                yield look_at_doubtful(table, beside)

    def few(rows: pa.Table) -> Iterator[pa.Table]:
        connection.register("few_rows", rows)
        return judged("few_rows")

    if is_heavy:
        return heavy_rows.read_heavy(connection, source, context.settings.max_payload_bytes, few)
    return judged(only_fresh(connection, source.rows()))


def only_fresh(connection: duckdb.DuckDBPyConnection, rows: str) -> str:
    """SQL of the fresh ones of some rows.

    Joined, millions of row numbers take so much memory that DuckDB writes the rows beside them to disk. Numbers that
    lie close together are looked up in a bitmap.

    Args:
        connection: has the table ``fresh``.
        rows: what stands behind ``FROM``, with the column ``rid``.
    """
    ((count, low, high),) = connection.execute("SELECT count(*), min(rid), max(rid) FROM fresh").fetchall()
    if count <= JOINED_ROWS or high - low >= min(count * BITS_PER_ROW, MOST_BITS):
        return f"{rows} SEMI JOIN fresh USING (rid)"
    connection.execute(f"SET VARIABLE fresh_rows = (SELECT bitstring_agg(rid, {low}, {high}) FROM fresh)")  # noqa: S608
    return (
        f"(FROM {rows} WHERE CASE WHEN rid BETWEEN {low} AND {high} "
        f"THEN get_bit(getvariable('fresh_rows'), (rid - {low})::INTEGER) = 1 ELSE false END)"
    )
