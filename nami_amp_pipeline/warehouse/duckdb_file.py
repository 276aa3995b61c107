"""The embedded warehouse: a DuckDB file, opened read-only and briefly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from nami_amp_pipeline import contract
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.warehouse.base import (
    COLUMNS,
    EventRow,
    Finding,
    Lookup,
    Places,
    Source,
    Unplaced,
    by_position,
    check_columns,
    one_line,
)
from nami_amp_pipeline.warehouse.duckdb_attach import attach, quoted

if TYPE_CHECKING:
    import pyarrow as pa

    from nami_amp_pipeline.settings import Settings

_FIRST, _LAST = (f"'{moment}'::TIMESTAMPTZ" for moment in (contract.FIRST_MOMENT, contract.LAST_MOMENT))
_PLACED = f"ingested_at BETWEEN {_FIRST} AND {_LAST}"

_UNPLACED = f"""
SELECT coalesce(app_id, ''), reason, count(*), min(concat('id ', coalesce(id[:60], 'null'),
    CASE WHEN reason = 'no_app_id' THEN concat(', ingested_at ', ingested_at::VARCHAR) END))
FROM (
    SELECT app_id, id, ingested_at, CASE
        WHEN app_id IS NULL THEN 'no_app_id'
        WHEN ingested_at IS NULL THEN 'no_ingested_at'
        WHEN {_PLACED} THEN 'no_id'
        ELSE 'bad_ingested_at'
    END AS reason
    FROM {{table}}
    WHERE (app_id IS NULL OR ingested_at IS NULL OR NOT {_PLACED} {{also}}) {{only}}
)
GROUP BY ALL
"""  # noqa: S608

_GAP = 4
"""Rows that are not wanted are read along if they are fewer than so many."""

_NAMED = 20
"""The most findings about rows that cannot be captured."""

_APPS = 10_000
"""App ids that are told, at most."""

# What a row or a file of the warehouse can be to blame for; everything else is this program's.
FAULTS = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.HTTPException,
    duckdb.IOException,
    duckdb.ParserException,
    duckdb.PermissionException,
)


@dataclass(frozen=True)
class EventsTable:
    """The events table while the file is attached.

    Attributes:
        relation: what to put behind ``FROM``: :data:`COLUMNS`, ids as text, and nothing else.
        rows: the same with ``rid``, the number of the row; None where the rows of it have none, as a view's.
        few: gives some of the rows, by their numbers, and reads hardly any other; by default those of ``rows``.
    """

    relation: str
    rows: str | None
    few: Callable[[Sequence[int]], str] | None = None


class DuckDBWarehouse:
    """A table or view of a DuckDB file.

    DuckDB lets one process write a file and no other open it meanwhile, so the file is opened only while rows are
    copied out, and a lock is waited for.
    """

    def __init__(self, settings: Settings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.url = settings.warehouse_url
        self.path = Path(self.url.removeprefix("duckdb:///"))
        self.schema = settings.warehouse_schema or "main"
        self.table = settings.warehouse_table
        self._sleep = sleep

    @property
    def name(self) -> str:
        """The table as people call it."""
        return f"{self.schema}.{self.table} in {self.path}"

    @contextmanager
    def open(self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]) -> Iterator[Source]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`; what is not wanted is left out by DuckDB itself."""
        with self._table(connection) as table:
            only = f"AND (app_id IS NULL OR app_id IN ({', '.join(map(_text, positions))}))"
            unplaced = self.asked(connection, _UNPLACED.format(table=table.relation, only=only, also=""))
            if table.rows is not None:
                placed = f"(FROM {table.rows} WHERE {_PLACED})"
                ((head,),) = self.asked(connection, f"SELECT epoch_us(max(ingested_at)) FROM {placed}")  # noqa: S608
                rows = placed
                yield Source(
                    placed, head, lambda: rows, table.few or partial(_by_number, placed), placed, "rid",
                    unplaced=[Unplaced(*row) for row in unplaced],
                )  # fmt: skip
            else:
                yield self._of_view(connection, table.relation, positions, [Unplaced(*row) for row in unplaced])

    def _of_view(
        self,
        connection: duckdb.DuckDBPyConnection,
        relation: str,
        positions: Mapping[str, int | None],
        unplaced: Sequence[Unplaced],
    ) -> Source:
        """A view has no numbers of rows: keys are copied and numbered, and whole rows are found by them."""
        since = [at for at in positions.values() if at is not None]
        self.asked(
            connection,
            "CREATE TEMP TABLE warehouse_keys AS SELECT app_id, id, ingested_at, row_number() OVER () AS rid "  # noqa: S608
            f"FROM {relation} WHERE {_PLACED} AND app_id IN ({', '.join(map(_text, positions))})"
            + (f" AND ingested_at >= make_timestamptz({min(since)}::BIGINT)" if len(since) == len(positions) else ""),
        )
        ((head,),) = connection.execute("SELECT epoch_us(max(ingested_at)) FROM warehouse_keys").fetchall()

        def rows(wanted: str = "fresh", also: str = "") -> str:
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE warehouse_wanted AS FROM warehouse_keys SEMI JOIN {wanted} USING (rid)"
            )
            ((repeats,),) = connection.execute(
                "SELECT count(*) FROM (SELECT count(*) AS times FROM warehouse_keys "
                "SEMI JOIN warehouse_wanted USING (app_id, id, ingested_at) GROUP BY app_id, id, ingested_at) "
                "WHERE times > 1"
            ).fetchall()
            columns = ", ".join(f"r.{column}" for column in COLUMNS)
            once = " QUALIFY row_number() OVER (PARTITION BY rid) = 1" if repeats else ""
            return (
                f"(SELECT {columns}, w.rid FROM {relation} r JOIN warehouse_wanted w "  # noqa: S608
                f"USING (app_id, id, ingested_at) WHERE r.{_PLACED}{also}{once})"
            )

        def few(numbers: Sequence[int]) -> str:
            ((first, last),) = connection.execute(
                "SELECT epoch_us(min(ingested_at)), epoch_us(max(ingested_at)) FROM warehouse_keys "
                "WHERE rid IN (SELECT unnest(?))",
                [list(numbers)],
            ).fetchall()
            # As literals, since DuckDB then looks at these columns before it reads the others.
            moments = (f"make_timestamptz({moment}::BIGINT)" for moment in (first, last))
            return rows(
                f"(SELECT unnest({list(numbers)}) AS rid)", f" AND r.ingested_at BETWEEN {' AND '.join(moments)}"
            )

        return Source("warehouse_keys", head, rows, few, unplaced=unplaced)

    def oldest(self, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str], after: int) -> dict[str, int]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        with self._table(connection) as table:
            rows = self.asked(
                connection,
                f"SELECT app_id, epoch_us(min(ingested_at)) FROM {table.relation} "  # noqa: S608
                f"WHERE ingested_at > make_timestamptz(?::BIGINT) AND {_PLACED} AND list_contains(?, app_id) "
                "GROUP BY app_id",
                [after, list(app_ids)],
            )
        return dict(rows)

    def unread(
        self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]
    ) -> dict[str, tuple[int, int]]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        conditions = [
            f"(app_id IN ({', '.join(map(_text, apps))})"
            + (")" if since is None else f" AND ingested_at > make_timestamptz({since}::BIGINT))")
            for since, apps in by_position(positions).items()
        ]
        if not conditions:
            return {}
        with self._table(connection) as table:
            rows = self.asked(
                connection,
                f"SELECT app_id, count(*), epoch_us(min(ingested_at)) FROM {table.relation} "  # noqa: S608
                f"WHERE {_PLACED} AND ({' OR '.join(conditions)}) GROUP BY app_id",
            )
        return {app_id: (count, oldest) for app_id, count, oldest in rows}

    def app_ids(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        with self._table(connection) as table:
            query = f"SELECT DISTINCT app_id FROM {table.relation} WHERE app_id IS NOT NULL ORDER BY ALL LIMIT {_APPS}"  # noqa: S608
            return [app_id for (app_id,) in self.asked(connection, query)]

    def find(self, connection: duckdb.DuckDBPyConnection, event_id: str, places: Places | None = None) -> Lookup:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`; a column of a file is quickly read."""
        created = f"CASE WHEN created_date BETWEEN {_FIRST} AND {_LAST} THEN created_date ELSE ingested_at END"
        with self._table(connection) as table:
            rows = self.asked(
                connection,
                f"SELECT app_id, coalesce(event_type, ''), coalesce(user_id, ''), epoch_us({created}), "  # noqa: S608
                f"epoch_us(ingested_at) FROM {table.relation} WHERE id = ? AND {_PLACED} AND app_id IS NOT NULL "
                "ORDER BY ingested_at",
                [event_id],
            )
        return Lookup([EventRow(*row) for row in rows])

    def query(self, sql: str, seconds: float) -> pa.Table:
        """See :class:`~nami_amp_pipeline.warehouse.base.Answering`.

        The file's schema is the one that names are looked up in; a folder of files is where paths begin, and has the
        events as a table.
        """
        config: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": False}
        with duckdb.connect(":memory:", config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            if self.path.is_dir():
                connection.execute(f"SET file_search_path = {_text(str(self.path))}")
            with self._table(connection) as table:
                if connection.execute("FROM duckdb_databases() WHERE database_name = 'warehouse'").fetchall():
                    connection.execute(f"USE warehouse.{quoted(self.schema)}")
                else:
                    connection.execute(f"CREATE VIEW {quoted(self.table)} AS FROM {table.relation}")
                timer = threading.Timer(seconds, connection.interrupt)
                timer.start()
                try:
                    return connection.sql(sql).to_arrow_table()
                except duckdb.Error as error:
                    raise WarehouseUnavailable(f"cannot answer from {self.name}: {one_line(error)}") from None
                finally:
                    timer.cancel()
                    connection.execute("USE memory")

    def check(self) -> list[Finding]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        try:
            with duckdb.connect(":memory:") as connection, self._table(connection) as table:
                connection.execute("SET TimeZone = 'UTC'")
                query = _UNPLACED.format(table=table.relation, only="", also="OR id IS NULL OR id = ''")
                rows = self.asked(connection, f"{query} ORDER BY ALL LIMIT {_NAMED}")
                return [
                    Finding("columns", "ok", f"{self.name} has all columns"),
                    *(Unplaced(*row).finding for row in rows),
                ]
        except WarehouseUnavailable as error:
            return [Finding("columns", "error", str(error))]

    def asked(
        self, connection: duckdb.DuckDBPyConnection, query: str, given: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """The answer of a query whose errors are those of the table, as a view's over a file that is gone."""
        try:
            return connection.execute(query, list(given)).fetchall()
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise WarehouseUnavailable(f"cannot read {self.name}: {one_line(error)}") from None

    @contextmanager
    def _table(self, connection: duckdb.DuckDBPyConnection) -> Iterator[EventsTable]:
        try:
            with self.table_of(connection) as table:
                yield table
        except FAULTS as error:
            raise WarehouseUnavailable(f"cannot read {self.name}: {one_line(error)}") from None

    @contextmanager
    def table_of(self, connection: duckdb.DuckDBPyConnection) -> Iterator[EventsTable]:
        """Attaches the file for the length of the block. A subclass that reads something else overrides this."""
        if not self.path.exists():
            raise WarehouseUnavailable(
                f"there is no DuckDB file {self.path}: load events with 'nami-amp load', or set NAMI_AMP_WAREHOUSE_URL"
            )
        attach(connection, self.path, self._sleep, read_only=True, locked="; the next run tries again")
        try:
            columns = self.asked(
                connection,
                "SELECT column_name, data_type FROM duckdb_columns() "
                "WHERE database_name = 'warehouse' AND schema_name = ? AND table_name = ?",
                [self.schema, self.table],
            )
            if not columns:
                raise WarehouseUnavailable(f"there is no table {self.schema}.{self.table} in {self.path}")
            types = dict(columns)
            check_columns(types, self.table)
            is_view = bool(
                self.asked(
                    connection,
                    "SELECT 1 FROM duckdb_views() WHERE database_name = 'warehouse' AND schema_name = ? "
                    "AND view_name = ?",
                    [self.schema, self.table],
                )
            )
            name = f"warehouse.{quoted(self.schema)}.{quoted(self.table)}"
            selected = as_texts(types)
            rows = None if is_view else f"(SELECT {selected}, rowid AS rid FROM {name})"  # noqa: S608
            yield EventsTable(f"(SELECT {selected} FROM {name})", rows)  # noqa: S608
        finally:
            with suppress(duckdb.Error):  # must not hide the original error; closing the connection does the same
                connection.execute("DETACH warehouse")


def as_texts(types: Mapping[str, str]) -> str:
    """The columns of the contract for a ``SELECT``, whatever their types are.

    Args:
        types: DuckDB's name of the type by column.
    """
    return ", ".join(
        column if types[column] == "VARCHAR" or kind == "time" else f"{column}::VARCHAR AS {column}"
        for column, kind in COLUMNS.items()
    )


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of numbers that are near to each other."""
    at = np.array(numbers, np.int64)
    starts = np.flatnonzero(np.diff(at, prepend=at[:1] - 2 * _GAP) > _GAP)
    ends = np.append(starts[1:], len(at)) - 1
    return [(int(at[a]), int(at[b])) for a, b in zip(starts, ends, strict=True)]


def _by_number(relation: str, numbers: Sequence[int]) -> str:
    """The rows of a table with some numbers; with literals, as DuckDB then reads nothing of the others.

    (But of a column that is compressed by ZSTD it reads whole vectors, 2,048 rows, whatever is wanted of them. And a
    list of numbers is no better than no condition.)
    """
    parts = (f"FROM {relation} WHERE rid BETWEEN {first} AND {last}" for first, last in runs_of(numbers))
    return f"({' UNION ALL '.join(parts)})"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
