"""Writes many rows at once, in columns: COPY on PostgreSQL, one call of the driver on SQLite.

SQLAlchemy's own work for each row costs more than the database's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import sqlalchemy as sa

from nami_amp_pipeline.state.store import Store, Transaction
from nami_amp_pipeline.state.upserts import as_sqlalchemy

if TYPE_CHECKING:
    import pyarrow as pa

FEW_ROWS = 1_000
"""Up to this many rows, one statement is faster on PostgreSQL than COPY into a temporary table."""

_ROWS_AT_A_TIME = 20_000  # bounds the memory, whatever the table


def insert(store: Store, tx: Transaction, table: sa.Table, rows: pa.Table, *, on_conflict: str = "") -> None:
    """Inserts the rows of an Arrow table.

    Args:
        store: for its kind.
        tx: the transaction to write in.
        table: where to.
        rows: texts, integers and booleans, with the column names of ``table``; missing columns get their default. Rows
            sorted by key take half the time.
        on_conflict: the clause after the values, such as ``ON CONFLICT (id) DO UPDATE SET n = s.n + excluded.n``, where
            the old row is called ``s``. Each key may then be in ``rows`` only once.
    """
    if not rows.num_rows:
        return
    preparer = tx.dialect.identifier_preparer
    columns = ", ".join(preparer.quote(name) for name in rows.column_names)
    target = f"{preparer.format_table(table)} AS s ({columns})"
    with as_sqlalchemy(tx):
        if store.is_sqlite:
            _execute_many(tx, f"INSERT INTO {target} VALUES ({{}}) {on_conflict}", rows)  # noqa: S608
        elif rows.num_rows <= FEW_ROWS:
            _execute_values(tx, f"INSERT INTO {target} VALUES", on_conflict, rows)
        elif on_conflict and not (_seem_new(tx, table, rows) and _copy_new(tx, table, columns, rows)):
            cursor = tx.connection.cursor()
            source = f"SELECT {columns} FROM {preparer.format_table(table)}"  # noqa: S608
            cursor.execute(f"CREATE TEMPORARY TABLE incoming AS {source} WITH NO DATA")
            _copy(tx, f"incoming ({columns})", rows)
            cursor.execute(f"INSERT INTO {target} SELECT {columns} FROM incoming {on_conflict}")  # noqa: S608
            cursor.execute("DROP TABLE incoming")
            cursor.close()
        elif not on_conflict:
            _copy(tx, f"{preparer.format_table(table)} ({columns})", rows)


def _seem_new(tx: Transaction, table: sa.Table, rows: pa.Table) -> bool:
    """Whether the table has no key from that of the first row to that of the last; in its order, which may be another.

    A segment has a range of the users, so that this holds for all segments of users who are new.
    """
    keys = [column.name for column in table.primary_key.columns]
    first, last = ([rows[name][number].as_py() for name in keys] for number in (0, -1))
    quoted = tx.dialect.identifier_preparer.quote
    key, given = (", ".join(texts) for texts in (map(quoted, keys), ["%s"] * len(keys)))
    cursor = tx.connection.cursor()
    cursor.execute(
        f"SELECT NOT EXISTS (SELECT FROM {tx.dialect.identifier_preparer.format_table(table)} "  # noqa: S608
        f"WHERE ({key}) >= ({given}) AND ({key}) <= ({given}))",
        [*first, *last],
    )
    ((is_free,),) = cursor.fetchall()
    cursor.close()
    return bool(is_free)


def _copy_new(tx: Transaction, table: sa.Table, columns: str, rows: pa.Table) -> bool:
    """Copies rows into the table itself, which costs half as much as by a temporary one.

    Returns:
        Whether they are there now; none is if the table has the key of one already.
    """
    from psycopg2.errors import UniqueViolation

    cursor = tx.connection.cursor()
    cursor.execute("SAVEPOINT before_new_rows")
    try:
        _copy(tx, f"{tx.dialect.identifier_preparer.format_table(table)} ({columns})", rows)
    except UniqueViolation:
        cursor.execute("ROLLBACK TO SAVEPOINT before_new_rows")
        return False
    finally:
        cursor.close()
    return True


def _execute_many(tx: Transaction, statement: str, rows: pa.Table) -> None:
    cursor = tx.connection.cursor()
    statement = statement.format(", ".join("?" * rows.num_columns))
    for part in _parts(rows):
        cursor.executemany(statement, list(_tuples(part)))
    cursor.close()


def _execute_values(tx: Transaction, head: str, tail: str, rows: pa.Table) -> None:
    from psycopg2.extras import execute_values

    cursor = tx.connection.cursor()
    head, tail = (part.replace("%", "%%") for part in (head, tail))
    execute_values(cursor, f"{head} %s {tail}", list(_tuples(rows)), page_size=FEW_ROWS)
    cursor.close()


def _copy(tx: Transaction, target: str, rows: pa.Table) -> None:
    from pyarrow import csv

    # Quoted values are texts and unquoted values NULL, which distinguishes NULL from the empty text.
    options = csv.WriteOptions(include_header=False, quoting_style="all_valid")
    driver = tx.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor:
        for part in _parts(rows):
            text = io.BytesIO()
            csv.write_csv(part, text, options)
            text.seek(0)
            cursor.copy_expert(f"COPY {target} FROM STDIN WITH (FORMAT csv, ENCODING 'UTF8')", text)


def _parts(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, _ROWS_AT_A_TIME):
        yield rows.slice(start, _ROWS_AT_A_TIME)


def _tuples(rows: pa.Table) -> Iterator[tuple[object, ...]]:
    return zip(*(column.to_pylist() for column in rows.columns), strict=True)
