"""Events a second of one ``nami-amp run``: sample events, DuckDB and SQLite, a receiver in its own process.

``python bench/micro_batch.py --rows 200000`` prints the figure of a whole process, start included, and where the time
went, stage by stage.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

from nami_amp_pipeline import pipeline, sample
from nami_amp_pipeline.amplitude.sandbox import Options, Sandbox, serve
from nami_amp_pipeline.compute import sql
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as state

APPS = ("radio-nami", "fit-nami")
PORT = 8798


def warehouse(path: Path, rows: int) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute(sql("nami_events"))
        for batch in sample.generate(rows // 10, rows=rows, apps=APPS):
            connection.register("sample", pa.Table.from_batches([batch]))
            connection.execute("INSERT INTO nami_events BY NAME SELECT * FROM sample")


def prepared(home: Path, events: Path) -> Settings:
    """A fresh state over the warehouse, with an integration for each app."""
    settings = Settings.load({"NAMI_AMP_HOME": str(home), "NAMI_AMP_WAREHOUSE_URL": f"duckdb:///{events}"})
    context = Context.open(settings)
    for app_id in APPS:
        new = state.NewIntegration(
            app_id,
            "bench",
            f"http://127.0.0.1:{PORT}/2/httpapi",
            Secret("0" * 32),
            anonymous="nami_user_id",
            allow_custom_endpoint=True,
        )
        state.add(context.store, context.cipher, new)
    context.store.close()
    return settings


def whole_run(settings: Settings) -> tuple[float, int]:
    """Seconds of the command, and what it delivered."""
    environ = os.environ | {
        "NAMI_AMP_HOME": str(settings.home),
        "NAMI_AMP_WAREHOUSE_URL": settings.warehouse_url,
    }
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("nami-amp")), "run", "--json"], env=environ, capture_output=True, check=True
    )
    seconds = time.perf_counter() - began
    return seconds, sum(one["delivered"] for one in orjson.loads(done.stdout)["integrations"])


def stages(settings: Settings) -> dict[str, float]:
    """Seconds of each stage, in this process."""
    context = Context.open(settings)
    spent = {}
    integrations = state.all_integrations(context.store)
    for name, act in (
        ("nami_events", lambda: pipeline.capture_apps(context)),
        ("user_property_snapshots", lambda: pipeline.snapshot_apps(context)),
        ("amplitude_events", lambda: pipeline.prepare_integrations(context, integrations)),
        ("amplitude_deliveries", lambda: pipeline.deliver_integrations(context, integrations)),
    ):
        began = time.perf_counter()
        act()
        spent[name] = time.perf_counter() - began
    context.store.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive:
        serve(Sandbox(options=Options(blind=True)), port=PORT)
        return
    receiver = subprocess.Popen([sys.executable, __file__, "--receive"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            events = Path(folder) / "events.duckdb"
            warehouse(events, arguments.rows)
            seconds, delivered = whole_run(prepared(Path(folder) / "whole", events))
            print(f"nami-amp run: {arguments.rows:,} rows, {delivered:,} delivered in {seconds:.1f} s:", end=" ")
            print(f"{arguments.rows / seconds:,.0f} rows/s, {delivered / seconds:,.0f} events/s")
            for stage, spent in stages(prepared(Path(folder) / "stages", events)).items():
                print(f"  {stage:<26}{spent:6.2f} s")
    finally:
        receiver.terminate()
        receiver.wait()


if __name__ == "__main__":
    main()
