"""A backfill under way beside live delivery of the same integration: what it changes for a micro-batch.

``python -m bench.live_first --rows 300000 --ticks 20``
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from bench.data import APPS, sample_warehouse
from bench.part import alone, say, table
from bench.receiver import Receiver
from bench.scene import NAMI_AMP, Home, Wrong, room
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state.integrations import all_integrations

TITLE = "Live delivery beside a backfill"
GOAL = 1.2
BETWEEN_SECONDS = 1.0

_NEW = """
INSERT INTO nami_events BY NAME
SELECT * REPLACE (? || '-' || row_number() OVER () AS id, now() AS created_date, now() AS ingested_at)
FROM (FROM nami_events WHERE app_id = ? ORDER BY hash(id) LIMIT ?)
"""


def measure(
    *, rows: int = 300_000, ticks: int = 20, live: int = 200, milliseconds: int = 50, batch: int = 1_000
) -> dict[str, Any]:
    """Times micro-batches, first alone and then while a backfill of the same integration is under way.

    Args:
        rows: events of the backfill, about.
        ticks: micro-batches of each kind.
        live: rows that each of them delivers.
        milliseconds: that each answer takes.
        batch: most events of a request.

    Raises:
        Wrong: a backfill failed, was over too soon again and again, or a micro-batch delivered nothing.
    """
    events = sample_warehouse(2 * rows)
    with room("live-first") as folder, Receiver() as receiver:
        warehouse = folder / "warehouse.duckdb"
        shutil.copy(events, warehouse)
        home = Home(folder / "home", f"duckdb:///{warehouse}", NAMI_AMP_BATCH_EVENTS=str(batch))
        home.integrate(receiver.url, APPS[:1], start_from=int(time.time() * 1e6))
        receiver.reset(milliseconds / 1_000)
        context = Context.open(home.settings)
        try:
            by_itself = [_tick(context, warehouse, live) for _ in range(ticks + 1)][1:]  # the first one warms up
            say(f"alone: {statistics.median(by_itself):.2f} s")
            beside, backfill = _beside(home, context, warehouse, ticks, live)
            say(f"beside a backfill: {statistics.median(beside):.2f} s")
        finally:
            context.store.close()
    return {
        "rows": rows, "live": live, "milliseconds": milliseconds, "alone": by_itself, "beside": beside,
        "backfill": backfill,
    }  # fmt: skip


def _beside(
    home: Home, context: Context, warehouse: Path, ticks: int, live: int
) -> tuple[list[float], dict[str, float]]:
    """Seconds of micro-batches while a backfill is under way, and what the backfill did meanwhile."""
    took: list[float] = []
    began, last = time.monotonic(), 1
    process = _started(home, context, last)
    try:
        while len(took) < ticks:
            if process.poll() is not None:  # over; the next one sends the same once more
                last += 1
                if last > 5 * ticks:
                    raise Wrong("each backfill is over before a micro-batch is: more rows are wanted")
                process = _started(home, context, last)
            seconds = _tick(context, warehouse, live)
            if process.poll() is None:
                took.append(seconds)
    finally:
        process.terminate()
        process.wait()
    done = sum(_delivered(context, number) for number in range(1, last + 1))
    return took, {"events": done, "seconds": time.monotonic() - began}


def _started(home: Home, context: Context, number: int) -> subprocess.Popen[bytes]:
    """A backfill that has delivered something."""
    command = [NAMI_AMP, "backfill", f"{APPS[0]}/bench", "--from", "2000-01-01", "--to", "now", "--json"]
    process = subprocess.Popen(command, env=home.environ, cwd=home.folder, stdout=subprocess.DEVNULL)
    while not _delivered(context, number):
        if process.poll() is not None:
            raise Wrong(f"the backfill ended with {process.returncode} before it delivered anything")
        time.sleep(0.1)
    return process


def _delivered(context: Context, number: int) -> int:
    try:
        return show(context, number).delivered
    except Misconfigured:  # it does not exist yet
        return 0


def _tick(context: Context, warehouse: Path, live: int) -> float:
    """Loads new rows, and delivers them; returns the seconds of all four stages."""
    time.sleep(BETWEEN_SECONDS)
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute(_NEW, [uuid.uuid4().hex, APPS[0], live])
    began = time.monotonic()
    pipeline.capture_apps(context)
    pipeline.snapshot_apps(context)
    pipeline.prepare_integrations(context, all_integrations(context.store))
    done = pipeline.deliver_integrations(context, all_integrations(context.store))
    took = time.monotonic() - began
    delivered = sum(each.delivered for each in done.values())
    if not delivered:
        raise Wrong(f"a micro-batch delivered nothing at {datetime.now(UTC):%H:%M:%S}: {done}")
    return took


def p95(values: list[float]) -> float:
    """The time that one in twenty is above."""
    return sorted(values)[max(0, -(-95 * len(values) // 100) - 1)]


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    ratio = p95(result["beside"]) / p95(result["alone"])
    return [
        ("A micro-batch beside a backfill, p95 against alone", f"≤ {GOAL:.1f} times", f"{ratio:.2f} times",
         ratio <= GOAL)
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    lines = [
        [name, str(len(values)), f"{statistics.median(values):.2f}", f"{p95(values):.2f}", f"{max(values):.2f}"]
        for name, values in (("alone", result["alone"]), ("beside a backfill", result["beside"]))
    ]
    backfill = result["backfill"]
    return (
        f"Micro-batches of {result['live']} rows, one second apart, each answer {result['milliseconds']} ms after its "
        f"request; the seconds are those of all four stages in one process. The backfill, of {result['rows']:,} events "
        f"of the same integration, is another process on the same machine; meanwhile it delivered "
        f"{backfill['events'] / backfill['seconds']:,.0f} events/s.\n\n"
        + table(["micro-batches", "number", "median, s", "p95, s", "longest, s"], lines)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
