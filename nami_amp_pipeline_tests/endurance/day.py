"""A day of ticks with retention, on a clock that is moved: what grows, grows until retention is reached, and no more.

The stages, the state store, the files and Dagster's history are the real ones. Dagster notes the machine's time; the
runs are set back to the simulated time after each tick.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import sqlalchemy as sa

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.retention_job import retention
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.endurance.amplitude import OwnProcess
from nami_amp_pipeline_tests.endurance.outage import APPS, TICK_SECONDS, Loader, folder_size
from nami_amp_pipeline_tests.endurance.report import Report
from nami_amp_pipeline_tests.endurance.scene import Scene, event_ids, key_of
from nami_amp_pipeline_tests.support.postgres import Postgres

_BROKEN = 2
"""Rows of each tick whose payload is no JSON: dead letters."""

_KINDS = ("segments", "ledger", "snapshots", "outboxes", "receipts")
_ROWS = (
    tables.segments,
    tables.segment_apps,
    tables.captured_ids,
    tables.outboxes,
    tables.lanes,
    tables.requests,
    tables.exceptions,
    tables.observations,
    tables.leases,
    tables.user_property_snapshots,
    tables.sent_states,
)
_RUNS = "Dagster's runs"
_AIR = {"bytes": 300_000, "count": 2}
"""What may come on top of a tenth: a database grows by pages, and how full the last files are is chance."""


@dataclass
class Plan:
    """How long, how much, and where.

    Attributes:
        ticks: of five minutes each.
        events: rows of the whole time.
        every: ticks between two retention runs.
        kept: ticks that everything is kept for.
        unused: ticks that files stay on the disk when they do not count any more.
        retain: whether retention runs at all.
        postgres: a server for the store and for Dagster's history; None is SQLite.
    """

    ticks: int = 288
    events: int = 288_000
    every: int = 12
    kept: int = 72
    unused: int = 12
    retain: bool = True
    postgres: Postgres | None = None

    @property
    def reached(self) -> int:
        """The tick from which on nothing may grow."""
        return self.kept + self.kept // 10 + self.unused + 2 * self.every


class Again(Loader):
    """Loads the same events of the same users over and over, under new ids: what grows with users shall not grow."""

    def __init__(self, folder: Path, events: int, ticks: int) -> None:
        super().__init__(folder, events, ticks)
        self._ticks = ticks

    def load(self, tick: int, now: float) -> int:
        """Loads what arrived in the time before ``now``; returns how many rows."""
        rows = super().load(tick % self._ticks, now)
        with duckdb.connect(str(self.warehouse)) as connection:
            connection.execute(
                "UPDATE nami_events SET id = concat(id, '-', $tick) WHERE ingested_at >= make_timestamptz($begin)",
                {"tick": tick, "begin": int((now - TICK_SECONDS) * 1e6)},
            )
        return rows


@dataclass
class Sizes:
    """What there is after a tick.

    Attributes:
        tick: counted from 1.
        bytes: by what takes them.
        counts: files and rows, by what they are.
    """

    tick: int
    bytes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


def run(report: Report, folder: Path, plan: Plan) -> None:
    """The whole time; says how large everything is, and whether it stopped growing."""
    folder.mkdir(parents=True, exist_ok=True)
    repeated = 2 * plan.every
    loader = Again(folder, plan.events * repeated // plan.ticks, repeated)
    days = TICK_SECONDS / 86_400
    environ: dict[str, object] = {
        # Half a tick more: how long a tick takes must not decide whether the oldest that is kept is kept.
        f"{name}_RETENTION_DAYS": (plan.kept + 0.5) * days
        for name in ("LEDGER", "RECEIPT", "DEAD_LETTER", "DAGSTER")
    }
    environ["UNUSED_FILE_RETENTION_DAYS"] = (plan.unused + 0.5) * days
    if plan.postgres is not None:
        environ["STATE_URL"] = plan.postgres.fresh_database()
    kind = "SQLite" if plan.postgres is None else "PostgreSQL"
    report.line(
        f"day ({kind}): {plan.ticks} ticks of {TICK_SECONDS} s, {plan.events:,} rows, everything kept for "
        f"{plan.kept * TICK_SECONDS / 3600:g} hours, retention {'every' if plan.retain else 'never, not even every'} "
        f"{plan.every * TICK_SECONDS / 60:g} min"
    )
    with OwnProcess(folder / "journal.ndjson") as amplitude:
        scene = Scene(folder / "home", loader.warehouse, report, environ)
        for app_id in APPS:
            scene.add(app_id, amplitude.endpoint)
        with _history(scene, plan) as instance:
            sizes = _through(report, scene, loader, instance, plan)
        _flat(report, sizes, plan)
        _check(report, scene, loader.warehouse, amplitude, plan)
        scene.close()


@contextmanager
def _history(scene: Scene, plan: Plan) -> Iterator[dg.DagsterInstance]:
    """Dagster's history under the home of the scene, or in PostgreSQL."""
    if plan.postgres is None:
        with dagster_instance(scene.settings) as instance:
            yield instance
        return
    home = scene.settings.home / "dagster"
    home.mkdir()
    address = plan.postgres.fresh_database()
    (home / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: '{address}'}}}}\ntelemetry: {{enabled: false}}\n"
        "compute_logs: {module: dagster._core.storage.noop_compute_log_manager, class: NoOpComputeLogManager}\n"
    )
    with dagster_instance(scene.settings) as instance:
        yield instance


def _through(report: Report, scene: Scene, loader: Loader, instance: dg.DagsterInstance, plan: Plan) -> list[Sizes]:
    start, sizes = scene.clock() + TICK_SECONDS, []
    for tick in range(plan.ticks):
        now = start + tick * TICK_SECONDS
        loader.load(tick, now)
        _load_broken(loader.warehouse, tick, now)
        scene.clock.reach(now)
        _run(report, scene, instance, micro_batch, {"integrations": [], "console_log_level": "CRITICAL"})
        if plan.retain and (tick + 1) % plan.every == 0:
            quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
            _run(report, scene, instance, retention, quiet)
        if (tick + 1) % plan.every == 0:
            sizes.append(_measure(scene, instance, tick + 1, plan))
            report.line(_line(sizes[-1]))
    return sizes


def _load_broken(warehouse: Path, tick: int, now: float) -> None:
    with duckdb.connect(str(warehouse)) as connection:
        for app_id in APPS:
            connection.execute(
                "INSERT INTO nami_events BY NAME SELECT concat('broken-', $tick, '-', n) AS id, $app AS app_id, "
                "'user.subscription.renewed' AS event_type, 'somebody' AS user_id, "
                "make_timestamptz($at) AS created_date, make_timestamptz($at) AS ingested_at, '{' AS payload "
                "FROM range($rows) AS r(n)",
                {"tick": tick, "app": app_id, "at": int((now - 1) * 1e6), "rows": _BROKEN},
            )


def _run(
    report: Report, scene: Scene, instance: dg.DagsterInstance, job: dg.JobDefinition, config: dict[str, Any]
) -> None:
    run_id = str(uuid.uuid4())
    pipeline = PipelineSession(scene.settings, run_id, scene.clock)
    try:
        result = job.execute_in_process(
            instance=instance,
            resources={"pipeline": pipeline},
            run_id=run_id,
            run_config=config,
            raise_on_error=False,
        )
    finally:
        pipeline.close()
    report.check(result.success, f"a run of {job.name} failed")
    storage: Any = instance.run_storage
    at = datetime.fromtimestamp(scene.clock(), UTC).replace(tzinfo=None)
    with storage.connect() as connection:
        runs = sa.table("runs", sa.column("run_id"), sa.column("create_timestamp", sa.DateTime))
        connection.execute(sa.update(runs).where(runs.c.run_id == run_id).values(create_timestamp=at))


def _measure(scene: Scene, instance: dg.DagsterInstance, tick: int, plan: Plan) -> Sizes:
    sizes = Sizes(tick)
    data = scene.settings.data_dir
    for kind in _KINDS:
        sizes.counts[f"{kind} (files)"], sizes.bytes[kind] = folder_size(data / kind)
    with scene.context.store.begin() as tx:
        for table in _ROWS:
            sizes.counts[table.name] = tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    sizes.counts[_RUNS] = instance.get_runs_count()
    if plan.postgres is None:
        home = scene.settings.home
        with closing(sqlite3.connect(home / "state.db")) as connection:  # its log is up to 4 MB, then used again
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sizes.bytes["store"] = sum(path.stat().st_size for path in home.glob("state.db*"))
        sizes.counts["Dagster's files"], sizes.bytes["Dagster"] = folder_size(home / "dagster")
        return sizes
    events: Any = instance.event_log_storage
    # Autovacuum does this each minute; here a minute is hours.
    sizes.bytes["store"] = _postgres_size(scene.context.store.engine)
    with events.index_connection() as connection:
        sizes.bytes["Dagster"] = _postgres_size(connection.engine)
    return sizes


def _postgres_size(engine: sa.Engine) -> int:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text("VACUUM"))
        return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())


def _line(sizes: Sizes) -> str:
    data = sum(sizes.bytes[kind] for kind in _KINDS)
    rows = sum(sizes.counts[table.name] for table in _ROWS)
    files = sum(sizes.counts[f"{kind} (files)"] for kind in _KINDS)
    return (
        f"  {sizes.tick * TICK_SECONDS / 3600:5.2f} h: data folder {data / 1e6:.2f} MB in {files} files, store "
        f"{sizes.bytes['store'] / 1e6:.2f} MB with {rows} rows, Dagster {sizes.bytes['Dagster'] / 1e6:.2f} MB with "
        f"{sizes.counts[_RUNS]} runs"
    )


def _flat(report: Report, sizes: Sequence[Sizes], plan: Plan) -> None:
    """Whether the most of the first half after retention was reached is, nearly, the most of the second."""
    after = [one for one in sizes if one.tick >= plan.reached]
    half = len(after) // 2
    assert half > 0, "the time is too short to see anything"
    for unit, series in (("bytes", [one.bytes for one in after]), ("count", [one.counts for one in after])):
        for name in series[0]:
            first, second = (max(one[name] for one in part) for part in (series[:half], series[half:]))
            grew = second > first * 1.1 + _AIR[unit]
            report.check(not grew, f"{name} grew from {first:,} to {second:,} after retention was reached")
    report.line(f"  from {after[0].tick * TICK_SECONDS / 3600:g} h on: " + ("grew" if report.failed else "no growth"))


def _check(report: Report, scene: Scene, warehouse: Path, amplitude: OwnProcess, plan: Plan) -> None:
    """Retention lost nothing, and nothing came twice."""
    for app_id in APPS:
        due = {ident for ident in event_ids(warehouse, app_id) if not ident.startswith("broken-")}
        got = amplitude.taken(key_of(app_id))
        report.zero(
            app_id,
            lost=len(due - got.keys()),
            not_due=len(got.keys() - due),
            twice=sum(got.values()) - len(got),
        )
    for one in scene.numbers():
        report.zero(one.integration, pending=one.pending)
        report.check(
            one.dead_letters.get("malformed_payload", 0) >= plan.ticks * _BROKEN,
            f"{one.integration}: dead letters {one.dead_letters}",
        )
