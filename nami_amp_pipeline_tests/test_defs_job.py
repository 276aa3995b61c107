"""The job ``micro_batch`` moves what has work, says so of exactly that, and lets one partition fail alone."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.checks import CHECKS
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.reconciliation import reconcile
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.retention_job import retention
from nami_amp_pipeline.defs.trace_job import trace
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.micro_batch import LEFT_TO_ANOTHER, MicroBatch
from nami_amp_pipeline.stages.deliver import Means, deliver
from nami_amp_pipeline.stages.table import CAPTURE, DELIVER, PREPARE, SNAPSHOTS
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def events_of(
    instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult, kind: dg.DagsterEventType
) -> list[dg.DagsterEvent]:
    """What the history has of a run; the result lacks what a step logged before it failed."""
    entries = instance.all_logs(result.run_id, of_type=kind)
    return [entry.dagster_event for entry in entries if entry.dagster_event is not None]


def moved(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> set[tuple[str, str]]:
    events = events_of(instance, result, dg.DagsterEventType.ASSET_MATERIALIZATION)
    pairs = Counter((event.asset_key.to_user_string(), str(event.partition)) for event in events if event.asset_key)
    assert set(pairs.values()) <= {1}
    assert pairs.pop(("delivery_report", "None"))
    return set(pairs)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "upload"
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert data.description is not None
    return data.description


def checks_of(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], bool]:
    return {
        (check.check_name, check.partition): check.passed
        for event in events_of(instance, result, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        for check in [event.asset_check_evaluation_data]
    }


@pytest.mark.slow
def test_logs_exactly_the_partitions_that_it_moved(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio")
    stage.add("fit")
    stage.add("quiet")  # an app without events
    stage.add("fit", "off", enabled=False)
    first = stage.run(instance)
    assert first.success
    assert moved(instance, first) == {
        *((asset, app) for asset in ("nami_events", "user_property_snapshots") for app in ("radio", "fit")),
        *((asset, f"{app}|main") for asset in ("amplitude_events", "amplitude_deliveries") for app in ("radio", "fit")),
    }
    assert checks_of(instance, first) == {(check, f"{app}|main"): True for check in CHECKS for app in ("radio", "fit")}
    assert set(instance.get_dynamic_partitions("nami_apps")) == {"radio", "fit", "quiet"}

    again = stage.run(instance)
    assert again.success
    assert moved(instance, again) == set()

    stage.load(apps=("radio",), seed=8, users=20)
    third = stage.run(instance)
    assert {partition for _, partition in moved(instance, third)} == {"radio", "radio|main"}


@pytest.mark.slow
def test_refused_key_fails_alone_after_the_others_were_delivered(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    good = stage.add("radio"), stage.add("fit")
    bad = stage.add("radio", "aaa-first", key=BAD_KEY)
    result = stage.run(instance)
    assert not result.success
    lines = failure_of(result).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("radio|aaa-first: halted since ")
    assert "'nami-amp integrations enable radio/aaa-first'" in lines[1]
    numbers = stage.status(*good, bad)
    assert numbers["radio/aaa-first"].pending == numbers["radio/aaa-first"].captured > 0
    assert all(numbers[one.key].pending == 0 and numbers[one.key].delivered > 0 for one in good)
    deliveries = {partition for asset, partition in moved(instance, result) if asset == "amplitude_deliveries"}
    assert deliveries == {"radio|main", "fit|main"}
    assert checks_of(instance, result)["conservation", "radio|aaa-first"]
    assert not checks_of(instance, result)["lag", "radio|aaa-first"]  # the sample's events are old
    assert not checks_of(instance, result)["not_halted", "radio|aaa-first"]
    assert checks_of(instance, result)["not_halted", "radio|main"]
    history = repr(instance.all_logs(result.run_id)) + repr(result.all_events)
    assert BAD_KEY not in history
    assert GOOD_KEY not in history


@pytest.mark.slow
def test_config_restricts_to_some_integrations(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    radio, other, fit = stage.add("radio"), stage.add("radio", "other"), stage.add("fit")
    assert stage.run(instance, "radio/other").success
    numbers = stage.status(radio, other, fit)
    assert numbers["radio/other"].delivered > 0
    assert numbers["radio/main"].delivered == numbers["fit/main"].captured == 0


@pytest.mark.slow
def test_earlier_outboxes_are_delivered_although_the_warehouse_is_gone(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    stage.load(apps=("radio",))
    one = stage.add("radio")
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    tick.run(SNAPSHOTS)
    (stage.home / "warehouse.duckdb").unlink()
    result = stage.run(instance)
    assert not result.success
    assert "nami_events: there is no DuckDB file" in failure_of(result)
    assert stage.status(one)["radio/main"].pending == 0
    assert stage.status(one)["radio/main"].delivered > 0


@pytest.mark.slow
def test_step_can_be_run_again_by_itself(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    one = stage.add("radio")
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    tick.run(SNAPSHOTS)
    tick.run(PREPARE)
    pipeline = PipelineSession(stage.settings, run_id="again")
    result = micro_batch.execute_in_process(
        run_config={"console_log_level": "CRITICAL"},
        instance=instance,
        resources={"pipeline": pipeline},
        op_selection=["upload"],
    )
    pipeline.close()
    assert result.success
    assert stage.status(one)["radio/main"].delivered > 0


@pytest.mark.slow
def test_report_has_every_integration_and_what_became_of_it(stage: Scene) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("fit", enabled=False)
    stage.add("radio")
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    tick.run(SNAPSHOTS)
    tick.run(PREPARE)
    tick.run(DELIVER)
    off, on = tick.report()
    assert (off["integration"], off["captured"], off["state"], off["error"]) == ("fit/main", 0, "disabled", None)
    assert on["captured"] == on["delivered"] + sum(on["skipped"].values()) + sum(on["dead_letters"].values())
    assert on["watermark"].endswith("Z")
    assert tick.problems() == []


def test_integration_that_another_process_works_on_is_left_to_it(stage: Scene) -> None:
    stage.load(apps=("radio",))
    one = stage.add("radio")
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    tick.run(SNAPSHOTS)
    tick.run(PREPARE)
    with another_process(stage) as other:
        assert other.store.acquire([f"integration:{one.id}"])
        tick.run(DELIVER)
        (row,) = tick.report()
    assert row["error"] == LEFT_TO_ANOTHER
    assert row["pending"] == row["captured"] > 0
    assert tick.problems() == []


@contextmanager
def another_process(stage: Scene) -> Iterator[Context]:
    """A second process at work on the same home."""
    context = Context.open(stage.settings)
    try:
        yield context
    finally:
        context.store.close()


@pytest.mark.slow
def test_signal_lets_requests_under_way_finish(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",), users=200)
    one = stage.add("radio")
    delivered = deliver

    def interrupted(context: Context, ones: Any, leases: Any, means: Means, **more: Any) -> Any:
        stopping = replace(means, stop=lambda: _interrupt_once(means.stop))
        return delivered(context, ones, leases, stopping, **more)

    asked = threading.Event()

    def _interrupt_once(stop: Any) -> bool:
        if stage.sandbox.audit.requests and not asked.is_set():
            asked.set()
            (record,) = instance.get_run_records()
            instance.report_run_canceling(record.dagster_run)  # as Terminate does
            signal.raise_signal(signal.SIGTERM)
        return bool(stop())

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nami_amp_pipeline.stages.table.deliver", interrupted)
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            stage.run(instance, raise_on_error=True)
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.getsignal(signal.SIGTERM) == before  # Dagster's doing, once it has run anything in a process
    assert asked.is_set()
    now = stage.status(one)["radio/main"]
    assert now.delivered == stage.sandbox.audit.accepted > 0
    assert [record.dagster_run.status for record in instance.get_run_records()] == [dg.DagsterRunStatus.CANCELED]
    assert stage.run(instance).success
    assert stage.sandbox.audit.duplicates == 0
    assert stage.status(one)["radio/main"].pending == 0


def test_trouble_of_a_stage_stands_in_the_report(stage: Scene) -> None:
    stage.add("radio")
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    assert isinstance(tick.troubles[0][1], WarehouseUnavailable)
    tick.run(DELIVER)
    (row,) = tick.report()
    assert row["error"] == str(tick.troubles[0][1])


@pytest.mark.parametrize(
    ("job", "calls", "given"),
    [
        (retention, "nami_amp_pipeline.defs.retention_job.apply_retention", {}),
        (trace, "nami_amp_pipeline.defs.trace_job.Operations", {"event_or_user": "e"}),
        (reconcile, "nami_amp_pipeline.defs.reconciliation.reconcilable", {}),
    ],
    ids=["retention", "trace", "reconcile"],
)
def test_no_job_fails_because_its_process_is_asked_to_end(
    job: dg.JobDefinition, calls: str, given: dict[str, Any], stage: Scene, instance: dg.DagsterInstance
) -> None:
    def interrupted(*_given: Any, **_more: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, interrupted)
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            job.execute_in_process(
                run_config=given, instance=instance, resources={"pipeline": PipelineSession(stage.settings)}
            )
    assert [record.dagster_run.status for record in instance.get_run_records()] == [dg.DagsterRunStatus.CANCELED]
