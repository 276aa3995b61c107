"""Identifies in real processes and in Dagster: killed at some step, on the command line, as a job."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.defs.backfill_job import identify, unattended_backfills, unattended_identifies
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import SAYS, NewIdentify
from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline_tests.support.command_line import environment
from nami_amp_pipeline_tests.support.nursery import Started
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

SETTINGS = {"batch_events": "5", "segment_rows": "40", "max_lanes": "2", "late_commit_window_seconds": "0"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    """Users whose events are known, and an integration that was sent none of them."""
    with scene(tmp_path / ".nami-amp", **SETTINGS) as made:
        made.load(users=60, apps=["fit"])
        made.add("fit", "reader", enabled=True, events=["device.impression"])
        pipeline.capture_apps(made.context)
        pipeline.snapshot_apps(made.context)
        made.add("fit", start_from=int(time.time() * 1e6))
        yield made


def start(stage: Scene, *arguments: str) -> Started:
    environ = environment(
        stage.home.parent,
        NAMI_AMP_HOME=str(stage.home),
        **{f"NAMI_AMP_{name.upper()}": value for name, value in SETTINGS.items()},
    )
    return Started(arguments, stage.home.parent, environ)


def ended(process: Started) -> tuple[dict[str, Any], str]:
    said, complained = process.communicate(timeout=120)
    return json.loads(said), complained


@pytest.mark.contract("7.3.5")
def test_a_killed_identify_sends_each_user_one(stage: Scene) -> None:
    stage.sandbox.faults.add(Fault("stored_then_500", probability=0.1, seed=1))
    stage.sandbox.faults.add(Fault("slow", seconds=0.1))
    process = start(stage, "identify", "fit/main", "--json")
    kills = 0
    for _ in range(3):
        seen, until = stage.sandbox.audit.accepted, time.monotonic() + 60
        while stage.sandbox.audit.accepted == seen and process.poll() is None:
            assert time.monotonic() < until, "nothing came"
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        process = start(stage, "backfills", "resume", "1", "--json")
    found, complained = ended(process)
    assert process.returncode == 0, complained
    assert kills >= 2
    assert (found["kind"], found["state"], found["pending"]) == ("identify", "done", 0)
    assert found["delivered"] == found["found"]["new"] == stage.sandbox.audit.accepted >= 50
    for name in ("accepted_more_than_once", "concurrent_same_user", "changed_repeats"):
        assert getattr(stage.sandbox.audit, name).count == 0, name
    stage.sandbox.faults.remove()
    again, _ = ended(start(stage, "identify", "fit/main", "--all", "--json"))
    assert set(again["found"]) <= {"unchanged", "no_state"}
    assert again["found"]["unchanged"] == found["delivered"]
    assert stage.sandbox.audit.accepted == found["delivered"]


def test_the_command_line_plans_and_says_what_an_identify_is_not(stage: Scene) -> None:
    process = start(stage, "identify", "fit/main", "--dry-run")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert " ".join(SAYS.split()) in " ".join(said.split())
    assert "nami-amp identify --plan 1" in said
    assert stage.sandbox.audit.accepted == 0
    process = start(stage, "backfill", "--plan", "1")
    assert "nami-amp identify --plan 1" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
    done, _ = ended(start(stage, "identify", "--plan", "1", "--json"))
    assert done["delivered"] == stage.sandbox.audit.accepted > 0
    assert done["silent_since"] is None


@pytest.mark.contract("7.3.5")
def test_the_job_sends_snapshots_and_its_sensor_resumes_it(stage: Scene) -> None:
    number = backfills.create(stage.context, NewIdentify("fit/main")).id
    backfills.run(stage.context, number, stop=lambda: True)
    with dagster_instance(stage.settings) as instance:
        session = PipelineSession(stage.settings, "job")
        try:
            context = dg.build_sensor_context(instance=instance)
            result = unattended_identifies(context, pipeline=session)
            assert isinstance(result, dg.SensorResult)
            (request,) = result.run_requests or []
            assert isinstance(unattended_backfills(context, pipeline=session), dg.SkipReason)
            run = identify.execute_in_process(
                run_config={**request.run_config, "console_log_level": "CRITICAL"}, instance=instance,
                resources={"pipeline": session},
            )  # fmt: skip
            assert run.success
            assert isinstance(unattended_identifies(context, pipeline=session), dg.SkipReason)
            since = {"integration": "fit/main", "silent_since": "2000-01-01", "console_log_level": "CRITICAL"}
            refused = identify.execute_in_process(
                run_config=since, instance=instance, resources={"pipeline": session}, raise_on_error=False
            )
            failure: Any = refused.failure_data_for_node("send_snapshots")
            assert "RECEIPT_RETENTION" in failure.user_failure_data.description
            again = identify.execute_in_process(
                run_config={"integration": "fit/main", "console_log_level": "CRITICAL"}, instance=instance,
                resources={"pipeline": session},
            )  # fmt: skip
        finally:
            session.close()
        (event,) = [event for event in again.all_events if event.event_type_value == "STEP_OUTPUT"]
        facts = {name: value.value for name, value in event.step_output_data.metadata.items()}
        assert (facts["what"], facts["of"], facts["says"], facts["delivered"]) == ("identify 2", "all users", SAYS, 0)
        assert any("users done" in entry.user_message for entry in instance.all_logs(run.run_id))
    assert show(stage.context, number).backfill.state == "done"
