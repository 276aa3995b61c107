"""A hosted database that runs here: DuckDB behind its own ADBC driver, which is told in another dialect.

It shows that the statements mean what they should as far as sqlglot knows the dialect. It is no Snowflake, and no
BigQuery.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import sqlglot
from adbc_driver_duckdb import dbapi

TYPES = {
    "snowflake": {"VARCHAR": "TEXT", "TIMESTAMP WITH TIME ZONE": "TIMESTAMP_TZ", "JSON": "VARIANT"},
    "bigquery": {"VARCHAR": "STRING", "TIMESTAMP WITH TIME ZONE": "TIMESTAMP", "JSON": "JSON"},
}


class Told:
    """What the driver's module is to the product.

    Args:
        dialect: in which it is told.
        path: of the DuckDB file.

    Attributes:
        options: with which it was last connected.
        statements: all that it was told.
    """

    def __init__(self, dialect: str, path: str) -> None:
        self._dialect = dialect
        self._path = path
        self.options: Mapping[str, str] = {}
        self.statements: list[str] = []

    def connect(self, *, db_kwargs: Mapping[str, str], autocommit: bool) -> _Connection:
        """A connection, on which each statement counts at once."""
        assert autocommit
        self.options = db_kwargs
        return _Connection(dbapi.connect(self._path), self)

    def translate(self, statement: str) -> str:
        """A statement as DuckDB has it."""
        self.statements.append(statement)
        if statement.startswith("ALTER SESSION"):
            return "SELECT 1"
        if "information_schema" in statement.lower():
            kinds = " ".join(f"WHEN '{ours}' THEN '{theirs}'" for ours, theirs in TYPES[self._dialect].items())
            name = re.findall(r"table_name = '(.*?)'", statement)[0].lower()
            return (
                f"SELECT column_name, CASE data_type {kinds} ELSE data_type END, is_nullable "
                f"FROM information_schema.columns WHERE table_name = '{name}'"
            )
        (told,) = sqlglot.parse(statement, read=self._dialect)
        assert told is not None
        for table in told.find_all(sqlglot.exp.Table):
            table.set("db", None)
            table.set("catalog", None)
        return told.sql("duckdb")

    def answers(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Names as the database writes them."""
        if self._dialect != "snowflake":
            return batch
        return batch.rename_columns([name.upper() for name in batch.schema.names])


class _Connection:
    def __init__(self, inner: Any, told: Told) -> None:
        self._inner = inner
        self._told = told

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()

    @contextmanager
    def cursor(self) -> Iterator[_Cursor]:
        """A cursor, closed with the block."""
        with self._inner.cursor() as inner:
            yield _Cursor(inner, self._told)


class _Cursor:
    def __init__(self, inner: Any, told: Told) -> None:
        self._inner = inner
        self._told = told

    def execute(self, statement: str) -> None:
        """Runs it."""
        self._inner.execute(self._told.translate(statement))

    def fetchall(self) -> list[Any]:
        """All rows."""
        rows: list[Any] = self._inner.fetchall()
        return rows

    def fetch_record_batch(self) -> Iterator[pa.RecordBatch]:
        """All batches."""
        for batch in self._inner.fetch_record_batch():
            yield self._told.answers(batch)
