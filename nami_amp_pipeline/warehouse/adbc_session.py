"""A connection over ADBC during one reading: statements, small answers, and streams of Arrow in UTF-8."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection


_LIGHT_BYTES = 4_000_000
_LIGHT_ROW_BYTES = 16_000
"""Batches are heavy above so many bytes, if their rows take more than so many each."""


class _Heavy(Exception):
    """Rows are to be read a few at a time."""


class Session:
    """A connection during one reading.

    Attributes:
        failure: what broke a stream that DuckDB was reading from; of that, DuckDB passes on a text only.
        is_heavy: whether a stream ended because its rows are heavy.
        any_bytes: whether texts may come that are not UTF-8, to be mended row by row.
    """

    def __init__(self, db: Connection) -> None:
        self.failure: Exception | None = None
        self.is_heavy = False
        self.any_bytes = False
        self._db = db
        self._streams: list[Generator[pa.RecordBatch]] = []

    def execute(self, statement: str) -> None:
        """Runs a statement that gives nothing back."""
        with self._db.cursor() as cursor:
            cursor.execute(statement)

    def rows(self, query: str, **options: str) -> list[tuple[Any, ...]]:
        """The whole answer of a query that is known to be small; ``options`` are the driver's."""
        with self._db.cursor() as cursor:
            if options:
                cursor.adbc_statement.set_options(**options)
            cursor.execute(query)
            return cursor.fetchall()

    def table(self, query: str) -> pa.Table:
        """The whole answer of a query."""
        with self._db.cursor() as cursor:
            cursor.execute(query)
            found = cursor.fetch_arrow_table()
        if self.any_bytes:
            found = pa.Table.from_batches([_in_utf8(batch) for batch in found.to_batches()], found.schema)
        return found

    def stream(self, queries: Iterable[str], schema: pa.Schema, *, until_heavy: bool = False) -> pa.RecordBatchReader:
        """The answers of queries of the same columns, one after the other; a batch at a time is in memory.

        Args:
            queries: of the same columns.
            schema: theirs.
            until_heavy: whether to end with an error, and ``is_heavy``, where rows are so large that as many of them as
                DuckDB puts together could be too much.
        """
        batches = self._batches(queries, schema, until_heavy)
        self._streams.append(batches)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def _batches(self, queries: Iterable[str], schema: pa.Schema, until_heavy: bool) -> Generator[pa.RecordBatch]:
        try:
            for query in queries:
                with self._db.cursor() as cursor:
                    cursor.execute(query)
                    for batch in cursor.fetch_record_batch():
                        if until_heavy and batch.nbytes > max(_LIGHT_BYTES, batch.num_rows * _LIGHT_ROW_BYTES):
                            self.is_heavy = True
                            raise _Heavy
                        # By place, since a database may write the names in upper case.
                        batch = (_in_utf8(batch) if self.any_bytes else batch).rename_columns(schema.names)
                        yield batch.cast(schema)
        except _Heavy:
            raise
        except Exception as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Closes streams that were not read to their end."""
        for batches in self._streams:
            with suppress(Exception):  # must not hide the original error
                batches.close()


def answered(
    session: Session, duck: duckdb.DuckDBPyConnection, queries: Sequence[str], schema: pa.Schema, local: str
) -> list[tuple[Any, ...]]:
    """Queries over there whose answers are the table ``warehouse_stream`` of a query here."""
    duck.register("warehouse_stream", session.stream(queries, schema))
    try:
        return duck.execute(local).fetchall()
    finally:
        session.close()
        duck.unregister("warehouse_stream")


def _in_utf8(batch: pa.RecordBatch) -> pa.RecordBatch:
    r"""Texts as UTF-8, in those rows where they are not.

    A byte that belongs to no character becomes U+FFFD in a payload, and ``\\xfc`` in what names things: two names never
    become one.
    """
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        is_large = pa.types.is_large_string(column.type)
        if is_large or pa.types.is_string(column.type):
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                errors = "replace" if name == "payload" else "backslashreplace"
                values = column.cast(pa.large_binary() if is_large else pa.binary()).to_pylist()
                texts = [None if value is None else value.decode(errors=errors) for value in values]
                columns.append(pa.array(texts, column.type))
                continue
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
