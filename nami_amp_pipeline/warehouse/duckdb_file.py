"""The embedded warehouse: a DuckDB file, opened read-only and briefly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline.warehouse.base import EventRow, Finding, Lookup, Places, Source, check_columns

LOCK_PATIENCE_SECONDS = 10.0


class DuckDBWarehouse:
    """A DuckDB file with the events table.

    DuckDB lets one process write a file and no other open it meanwhile, so the file is opened only while rows are
    copied out, and a lock is waited for.
    """

    def __init__(self, settings: Settings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.path = Path(settings.warehouse_url.removeprefix("duckdb:///"))
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
            ((head,),) = connection.execute(f"SELECT epoch_us(max(ingested_at)) FROM {table}").fetchall()  # noqa: S608
            relation = f"(SELECT *, rowid AS rid FROM {table})"  # noqa: S608
            yield Source(relation, head, lambda: relation)

    def oldest(self, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str], after: int) -> dict[str, int]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        rows = self._query(
            connection,
            "SELECT app_id, epoch_us(min(ingested_at)) FROM {table} "
            "WHERE ingested_at > make_timestamptz(?::BIGINT) AND list_contains(?, app_id) GROUP BY app_id",
            [after, list(app_ids)],
        )
        return dict(rows)

    def find(self, connection: duckdb.DuckDBPyConnection, event_id: str, places: Places | None = None) -> Lookup:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`; a column of a file is quickly read."""
        rows = self._query(
            connection,
            "SELECT app_id, event_type, user_id, epoch_us(created_date), epoch_us(ingested_at) "
            "FROM {table} WHERE id = ? ORDER BY ingested_at",
            [event_id],
        )
        return Lookup([EventRow(*row) for row in rows])

    def _query(self, connection: duckdb.DuckDBPyConnection, query: str, given: list[Any]) -> list[tuple[Any, ...]]:
        with self._table(connection) as table:
            try:
                return connection.execute(query.format(table=table), given).fetchall()
            except duckdb.IOException as error:
                raise WarehouseUnavailable(f"cannot read {self.name}: {str(error).splitlines()[0]}") from None

    def check(self) -> list[Finding]:
        """See :class:`~nami_amp_pipeline.warehouse.base.Warehouse`."""
        try:
            with duckdb.connect(":memory:") as connection, self._table(connection):
                return [Finding("columns", "ok", f"{self.name} has all columns")]
        except WarehouseUnavailable as error:
            return [Finding("columns", "error", str(error))]

    @contextmanager
    def _table(self, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
        """Attaches the file for the length of the block; gives the quoted name of the table."""
        if not self.path.exists():
            raise WarehouseUnavailable(
                f"there is no DuckDB file {self.path}: load events with 'nami-amp load', or set NAMI_AMP_WAREHOUSE_URL"
            )
        self._attach(connection)
        try:
            found = connection.execute(
                "SELECT column_name, data_type FROM duckdb_columns() "
                "WHERE database_name = 'warehouse' AND schema_name = ? AND table_name = ?",
                [self.schema, self.table],
            ).fetchall()
            if not found:
                raise WarehouseUnavailable(f"there is no table {self.schema}.{self.table} in {self.path}")
            check_columns(dict(found), self.table)
            yield f'warehouse."{self.schema}"."{self.table}"'
        finally:
            with suppress(duckdb.Error):  # it must not stand before what went wrong; the connection's end does the same
                connection.execute("DETACH warehouse")

    def _attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        waited, pause = 0.0, 0.05
        while True:
            try:
                connection.execute(f"ATTACH {literal(str(self.path))} AS warehouse (READ_ONLY)")
                return
            except duckdb.IOException as error:
                message = str(error)
                if "lock" not in message.lower():
                    raise WarehouseUnavailable(
                        f"cannot open {self.path} as a DuckDB file: {message.splitlines()[0][:200]}"
                    ) from None
                if waited >= LOCK_PATIENCE_SECONDS:
                    raise WarehouseUnavailable(
                        f"{self.path} is locked by another process; the next run tries again"
                    ) from None
                self._sleep(pause)
                waited += pause
                pause = min(pause * 2, 1.0)
            except duckdb.Error as error:
                raise WarehouseUnavailable(
                    f"cannot open {self.path} as a DuckDB file: {str(error).splitlines()[0][:200]}"
                ) from None
