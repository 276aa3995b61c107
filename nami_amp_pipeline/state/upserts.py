"""Writes many small rows with few statements: inserts or updates by key, on SQLite and PostgreSQL.

The driver is given the rows itself. SQLAlchemy would send PostgreSQL a statement for each of these rows, and for SQLite
its work for a row would cost more than the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.sql.compiler import SQLCompiler

_ROWS_AT_A_TIME = 1_000


def write(
    tx: Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    key: tuple[str, ...],
    update: tuple[str, ...],
    add: tuple[str, ...],
    *,
    is_sqlite: bool,
) -> None:
    """See :meth:`nami_amp_pipeline.state.store.Store.upsert`; there is at least one row."""
    text, columns = _as_text(is_sqlite, table, key, update, add, tuple(rows[0]))
    _carry_out(tx, text, [tuple(row[name] for name in columns) for row in rows], is_sqlite=is_sqlite)


def change(
    tx: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], key: tuple[str, ...], *, is_sqlite: bool
) -> None:
    """See :meth:`nami_amp_pipeline.state.store.Store.change`; there is at least one row."""
    names = (*(name for name in rows[0] if name not in key), *key)
    text, template = _update(is_sqlite, table, names, len(key))
    values = [tuple(row[name] for name in names) for row in rows]
    _carry_out(tx, text, values, is_sqlite=is_sqlite, template=template)


def _carry_out(
    tx: Connection, text: str, values: Sequence[tuple[Any, ...]], *, is_sqlite: bool, template: str | None = None
) -> None:
    if is_sqlite:
        tx.exec_driver_sql(text, list(values))
        return
    from psycopg2.extras import execute_values

    with as_sqlalchemy(tx):
        cursor = tx.connection.cursor()
        execute_values(cursor, text, values, template=template, page_size=_ROWS_AT_A_TIME)
        cursor.close()


@cache  # making a statement takes longer than carrying it out
def _as_text(
    is_sqlite: bool,
    table: sa.Table,
    key: tuple[str, ...],
    update: tuple[str, ...],
    add: tuple[str, ...],
    columns: tuple[str, ...],
) -> tuple[str, list[str]]:
    """A statement for the driver, and the columns of its parameters in order."""
    insert = (sqlite.insert if is_sqlite else postgresql.insert)(table)
    changes: dict[str, Any] = {name: insert.excluded[name] for name in update}
    changes.update({name: table.c[name] + insert.excluded[name] for name in add})
    whole = (
        insert.on_conflict_do_update(index_elements=list(key), set_=changes)
        if changes
        else insert.on_conflict_do_nothing(index_elements=list(key))
    )
    dialect = sqlite.dialect(paramstyle="qmark") if is_sqlite else postgresql.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
    compiled = whole.compile(dialect=dialect, column_keys=columns)
    assert isinstance(compiled, SQLCompiler)
    text, names = str(compiled), list(compiled.positiontup or ())
    if not is_sqlite:  # the driver puts all rows there
        text = text.replace(f"VALUES ({', '.join(['%s'] * len(names))})", "VALUES %s", 1)
    return text, names


@cache
def _update(is_sqlite: bool, table: sa.Table, names: tuple[str, ...], of_key: int) -> tuple[str, str | None]:
    """A statement for the driver; and for PostgreSQL the template of a row, with types, as a column may be all NULL.

    Args:
        is_sqlite: of the two kinds of stores, which.
        table: which.
        names: of all columns, those of the key last.
        of_key: how many these are.
    """
    dialect = sqlite.dialect() if is_sqlite else postgresql.dialect()  # type: ignore[no-untyped-call]
    quoted = dialect.identifier_preparer.quote
    this, columns = quoted(table.name), [quoted(name) for name in names]
    changed, key = columns[:-of_key], columns[-of_key:]
    if is_sqlite:
        changes, same = ", ".join(f"{name} = ?" for name in changed), " AND ".join(f"{name} = ?" for name in key)
        return f"UPDATE {this} SET {changes} WHERE {same}", None  # noqa: S608
    changes = ", ".join(f"{name} = given.{name}" for name in changed)
    same = " AND ".join(f"{this}.{name} = given.{name}" for name in key)
    kinds = (table.c[name].type.compile(dialect) for name in names)
    text = f"UPDATE {this} SET {changes} FROM (VALUES %s) AS given ({', '.join(columns)}) WHERE {same}"  # noqa: S608
    return text, f"({', '.join(f'%s::{kind}' for kind in kinds)})"


@contextmanager
def as_sqlalchemy(tx: Connection) -> Iterator[None]:
    """Converts the driver's errors to SQLAlchemy's, so that callers handle both alike."""
    dbapi = tx.dialect.loaded_dbapi
    try:
        yield
    except dbapi.Error as error:
        raise sa.exc.DBAPIError.instance(None, None, error, dbapi.Error, dialect=tx.dialect) from error
