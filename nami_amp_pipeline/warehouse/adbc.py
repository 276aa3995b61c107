"""Reading an events table over ADBC: Arrow from the driver on, as a stream, and payloads only of rows that are wanted.

A reading has two halves, in one transaction where the database has such. First the *keys* (app, id, ``ingested_at``) of
all rows from each app's position on; DuckDB finds out which of them are wanted. Then whole rows, from those spans of
``ingested_at`` where wanted rows lie. The SQL is plain: no cursor, no number of a row, no temporary table over there,
so that a view will do, and other databases too (docs/warehouses.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.warehouse.adbc_session import Session, answered
from nami_amp_pipeline.warehouse.base import (
    COLUMNS,
    EventRow,
    Finding,
    Kind,
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

GAP_ROWS = 2_000
"""So many rows that are not wanted are read along rather than asked around."""

_MOST_SPANS = 50
_REPEATS_AT_A_TIME = 1_000

_SOME_ROWS = 100_000
"""The rows that are asked which apps there are."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 and 9999: PostgreSQL knows infinity too
_ARROW: Mapping[Kind, pa.DataType] = {"text": pa.string(), "time": pa.timestamp("us", tz="UTC"), "json": pa.string()}
_ROWS = pa.schema([(column, _ARROW[kind]) for column, kind in COLUMNS.items()])
_KEYS = pa.schema([("part", pa.int32()), *((name, _ROWS.field(name).type) for name in ("app_id", "id", "ingested_at"))])


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
        moment = _EPOCH + timedelta(microseconds=min(max(micros, _FIRST), _LAST))
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
            reading = _Reading(self, session, connection)
            try:
                unplaced = self.unplaced(session, connection, list(positions))
                head = reading.read_keys(together(positions))
                yield Source(
                    "warehouse_keys", head, reading.rows, reading.few, warnings=warnings, unplaced=unplaced,
                    broke=lambda: session.failure is not None, is_heavy=lambda: session.is_heavy,
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
                f"AND ingested_at <= {self.time(_LAST)} GROUP BY app_id"
            )
            return dict(answered(session, connection, [query], _schema("app_id", "ingested_at"), local))

    def unread(
        self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]
    ) -> dict[str, tuple[int, int]]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        schema = pa.schema([_ROWS.field("app_id"), pa.field("row_count", pa.int64()), _ROWS.field("ingested_at")])
        local = "SELECT app_id, row_count, epoch_us(ingested_at) FROM warehouse_stream"
        with self._session() as session:
            self.begin(session)
            queries = [
                f"SELECT {self.selected(['app_id'])}, count(*) AS row_count, min(ingested_at) AS ingested_at "  # noqa: S608
                f"FROM {self.table} WHERE {self.among('app_id', apps)} "
                f"AND ingested_at > {self.time(_FIRST if since is None else since)} "
                f"AND ingested_at <= {self.time(_LAST)} GROUP BY app_id"
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
                f"AND ingested_at BETWEEN {self.time(_FIRST)} AND {self.time(_LAST)}"
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
            yield f"{self.among('app_id', app_ids)} AND ingested_at >= {self.time(_FIRST if since is None else since)}"
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
                    f"CASE WHEN created_date BETWEEN {self.time(_FIRST)} AND {self.time(_LAST)} "
                    f"THEN {self.column(column)} WHEN created_date IS NOT NULL THEN {self.time(_LAST)} END "
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
        placed = f"ingested_at BETWEEN {self.time(_FIRST)} AND {self.time(_LAST)}"
        conditions = [
            ("bad_ingested_at", f"{mine} AND ingested_at > {self.time(_LAST)}"),
            ("bad_ingested_at", f"{mine} AND ingested_at < {self.time(_FIRST)}"),
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


class _Reading:
    """One reading: what it leaves in DuckDB while it lasts, and its queries."""

    def __init__(self, warehouse: AdbcWarehouse, session: Session, duck: duckdb.DuckDBPyConnection) -> None:
        self._warehouse = warehouse
        self._session = session
        self._duck = duck

    def read_keys(self, parts: Sequence[tuple[int | None, Sequence[str]]]) -> int | None:
        """Fills the table ``warehouse_keys``; returns the newest ``ingested_at`` in it."""
        to, table = self._warehouse, self._warehouse.table
        queries = []
        for number, (position, app_ids) in enumerate(parts):
            since = _FIRST if position is None else position
            queries.append(
                f"SELECT {number} AS part, {to.selected(('app_id', 'id', 'ingested_at'))} FROM {table} "  # noqa: S608
                f"WHERE {to.among('app_id', app_ids)} "
                f"AND ingested_at >= {to.time(since)} AND ingested_at <= {to.time(_LAST)}"
            )
        self._read(queries, _KEYS)
        self._duck.execute(
            "CREATE TEMP TABLE warehouse_keys AS SELECT *, row_number() OVER () AS rid FROM warehouse_stream"
        )
        ((head,),) = self._duck.execute("SELECT epoch_us(max(ingested_at)) FROM warehouse_keys").fetchall()
        return None if head is None else int(head)

    def rows(self) -> str:
        """A relation with the rows of the table ``fresh``, as :class:`Source` has it."""
        columns = ", ".join(COLUMNS)
        # Keep the stream on the probe side: DuckDB cannot estimate it and would build a hash table of payloads.
        self._duck.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        self._duck.execute(
            "CREATE OR REPLACE TEMP TABLE warehouse_wanted AS FROM warehouse_keys WHERE rid IN (SELECT rid FROM fresh)"
        )
        again = self._read_repeated(columns)
        self._read(self._queries(self._spans()), _ROWS, until_heavy=True)
        relation = f"SELECT {columns}, rid FROM warehouse_stream JOIN warehouse_wanted USING (app_id, id, ingested_at)"  # noqa: S608
        if again:
            relation += f" UNION ALL SELECT {columns}, rid FROM warehouse_repeated"  # noqa: S608
        return f"({relation})"

    def few(self, numbers: Sequence[int]) -> str:
        """The same with the rows of some numbers, each perhaps several times."""
        self._session.close()  # nobody reads on in what was under way
        self._duck.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        self._duck.execute(
            "CREATE OR REPLACE TEMP TABLE warehouse_few AS FROM warehouse_keys "
            f"WHERE rid IN (SELECT unnest({list(numbers)}))"
        )
        spans = self._duck.execute(
            "SELECT part, epoch_us(min(ingested_at)), epoch_us(max(ingested_at)), list(DISTINCT app_id), list(id) "
            "FROM warehouse_few GROUP BY part"
        ).fetchall()
        self._read(self._queries(spans), _ROWS)
        return (
            f"(SELECT {', '.join(COLUMNS)}, rid FROM warehouse_stream "  # noqa: S608
            "JOIN warehouse_few USING (app_id, id, ingested_at))"
        )

    def _read_repeated(self, columns: str) -> bool:
        """Reads the rows of which there are several with the same app, id and time, and keeps one of each."""
        key = "hash(app_id, id, ingested_at)"
        self._duck.execute(
            "CREATE OR REPLACE TEMP TABLE warehouse_repeats AS FROM warehouse_wanted "  # noqa: S608
            f"WHERE {key} IN (SELECT {key} FROM warehouse_keys GROUP BY 1 HAVING count(*) > 1)"
        )
        spans = self._duck.execute(
            "SELECT part, epoch_us(min(ingested_at)), epoch_us(max(ingested_at)), list(DISTINCT app_id), list(id) "  # noqa: S608
            f"FROM (SELECT *, row_number() OVER (ORDER BY part, ingested_at) // {_REPEATS_AT_A_TIME} AS turn "
            "FROM warehouse_repeats) GROUP BY part, turn"
        ).fetchall()
        if not spans:
            return False
        self._read(self._queries(spans), _ROWS, until_heavy=True)
        self._duck.execute(
            f"CREATE OR REPLACE TEMP TABLE warehouse_repeated AS SELECT {columns}, rid "  # noqa: S608
            "FROM warehouse_stream JOIN warehouse_repeats USING (app_id, id, ingested_at) "
            "QUALIFY row_number() OVER (PARTITION BY rid) = 1"
        )
        self._duck.execute("DELETE FROM warehouse_wanted WHERE rid IN (SELECT rid FROM warehouse_repeats)")
        return True

    def _spans(self) -> list[tuple[Any, ...]]:
        ((keys, wanted),) = self._duck.execute(
            "SELECT (SELECT count(*) FROM warehouse_keys), (SELECT count(*) FROM warehouse_wanted)"
        ).fetchall()
        if not wanted:  # a quiet tick: all that is in the window is known
            return []
        if keys - wanted <= GAP_ROWS:  # as always when a backlog is read
            return self._duck.execute(
                "SELECT part, epoch_us(min(ingested_at)), epoch_us(max(ingested_at)), list(DISTINCT app_id) "
                "FROM warehouse_wanted GROUP BY part ORDER BY part"
            ).fetchall()
        moments = self._duck.sql(
            "SELECT part, epoch_us(ingested_at) AS moment, bool_or(w) AS wanted, count(*) FILTER (NOT w) AS others "
            "FROM (SELECT *, rid IN (SELECT rid FROM warehouse_wanted) AS w FROM warehouse_keys) "
            "GROUP BY ALL ORDER BY part, moment"
        ).to_arrow_table()
        apps = dict(
            self._duck.execute("SELECT part, list(DISTINCT app_id) FROM warehouse_wanted GROUP BY part").fetchall()
        )
        gap = max(GAP_ROWS, (keys - wanted) // _MOST_SPANS)
        # Not in SQL: the time of DuckDB's windows grows with the square of the rows.
        part, at, is_wanted, others = (moments[name].to_numpy() for name in ("part", "moment", "wanted", "others"))
        passed = np.cumsum(others)[is_wanted]
        part, at = part[is_wanted], at[is_wanted]
        starts = np.flatnonzero(np.concatenate([[True], (np.diff(part) != 0) | (np.diff(passed) >= gap)]))
        ends = np.concatenate([starts[1:], [len(at)]]) - 1
        spans = [(int(at[a]), int(at[b]), int(part[a])) for a, b in zip(starts, ends, strict=True)]
        return [(number, first, last, apps[number]) for first, last, number in sorted(spans)]

    def _queries(self, spans: Iterable[tuple[Any, ...]]) -> list[str]:
        to, queries = self._warehouse, []
        for _part, first, last, app_ids, *ids in spans:
            queries.append(
                f"SELECT {to.selected(COLUMNS)} FROM {to.table} WHERE {to.among('app_id', sorted(app_ids))} "  # noqa: S608
                f"AND {to.within(first, last)}"
                # An id that had to be mended is not found by what it was mended to.
                + "".join(f" AND {to.among('id', some)}" for some in ids if not self._session.any_bytes)
            )
        return queries

    def _read(self, queries: Sequence[str], schema: pa.Schema, *, until_heavy: bool = False) -> None:
        self._duck.register("warehouse_stream", self._session.stream(queries, schema, until_heavy=until_heavy))

    def close(self) -> None:
        """Leaves DuckDB as it was."""
        with suppress(duckdb.Error):  # must not hide the original error; closing the connection does the same
            self._duck.execute("RESET disabled_optimizers")
            self._duck.unregister("warehouse_stream")


def _schema(*columns: str) -> pa.Schema:
    return pa.schema([_ROWS.field(column) for column in columns])
