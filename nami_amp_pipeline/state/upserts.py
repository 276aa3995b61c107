"""Inserts rows, or updates the rows whose key exists already; on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.sql.compiler import SQLCompiler


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
    whole = _statement(is_sqlite, table, key, update, add)
    if is_sqlite:  # SQLAlchemy's work per row would cost more than the row
        text, columns = _as_text(whole, tuple(rows[0]))
        tx.exec_driver_sql(text, [tuple(row[name] for name in columns) for row in rows])
    else:
        tx.execute(whole, list(rows))


@cache  # making a statement takes longer than carrying it out
def _statement(
    is_sqlite: bool,
    table: sa.Table,
    key: tuple[str, ...],
    update: tuple[str, ...],
    add: tuple[str, ...],
) -> sa.Insert:
    insert = (sqlite.insert if is_sqlite else postgresql.insert)(table)
    changes: dict[str, Any] = {name: insert.excluded[name] for name in update}
    changes.update({name: table.c[name] + insert.excluded[name] for name in add})
    return (
        insert.on_conflict_do_update(index_elements=list(key), set_=changes)
        if changes
        else insert.on_conflict_do_nothing(index_elements=list(key))
    )


@cache
def _as_text(insert: sa.Insert, columns: tuple[str, ...]) -> tuple[str, list[str]]:
    """A statement for SQLite's driver, and the columns of its parameters in order."""
    compiled = insert.compile(dialect=sqlite.dialect(paramstyle="qmark"), column_keys=columns)
    assert isinstance(compiled, SQLCompiler)
    return str(compiled), list(compiled.positiontup or ())
