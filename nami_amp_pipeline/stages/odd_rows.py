"""The slow, careful path of stage 1: it examines single rows that cannot be judged in columns.

A row of an unknown kind affects no other row: it becomes a dead letter if it has an id, and is counted and skipped
otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from nami_amp_pipeline.storage.json_text import field_names, judge

HALF_CHARACTERS = "half_characters"
"""The ``problem`` of an event that is sent all the same: halves of surrogate pairs were replaced."""

MOST_SET_ASIDE = 100
"""At most this many rows of a reading are set aside; more most likely share one cause."""


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
    bad: dict[int, str] = {}

    def look(first: int, end: int) -> None:
        if first >= end or len(bad) > MOST_SET_ASIDE:
            return
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
            if broke():
                raise
            if end - first == 1:
                bad[first] = words(error)
                return
            middle = (first + end) // 2
            look(first, middle)
            look(middle, end)

    try:
        look(0, total)
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
