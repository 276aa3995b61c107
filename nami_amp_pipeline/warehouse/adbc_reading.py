"""One reading over ADBC: the keys of all rows, a sample of their users, then the rows that are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from nami_amp_pipeline.warehouse.adbc_session import Session
from nami_amp_pipeline.warehouse.base import COLUMNS, Kind

if TYPE_CHECKING:
    from nami_amp_pipeline.warehouse.adbc import AdbcWarehouse

GAP_ROWS = 2_000
"""So many rows that are not wanted are read along rather than asked around."""

_MOST_SPANS = 50
_REPEATS_AT_A_TIME = 1_000

USERS_OF = 32
"""Of so many rows the user is read with the keys of one: 3,000 of a segment, and some 20 MB of ten million rows."""

_USER_CHARACTERS = 100
"""As much of a user id is enough for a place in their order, however long it is."""

FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 and 9999: PostgreSQL knows infinity too
_ARROW: Mapping[Kind, pa.DataType] = {"text": pa.string(), "time": pa.timestamp("us", tz="UTC"), "json": pa.string()}
ROWS = pa.schema([(column, _ARROW[kind]) for column, kind in COLUMNS.items()])
_KEYS = pa.schema([("part", pa.int32()), *((name, ROWS.field(name).type) for name in ("app_id", "id", "ingested_at"))])
_NUMBER = pa.field("rid", pa.int64())
_USERS = pa.schema([_NUMBER, ROWS.field("app_id"), ROWS.field("user_id")])


class Reading:
    """One reading: what it leaves in DuckDB while it lasts, and its queries.

    Attributes:
        users: where the users of about one row of :data:`USERS_OF` are; None where the warehouse has no sample of them.
    """

    def __init__(self, warehouse: AdbcWarehouse, session: Session, duck: duckdb.DuckDBPyConnection) -> None:
        self._warehouse = warehouse
        self._session = session
        self._duck = duck
        self.users: str | None = None

    def read_keys(self, parts: Sequence[tuple[int | None, Sequence[str]]]) -> int | None:
        """Fills the tables ``warehouse_keys`` and :attr:`users`; returns the newest ``ingested_at``."""
        to, table = self._warehouse, self._warehouse.table
        sampled, schema, user = to.is_sampled(USERS_OF), _KEYS, ""
        if sampled is not None:
            person = f"substr(coalesce({to.column('user_id')}, ''), 1, {_USER_CHARACTERS})"
            schema, user = _KEYS.append(ROWS.field("user_id")), f", CASE WHEN {sampled} THEN {person} END AS user_id"
        queries = []
        for number, (position, app_ids) in enumerate(parts):
            since = FIRST if position is None else position
            queries.append(
                f"SELECT {number} AS part, {to.selected(('app_id', 'id', 'ingested_at'))}{user} FROM {table} "  # noqa: S608
                f"WHERE {to.among('app_id', app_ids)} "
                f"AND ingested_at >= {to.time(since)} AND ingested_at <= {to.time(LAST)}"
            )
        people: list[pa.RecordBatch] = []
        numbered = _numbered(self._session.stream(queries, schema), people)
        self._duck.register("warehouse_stream", pa.RecordBatchReader.from_batches(_KEYS.append(_NUMBER), numbered))
        self._duck.execute("CREATE TEMP TABLE warehouse_keys AS FROM warehouse_stream")
        if sampled is not None:
            self.users = "warehouse_users"
            self._duck.register(self.users, pa.Table.from_batches(people, _USERS))
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
        self._read(self._queries(self._spans()), ROWS, until_heavy=True)
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
        self._read(self._queries(spans), ROWS)
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
        self._read(self._queries(spans), ROWS, until_heavy=True)
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
            if self.users is not None:
                self._duck.unregister(self.users)


def _numbered(batches: Iterable[pa.RecordBatch], people: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Keys with the numbers of their rows.

    Args:
        batches: with the user of some rows, or without that column.
        people: gets the numbers and the users of these rows.
    """
    first = 1
    for batch in batches:
        numbers = pa.array(np.arange(first, first + batch.num_rows))
        first += batch.num_rows
        if "user_id" in batch.schema.names:
            users = pa.RecordBatch.from_arrays([numbers, batch["app_id"], batch["user_id"]], schema=_USERS)
            people.append(users.filter(users["user_id"].is_valid()))
        yield pa.RecordBatch.from_arrays([*(batch[name] for name in _KEYS.names), numbers], [*_KEYS.names, "rid"])
