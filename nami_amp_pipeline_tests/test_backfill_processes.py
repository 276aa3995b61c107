"""Backfills in real processes: killed, beside live delivery, and stopped."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline_tests.support.command_line import environment
from nami_amp_pipeline_tests.support.nursery import Started
from nami_amp_pipeline_tests.support.scene import Scene, scene

pytestmark = pytest.mark.slow

SETTINGS = {"batch_events": "20", "segment_rows": "150", "max_lanes": "2", "late_commit_window_seconds": "0"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / ".nami-amp", **SETTINGS) as made:
        yield made


def start(stage: Scene, *arguments: str) -> Started:
    environ = environment(
        stage.home.parent,
        NAMI_AMP_HOME=str(stage.home),
        **{f"NAMI_AMP_{name.upper()}": value for name, value in SETTINGS.items()},
    )
    return Started(arguments, stage.home.parent, environ)


def wait_until(truth: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not truth():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)


@pytest.mark.contract("7.1.7", "7.1.10")
def test_a_killed_backfill_loses_nothing_and_sends_nothing_twice(stage: Scene) -> None:
    rng = random.Random(1)
    stage.sandbox.faults.add(Fault("stored_then_500", probability=0.05, seed=1))
    rows = stage.load(users=90, apps=["fit"])
    integration = stage.add("fit", start_from=int(time.time() * 1e6))
    process = start(stage, "backfill", "fit/main", "--from", "2000-01-01", "--to", "now", "--json")
    kills = 0
    for _ in range(6):
        seen = stage.sandbox.audit.accepted
        wait_until(lambda seen=seen, process=process: stage.sandbox.audit.accepted > seen or process.poll() is not None)
        time.sleep(rng.uniform(0, 0.2))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = start(stage, "backfills", "resume", "1", "--json")
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 0, complained
    found = json.loads(said)
    assert kills >= 2
    assert found["state"] == "done"
    assert found["pending"] == 0
    assert found["delivered"] == stage.sandbox.audit.accepted
    assert found["events"] == found["delivered"] + sum(found["skipped"].values())
    assert rows > found["events"] > 300
    for name in ("accepted_more_than_once", "concurrent_same_user", "order_violations", "changed_repeats"):
        assert getattr(stage.sandbox.audit, name).count == 0, name
    live = stage.status(integration)["fit/main"]
    assert (live.captured, live.delivered, live.pending) == (0, 0, 0)


@pytest.mark.contract("7.1.9")
def test_live_delivery_goes_first(stage: Scene) -> None:
    """A micro-batch comes in while a backfill has requests under way, and is through long before that has ended."""
    stage.load(users=250, apps=["fit"])
    began = int(time.time() * 1e6)
    integration = stage.add("fit", start_from=began)
    stage.sandbox.faults.add(Fault("slow", seconds=0.15))
    process = start(stage, "backfill", "fit/main", "--from", "2000-01-01", "--to", "2026-11-01", "--json")
    try:
        wait_until(lambda: stage.sandbox.audit.accepted > 40)
        with duckdb.connect(str(stage.home / "warehouse.duckdb")) as connection:
            connection.execute(
                "INSERT INTO nami_events SELECT 'new-' || id, app_id, event_type, user_id, now(), now(), payload "
                "FROM nami_events WHERE event_type LIKE 'user.subscription.%' LIMIT 30"
            )
        pipeline.capture_apps(stage.context)
        pipeline.snapshot_apps(stage.context)
        pipeline.prepare_integrations(stage.context, [integration])
        done = pipeline.deliver_integrations(stage.context, [integration])
        assert done[integration.id].delivered == 30
        assert done[integration.id].error is None
        status = show(stage.context, 1)
        assert status.backfill.state == "running", "the backfill was over: it shows nothing"
        assert process.poll() is None
        stage.sandbox.faults.remove()
        said, complained = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == 0, complained
    assert json.loads(said)["state"] == "done"
    for name in ("accepted_more_than_once", "concurrent_same_user"):
        assert getattr(stage.sandbox.audit, name).count == 0, name


def test_a_backfill_that_is_told_to_end_goes_on_later(stage: Scene) -> None:
    stage.load(users=120, apps=["fit"])
    stage.add("fit", start_from=int(time.time() * 1e6))
    stage.sandbox.faults.add(Fault("slow", seconds=0.1))
    process = start(stage, "backfill", "fit/main", "--from", "2000-01-01", "--to", "now")
    wait_until(lambda: stage.sandbox.audit.accepted > 20)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=30)
    assert process.returncode == 143, complained
    assert "Traceback" not in complained
    assert show(stage.context, 1).backfill.state == "running"
    stage.sandbox.faults.remove()
    process = start(stage, "backfills", "resume", "1")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert stage.sandbox.audit.accepted_more_than_once.count == 0
