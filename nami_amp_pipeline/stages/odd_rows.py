"""The slow, careful path of the stages: it examines single rows that cannot be computed in columns.

A row of an unknown kind affects no other row: it becomes a dead letter if it has an id, and is counted and skipped
otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.storage.json_text import field_names, judge
from nami_amp_pipeline.storage.row_faults import MOST_ODD, find_odd, may_be_a_rows, words_of

HALF_CHARACTERS = "half_characters"
"""The ``problem`` of an event that is sent all the same: halves of surrogate pairs were replaced."""

MOST_SET_ASIDE = 100
"""At most this many rows of a reading are set aside; more most likely share one cause."""


def odd_rows_of(
    context: Context, file: str, compute: Callable[[int, int], None], error: Exception, what: str
) -> dict[int, str]:
    """The rows of a segment that cannot be computed, each alone; logs the id of each of them.

    Args:
        context: for the file and the log.
        file: of the segment.
        compute: computes the rows from ``first`` to before ``end``, and keeps no result.
        error: of all rows together.
        what: happens to such a row, as a part of a sentence.

    Returns:
        The error in words, by row number; empty if all rows can be computed now.

    Raises:
        Exception: ``error``, if there are more such rows than :data:`MOST_ODD`, as they most likely share one cause.
    """
    context.log.warning("a row cannot be computed; the search for it begins: %s", words_of(error))

    def failure(first: int, end: int) -> str | None:
        try:
            compute(first, end)
        except Exception as own:
            if not may_be_a_rows(own):
                raise
            return words_of(own)
        return None

    path = context.folder.fetch(file)
    bad = find_odd(0, pq.read_metadata(path).num_rows, failure, MOST_ODD)
    if len(bad) > MOST_ODD:
        raise error
    if bad:
        rows = pq.read_table(path, columns=["app_id", "id"]).take(list(bad)).to_pylist()
        for row, why in zip(rows, bad.values(), strict=True):
            context.log.warning(
                "event %s of app %s cannot be computed (%s), so %s", row["id"], row["app_id"], why, what
            )
    return bad


def only(rows: tuple[int, int] | None) -> str:
    """SQL: whether a row of a segment is in a range of row numbers."""
    return "true" if rows is None else f"file_row_number >= {rows[0]} AND file_row_number < {rows[1]}"


def is_odd(odd: Iterable[int]) -> str:
    """SQL: whether a row of a segment cannot be computed."""
    numbers = ", ".join(map(str, odd))
    return f"file_row_number IN ({numbers})" if numbers else "false"


def look_at_doubtful(table: pa.Table, connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Examines the payloads marked ``doubtful``, and drops that column.

    Args:
        table: columns of a segment, ``bucket`` and ``doubtful``.
        connection: a DuckDB with nothing under way.
    """
    rows = pc.indices_nonzero(table["doubtful"]).to_pylist()
    table = table.drop_columns(["doubtful"])
    if not rows:
        return table
    columns = {name: table[name].to_pylist() for name in ("well_formed", "problem")}
    changed: dict[int, tuple[str, int]] = {}
    for row in rows:
        text = table["payload"][row].as_py()
        try:
            found = judge(connection, text)
            columns["well_formed"][row] = found.is_object
            if found.replaced:
                columns["problem"][row] = HALF_CHARACTERS
                changed[row] = found.text, _shape(field_names(found.text))
        except Exception:  # noqa: BLE001 - whatever it is, it is this row's own end
            columns["well_formed"][row] = False
    if changed:
        columns["payload"], columns["shape"] = table["payload"].to_pylist(), table["shape"].to_pylist()
        for row, (text, shape) in changed.items():
            columns["payload"][row], columns["shape"][row] = text, shape
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(at).type))
    return table


def _shape(fields: list[str]) -> int:
    """A number that is the same for the same fields in the same order; it differs from DuckDB's."""
    digest = hashlib.blake2b(digest_size=8)
    for name in fields:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return int.from_bytes(digest.digest())


def set_aside(
    connection: duckdb.DuckDBPyConnection,
    read: Callable[[], Iterable[object]],
    words: Callable[[Exception], str],
    broke: Callable[[], bool],
) -> bool:
    """Moves the unreadable rows from the table ``fresh`` to the table ``nameless``.

    Args:
        connection: has both.
        read: reads the rows of ``fresh``; raises if a row cannot be read.
        words: an error in one line.
        broke: whether an error was not a row's fault.

    Returns:
        Whether there were any, and at most :data:`MOST_SET_ASIDE`.
    """
    connection.execute("CREATE TEMP TABLE all_fresh AS SELECT * FROM fresh")
    ((total,),) = connection.execute("SELECT count(*) FROM fresh").fetchall()
    connection.execute(
        "CREATE TEMP TABLE numbered AS SELECT rid, row_number() OVER (ORDER BY rid) - 1 AS number FROM fresh"
    )

    def failure(first: int, end: int) -> str | None:
        connection.execute("DELETE FROM fresh")
        connection.execute(
            "INSERT INTO fresh SELECT * FROM all_fresh "
            "WHERE rid IN (SELECT rid FROM numbered WHERE number >= ? AND number < ?)",
            [first, end],
        )
        try:
            for _ in read():
                pass
        except Exception as error:
            if broke() or not may_be_a_rows(error):
                raise
            return words(error)
        return None

    try:
        bad = find_odd(0, total, failure, MOST_SET_ASIDE)
    finally:
        connection.execute("DELETE FROM fresh")
        connection.execute("INSERT INTO fresh FROM all_fresh")
    if not 0 < len(bad) <= MOST_SET_ASIDE:
        return False
    connection.register("bad_rows", pa.table({"number": pa.array(list(bad), pa.int64()), "why": list(bad.values())}))
    connection.execute(
        "INSERT INTO nameless SELECT k.app_id, 'odd_row', epoch_us(k.ingested_at), concat('id ', k.id[:60], ': ', why) "
        "FROM keys k JOIN numbered USING (rid) JOIN bad_rows USING (number)"
    )
    connection.execute("DELETE FROM fresh WHERE rid IN (SELECT rid FROM numbered JOIN bad_rows USING (number))")
    return True
