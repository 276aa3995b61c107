"""The job ``trace``: its run answers whether an event or a user's events arrived, and leaves everything as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nami_amp_pipeline.defs.alert_sensors import failed_runs
from nami_amp_pipeline.defs.ours import OURS
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.trace_job import VERDICT_TAG, trace
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, run_retry_seconds="0") as made:
        made.load(apps=("radio",), users=5)
        made.add("radio")
        made.add("radio", "other")
        made.sandbox.faults.add(Fault("poison", share=0.5, seed=5, indexes="all"))
        with dg.DagsterInstance.ephemeral() as instance:
            assert made.run(instance).success
        yield made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def ask(stage: Scene, instance: dg.DagsterInstance, question: str) -> dg.ExecuteInProcessResult:
    pipeline = PipelineSession(stage.settings, run_id="a-question")
    try:
        return trace.execute_in_process(
            run_config={"event_or_user": question},
            instance=instance,
            resources={"pipeline": pipeline},
            raise_on_error=False,
        )
    finally:
        pipeline.close()


def answer(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """The tag of the run, and the metadata of its answer."""
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    data = output.step_output_data
    return run.tags[VERDICT_TAG], {name: value.value for name, value in data.metadata.items()}


def test_an_event_a_user_and_what_is_not_there(stage: Scene, instance: dg.DagsterInstance) -> None:
    with stage.context.store.begin() as tx:
        (event, user, *_) = tx.execute(
            tables.exceptions.select()
            .with_only_columns(tables.exceptions.c.event_id, tables.exceptions.c.user_id)
            .where(tables.exceptions.c.state == "dead")
        ).first() or ("", "")
    of_event = ask(stage, instance, f"  {event} ")
    assert of_event.success
    tag, told = answer(instance, of_event)
    assert tag == "2 rejected"
    assert told["verdict"] == f"{event}: 2 rejected"
    assert set(told) == {"verdict", "radio/main", "radio/other"}
    assert told["radio/main"].startswith("rejected 20")
    assert "nami-amp dead-letters show" in told["radio/main"]

    tag, told = answer(instance, ask(stage, instance, user))
    assert " rejected" in tag
    assert f"{event}, radio/main" in told
    with Operations(stage.settings) as operations:
        assert tag == operations.look_up(user).summary

    missing = ask(stage, instance, "nobody")
    assert missing.success  # it was told what there is to tell
    tag, told = answer(instance, missing)
    assert tag == "not known"
    assert told["verdict"].startswith("no event or user nobody: ")


def test_it_is_no_micro_batch_and_alerts_nobody(stage: Scene, instance: dg.DagsterInstance) -> None:
    with Operations(stage.settings) as operations:
        before = operations.overview().last_run
        failed = ask(stage, instance, " ")
        assert operations.overview().last_run == before
    (failure,) = [event.step_failure_data for event in failed.all_events if event.is_step_failure]
    assert failure.error is not None
    assert failure.error.message == "event_or_user is empty: give an event id, an External ID or a Nami user"
    assert failure.error.stack == []
    run = instance.get_run_by_id(failed.run_id)
    assert run is not None
    assert OURS.has(run)  # retention removes it
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_instance=instance,
        dagster_run=run,
        dagster_event=failed.get_run_failure_event(),
    ).for_run_failure()
    said = failed_runs(context, pipeline=PipelineSession(stage.settings))
    assert isinstance(said, dg.SkipReason)
    assert said.skip_message == "the person who asked sees it"
