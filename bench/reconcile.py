"""Reconciliation of everything that was just delivered, with as many events of another writer in the export.

``python -m bench.reconcile --rows 100000``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench import watch
from bench.data import APPS, sample_warehouse
from bench.part import alone, say, table
from bench.receiver import Receiver
from bench.scene import NAMI_AMP, Home, Wrong, delivered_all, room
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.rebuild import events_again
from nami_amp_pipeline.state.integrations import all_integrations

TITLE = "Reconciliation"
MEMORY_GOAL = 1_000_000_000
FILE_ROWS = 50_000

_EXPORT = """
COPY (
    SELECT
        event->>'insert_id' AS "$insert_id", NULL AS "$schema", NULL AS adid, uuid() AS uuid, 187520 AS app,
        strftime(make_timestamp((event->>'time')::BIGINT * 1000), '%Y-%m-%d %H:%M:%S.%f') AS client_event_time,
        strftime(make_timestamp((event->>'time')::BIGINT * 1000), '%Y-%m-%d %H:%M:%S.%f') AS event_time,
        $now AS client_upload_time, $now AS server_received_time, $now AS server_upload_time, $now AS processed_time,
        event->>'event_type' AS event_type, event->>'user_id' AS user_id,
        coalesce(event->>'device_id', uuid()::VARCHAR) AS device_id,
        NULL AS amplitude_attribution_ids, 1234567890 AS amplitude_id, NULL AS city, NULL AS country,
        event->'event_properties' AS event_properties, coalesce(event->'user_properties', '{}') AS user_properties,
        'nami-amp' AS library, NULL AS platform, -1 AS session_id, NULL AS version_name
    FROM (SELECT body[2:]::JSON AS event FROM bodies)
    UNION ALL BY NAME
    SELECT uuid()::VARCHAR AS "$insert_id", uuid() AS uuid, 187520 AS app, $now AS server_upload_time,
        $now AS event_time, $now AS client_event_time, 'screen_view' AS event_type, uuid()::VARCHAR AS device_id,
        event->'event_properties' AS event_properties, coalesce(event->'user_properties', '{}') AS user_properties
    FROM (SELECT body[2:]::JSON AS event FROM bodies)
) TO '$file' (FORMAT json, COMPRESSION gzip)
"""


def measure(*, rows: int = 1_000_000) -> dict[str, Any]:
    """Delivers everything, writes an export of it, and compares.

    Args:
        rows: of the warehouse, of two apps.

    Raises:
        Wrong: the comparison found what is not so.
    """
    events = sample_warehouse(rows)
    with room("reconcile") as folder, Receiver() as receiver:
        home = Home(folder / "home", f"duckdb:///{events}")
        home.integrate(receiver.url)
        tick = delivered_all(home, receiver)
        say(f"{tick.delivered:,} events delivered in {tick.took.seconds:.1f} s")
        runs = []
        for app_id in APPS:
            exports = folder / f"exports-{app_id}"
            exports.mkdir()
            held = _export(home, f"{app_id}/bench", exports)
            command = [NAMI_AMP, "reconcile", f"{app_id}/bench", "--from", "today", "--now", "--json"]
            took = watch.run([*command, "--source", str(exports)], environ=home.environ, cwd=folder)
            (day,) = orjson.loads(took.output)["days"]
            if (day["identical"], day["delivered"], day["others"]) != (held, held, held):
                raise Wrong(f"{app_id}: {held} events are held as they were sent, and it says {day}")
            runs.append({"events": held, "seconds": took.seconds, "cpu": took.cpu, "peak_rss": took.peak_rss})
            say(f"{app_id}: {held:,} events compared in {took.seconds:.1f} s, {took.peak_rss / 1e6:,.0f} MB")
    return {"rows": rows, "delivered": tick.delivered, "delivery_seconds": tick.took.seconds, "runs": runs}


def _export(home: Home, key: str, folder: Path) -> int:
    """Writes what Amplitude would export of an integration; returns how many events."""
    context = Context.open(home.settings)
    now = datetime.now(UTC)
    written = 0
    try:
        (integration,) = all_integrations(context.store, [key])
        receipts = [pq.read_table(path) for path in sorted((home.settings.data_dir / "receipts").glob("*.parquet"))]
        ids = [row for part in receipts for row in part.filter(pc.equal(part["state"], "delivered"))["id"].to_pylist()]
        with duckdb.connect() as connection:
            for number, bodies in enumerate(_in_files(context, integration, ids)):
                name = f"187520_{now:%Y-%m-%d}_{now.hour}#{number}.json.gz"
                connection.register("bodies", bodies)
                text = _EXPORT.replace("$now", f"'{now:%Y-%m-%d %H:%M:%S.%f}'").replace("$file", str(folder / name))
                connection.execute(text)
                connection.unregister("bodies")
                written += bodies.num_rows
    finally:
        context.store.close()
    return written


def _in_files(context: Context, integration: Any, ids: list[str]) -> Iterator[pa.Table]:
    for _, events in events_again(context, integration, dict.fromkeys(ids)):
        for start in range(0, events.num_rows, FILE_ROWS):
            yield events.select(["body"]).slice(start, FILE_ROWS)


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    seconds = sum(run["seconds"] for run in result["runs"])
    memory = max(run["peak_rss"] for run in result["runs"])
    return [
        (f"Reconciliation of {result['delivered']:,} events", f"≤ {result['delivery_seconds']:.1f} s, as delivery",
         f"{seconds:.1f} s", seconds <= result["delivery_seconds"]),
        ("… resident memory", "< 1 GB", f"{memory / 1e9:.2f} GB", memory < MEMORY_GOAL),
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    lines = [
        [app_id, f"{run['events']:,}", f"{run['seconds']:.1f}", f"{run['cpu']:.1f}", f"{run['peak_rss'] / 1e6:,.0f}"]
        for app_id, run in zip(APPS, result["runs"], strict=True)
    ]
    return (
        f"`nami-amp reconcile APP/NAME` from a folder (`--source`), of what `nami-amp run` delivered just before, in "
        f"{result['delivery_seconds']:.1f} s. The exported files hold as many events of another writer. Every event "
        "was found identical, and every other one not ours.\n\n"
        + table(["app", "events of ours", "seconds", "CPU seconds", "peak memory, MB"], lines)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
