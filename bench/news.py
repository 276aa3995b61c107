"""New events for many apps at once: in a DuckDB file, or in PostgreSQL, loaded in bulk."""

from __future__ import annotations

from pathlib import Path

import duckdb

from bench.checks import CHECKSUM
from bench.data import MARKED, insert_copy, new_table, sample_warehouse, selected
from bench.postgres import ingest
from nami_amp_pipeline import contract

DUCKDB = "duckdb:///"


def app_names(many: int) -> list[str]:
    """The apps that :class:`News` has events for."""
    return [f"app-{number:04}" for number in range(many)]


class News:
    """Events of the sample, as if they had been loaded just now, each time with other ids and users.

    Args:
        apps: at most.
        events: for each of them.
    """

    def __init__(self, apps: int, events: int) -> None:
        self._events = events
        self._base = sample_warehouse(max(1_000, apps * events * 3 // 2))
        self._copies = 0

    def load(self, warehouse: str, apps: int) -> object:
        """Puts new events for each of the first so many apps into a warehouse; its table is made where it is missing.

        Args:
            warehouse: its address, of DuckDB or PostgreSQL.
            apps: how many.

        Returns:
            :data:`bench.checks.CHECKSUM` of their ids; None without any.
        """
        digits = f"{self._copies:04x}"
        self._copies += 1
        is_file = warehouse.startswith(DUCKDB)
        with duckdb.connect(warehouse.removeprefix(DUCKDB) if is_file else ":memory:") as connection:
            _fill(connection, self._base, digits, apps, self._events)
            checksum = selected(connection, f"(SELECT * FROM nami_events WHERE id[5:8] = '{digits}')", CHECKSUM)
            if not is_file:
                ingest(connection, warehouse)
        return checksum


def _fill(connection: duckdb.DuckDBPyConnection, base: Path, digits: str, apps: int, events: int) -> None:
    types = ", ".join(f"'{name}'" for name in contract.event_type_names())
    new_table(connection)
    connection.execute(f"ATTACH '{base}' AS base (READ_ONLY)")
    connection.execute(
        f"""
        CREATE TEMP TABLE news AS
        SELECT * REPLACE ({MARKED} AS payload, now() AS ingested_at) FROM (
            SELECT DISTINCT ON (id) * FROM base.nami_events
            WHERE event_type IN ({types}) ORDER BY id LIMIT {apps * events}
        )
        """
    )
    connection.execute("UPDATE news SET app_id = format('app-{:04d}', rowid // ?)", [events])
    connection.execute(insert_copy("news", digits))
    connection.execute("DETACH base")
