"""Events tables to be filled by tests: in a DuckDB file, or in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import psycopg2
import psycopg2.extras
import pyarrow as pa

from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline.warehouse.base import COLUMNS
from nami_amp_pipeline_tests.support.histories import to_batch


def append(url: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows to the events table of a warehouse of either kind, which is made where it is missing."""
    if url.startswith("postgresql"):
        PostgresEvents(url).insert(rows)
        return
    with duckdb.connect(url.removeprefix("duckdb:///")) as connection:
        connection.register("new_rows", pa.Table.from_batches([to_batch([dict(row) for row in rows])]))
        connection.execute("CREATE TABLE IF NOT EXISTS nami_events AS FROM new_rows LIMIT 0")
        connection.execute("INSERT INTO nami_events FROM new_rows")


class PostgresEvents:
    """The events table of a database, made as ``sql/nami_events_postgres.sql`` says.

    Args:
        url: of the database, with the rights of its owner.
        payload: the type of the payload.
        index: whether the index is made too.
        create: whether anything is made at all.
    """

    def __init__(self, url: str, *, payload: str = "text", index: bool = True, create: bool = True) -> None:
        self.url = url
        if not create:
            return
        script = sql("nami_events_postgres").replace("payload      text", f"payload {payload}")
        self.run(script if index else script.partition("CREATE INDEX")[0])

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """A cursor; what it did becomes visible at the end of the block."""
        connection = psycopg2.connect(self.url)
        try:
            with connection, connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Runs a statement and returns what it gives."""
        with self.transaction() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def insert(self, rows: Sequence[Mapping[str, Any]], cursor: Any = None) -> None:
        """Appends rows; in a transaction of their own, if it is not given."""
        if cursor is None:
            with self.transaction() as cursor:
                return self.insert(rows, cursor)
        psycopg2.extras.execute_values(
            cursor,
            f"INSERT INTO nami_events ({', '.join(COLUMNS)}) VALUES %s",
            [[row[c] for c in COLUMNS] for row in rows],
        )
        return None

    def fill(self, rows: int, *, app: str = "app", start: str = "2026-09-01", bytes_each: int = 100) -> None:
        """Appends rows made over there, one a second."""
        filling = max(1, bytes_each // 32)
        self.run(
            "INSERT INTO nami_events "
            f"SELECT '{app}-' || n, '{app}', 'user.subscription.renewed', 'u' || n % 97, at, at, "
            f"'{{\"filling\": \"' || repeat(md5(n::text), {filling}) || '\"}}' FROM generate_series(1, {rows}) AS n, "
            f"LATERAL (SELECT timestamptz '{start} UTC' + n * interval '1 second' AS at) AS moments"
        )
