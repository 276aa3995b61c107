"""Reading an events table over ADBC: Arrow from the driver on, as a stream, and payloads only of rows that are wanted.

A reading has two halves, in one transaction where the database has such. First the *keys* (app, id, ``ingested_at``) of
all rows from each app's position on; DuckDB finds out which of them are wanted. Then whole rows, from those spans of
``ingested_at`` where wanted rows lie. The SQL is plain: no cursor, no number of a row, no temporary table over there,
so that a view will do, and other databases too (docs/warehouses.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.warehouse.adbc_reading import FIRST, LAST, ROWS, USERS_OF, Reading
from nami_amp_pipeline.warehouse.adbc_session import Session, answered
from nami_amp_pipeline.warehouse.base import (
    COLUMNS,
    EventRow,
    Finding,
    Lookup,
    Places,
    Source,
    Unplaced,
    by_position,
    one_line,
    together,
)

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection

_SOME_ROWS = 100_000
"""The rows that are asked which apps there are."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AdbcWarehouse(ABC):
    """An events table that an ADBC driver reads; a database adds how to connect and how it writes and names things.

    Args:
        table: the table as it is written in SQL, quoted.
    """

    def __init__(self, table: str) -> None:
        self.table = table

    @property
    @abstractmethod
    def name(self) -> str:
        """The table as people call it, without any credentials."""

    @abstractmethod
    def connect(self) -> Connection:
        """Connects; raises the driver's error, or :class:`Misconfigured` where it cannot come to that."""

    @abstractmethod
    def begin(self, session: Session) -> list[str]:
        """Makes what follows one consistent reading where the database can, and checks the table.

        Returns:
            What a person should know, one line each.

        Raises:
            WarehouseUnavailable: it is not as it must be.
        """

    @abstractmethod
    def check(self) -> list[Finding]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""

    def explain(self, error: Exception) -> str:
        """An error of the driver as one line that says what to do."""
        return f"cannot read {self.name}: {one_line(error)}"

    # How the database writes literals and names: the SQL standard by default.

    def text(self, value: str) -> str:
        """A text as a literal."""
        return "'" + value.replace("'", "''") + "'"

    def time(self, micros: int) -> str:
        """Microseconds since the epoch as a literal."""
        moment = _EPOCH + timedelta(microseconds=min(max(micros, FIRST), LAST))
        return f"TIMESTAMP WITH TIME ZONE '{moment.isoformat()}'"

    def within(self, first: int, last: int) -> str:
        """The condition of ``ingested_at`` for rows from one moment to another, both included."""
        return f"ingested_at BETWEEN {self.time(first)} AND {self.time(last)}"

    def as_text(self, column: str) -> str:
        """A column, which may be of a JSON type, as a text."""
        return f"CAST({column} AS text)"

    # Reading.

    @contextmanager
    def open(self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]) -> Iterator[Source]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        with self._session() as session:
            warnings = self.begin(session)
            reading = Reading(self, session, connection)
            try:
                unplaced = self.unplaced(session, connection, list(positions))
                head = reading.read_keys(together(positions))
                yield Source(
                    "warehouse_keys", head, reading.rows, reading.few, reading.users, warnings=warnings,
                    unplaced=unplaced, broke=lambda: session.failure is not None, is_heavy=lambda: session.is_heavy,
                    users_of=USERS_OF,
                )  # fmt: skip
            finally:
                session.close()
                reading.close()

    def oldest(self, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str], after: int) -> dict[str, int]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        local = "SELECT app_id, epoch_us(ingested_at) FROM warehouse_stream"
        with self._session() as session:
            self.begin(session)
            query = (
                f"SELECT {self.selected(['app_id'])}, min(ingested_at) AS ingested_at FROM {self.table} "  # noqa: S608
                f"WHERE {self.among('app_id', app_ids)} AND ingested_at > {self.time(after)} "
                f"AND ingested_at <= {self.time(LAST)} GROUP BY app_id"
            )
            return dict(answered(session, connection, [query], _schema("app_id", "ingested_at"), local))

    def unread(
        self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]
    ) -> dict[str, tuple[int, int]]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        schema = pa.schema([ROWS.field("app_id"), pa.field("row_count", pa.int64()), ROWS.field("ingested_at")])
        local = "SELECT app_id, row_count, epoch_us(ingested_at) FROM warehouse_stream"
        with self._session() as session:
            self.begin(session)
            queries = [
                f"SELECT {self.selected(['app_id'])}, count(*) AS row_count, min(ingested_at) AS ingested_at "  # noqa: S608
                f"FROM {self.table} WHERE {self.among('app_id', apps)} "
                f"AND ingested_at > {self.time(FIRST if since is None else since)} "
                f"AND ingested_at <= {self.time(LAST)} GROUP BY app_id"
                for since, apps in by_position(positions).items()
            ]
            rows = answered(session, connection, queries, schema, local) if queries else []
        return {app_id: (count, oldest) for app_id, count, oldest in rows}

    def app_ids(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`; those of some rows, as no index has them by app."""
        with self._session() as session:
            self.begin(session)
            some = f"(SELECT {self.selected(['app_id'])} FROM {self.table} WHERE app_id IS NOT NULL LIMIT {_SOME_ROWS})"  # noqa: S608
            query = f"SELECT DISTINCT app_id FROM {some} AS first_rows"  # noqa: S608
            rows = answered(session, connection, [query], _schema("app_id"), "FROM warehouse_stream ORDER BY ALL")
        return [app_id for (app_id,) in rows]

    def find(self, connection: duckdb.DuckDBPyConnection, event_id: str, places: Places | None = None) -> Lookup:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        columns = tuple(column for column in COLUMNS if column != "payload")
        local = (
            "SELECT app_id, coalesce(event_type, ''), coalesce(user_id, ''), "
            "epoch_us(coalesce(created_date, ingested_at)), epoch_us(ingested_at) "
            "FROM warehouse_stream WHERE app_id IS NOT NULL ORDER BY ingested_at"
        )
        with self._session() as session:
            self.begin(session)
            query = (
                f"SELECT {self.selected(columns)} FROM {self.table} WHERE {self.among('id', [event_id])} "  # noqa: S608
                f"AND ingested_at BETWEEN {self.time(FIRST)} AND {self.time(LAST)}"
            )
            queries = [query]
            if places is not None and self.takes_long(session, query):
                queries = [f"{query} AND {condition}" for condition in self._conditions(places)]
            rows = answered(session, connection, queries, _schema(*columns), local)
        return Lookup([EventRow(*row) for row in rows], is_whole=queries == [query])

    def _conditions(self, places: Places) -> Iterator[str]:
        """Each place once, as the index that every run needs can look it up."""
        unread = together(places.unread)
        for since, app_ids in unread:
            yield f"{self.among('app_id', app_ids)} AND ingested_at >= {self.time(FIRST if since is None else since)}"
        for app_id, at in sorted(set(places.captured)):
            if not any(app_id in app_ids and (since is None or since <= at) for since, app_ids in unread):
                yield f"{self.among('app_id', [app_id])} AND ingested_at = {self.time(at)}"

    def query(self, sql: str, seconds: float) -> pa.Table:
        """See :class:`~nami_amp_pipeline.warehouse.base.Answering`."""
        with self._session() as session:
            self.begin_query(session, seconds)
            return session.table(sql)

    def begin_query(self, session: Session, seconds: float) -> None:  # noqa: B027 - most databases need nothing
        """Makes what follows a reading that ends after some time, where the database can."""

    def takes_long(self, session: Session, query: str) -> bool:
        """Whether a query would be slow for a person; False if the database cannot tell."""
        return False

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A connection whose driver errors become one line."""
        from adbc_driver_manager import Error  # here, for those who do not read from a warehouse need no driver

        session: Session | None = None
        try:
            with self.connect() as db:
                session = Session(db)
                yield session
        except Error as error:
            raise WarehouseUnavailable(self.explain(error)) from None
        except Exception:
            if session is not None and session.failure is not None:
                raise WarehouseUnavailable(self.explain(session.failure)) from None
            raise

    def among(self, column: str, values: Iterable[str]) -> str:
        """A condition that an index can answer: the column is one of these texts."""
        literals = self.literals(column, values)
        return f"{column} IN ({', '.join(literals)})" if literals else "false"

    def literals(self, column: str, values: Iterable[str]) -> list[str]:
        """Those of the texts that the column can hold, as it is compared with them."""
        return [self.text(value) for value in values]

    def column(self, name: str) -> str:
        """A column as it is selected where it is a text or a time."""
        return name

    def is_sampled(self, one_of: int) -> str | None:
        """A condition that about one row of so many meets, by a hash of its id; None where that would be dear."""
        return None

    def may_be_null(self, column: str) -> bool:
        """Whether a column may be null, as far as the database says."""
        return True

    def selected(self, columns: Iterable[str]) -> str:
        """The ``SELECT`` list for some of :data:`COLUMNS`.

        A ``created_date`` that no calendar has comes as the last moment of year 9999.
        """
        spelled = []
        for column in columns:
            if COLUMNS[column] == "json":
                spelled.append(f"{self.as_text(column)} AS {column}")
            elif column == "created_date":
                spelled.append(
                    f"CASE WHEN created_date BETWEEN {self.time(FIRST)} AND {self.time(LAST)} "
                    f"THEN {self.column(column)} WHEN created_date IS NOT NULL THEN {self.time(LAST)} END "
                    "AS created_date"
                )
            else:
                as_selected = self.column(column)
                spelled.append(as_selected if as_selected == column else f"{as_selected} AS {column}")
        return ", ".join(spelled)

    def unplaced(
        self, session: Session, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str] | None
    ) -> list[Unplaced]:
        """The rows without a position; skipped if the search would take long.

        Args:
            session: under way.
            connection: where the answers are read into.
            app_ids: whose rows; None for all, and those without an id too.
        """
        mine = self.among("app_id", app_ids) if app_ids is not None else "app_id IS NOT NULL"
        placed = f"ingested_at BETWEEN {self.time(FIRST)} AND {self.time(LAST)}"
        conditions = [
            ("bad_ingested_at", f"{mine} AND ingested_at > {self.time(LAST)}"),
            ("bad_ingested_at", f"{mine} AND ingested_at < {self.time(FIRST)}"),
        ]
        if self.may_be_null("ingested_at"):
            conditions.append(("no_ingested_at", f"{mine} AND ingested_at IS NULL"))
        if self.may_be_null("app_id"):
            conditions.append(("no_app_id", "app_id IS NULL"))
        if app_ids is None and self.may_be_null("id"):
            conditions.append(("no_id", f"{mine} AND {placed} AND id IS NULL"))
        found: dict[tuple[str, str], Unplaced] = {}
        for reason, condition in conditions:
            query = (
                f"SELECT min({self.column('app_id')}) AS app_id, min({self.column('id')}) AS id, count(*) AS row_count "  # noqa: S608
                f"FROM {self.table} WHERE {condition} GROUP BY app_id"
            )
            if self.takes_long(session, query):
                continue
            schema = _schema("app_id", "id").append(pa.field("row_count", pa.int64()))
            for app_id, event_id, rows in answered(session, connection, [query], schema, "FROM warehouse_stream"):
                old = found.get((app_id or "", reason))
                found[app_id or "", reason] = Unplaced(
                    app_id or "", reason, rows + (old.rows if old else 0), f"id {(event_id or 'null')[:60]}"
                )
        return list(found.values())


def _schema(*columns: str) -> pa.Schema:
    return pa.schema([ROWS.field(column) for column in columns])
