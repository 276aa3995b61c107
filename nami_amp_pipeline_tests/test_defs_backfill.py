"""The job ``backfill`` and the asset ``amplitude_deliveries`` with a window, in real runs of Dagster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.defs.assets import ASSETS
from nami_amp_pipeline.defs.backfill_job import backfill, unattended_backfills
from nami_amp_pipeline.defs.partitions import INTEGRATIONS
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show, unattended
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

WINDOW = {"from": "2000-01-01", "to": "now"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / "home", segment_rows="200") as made:
        made.load(users=40, apps=["fit"])
        made.add("fit", start_from=int(time.time() * 1e6))
        yield made


def run_job(stage: Scene, instance: dg.DagsterInstance, config: dict[str, Any]) -> Any:
    session = PipelineSession(stage.settings, "job")
    try:
        return backfill.execute_in_process(
            run_config=config, instance=instance, resources={"pipeline": session}, raise_on_error=False
        )
    finally:
        session.close()


def metadata(result: Any) -> dict[str, Any]:
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def logged(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.user_message for entry in instance.all_logs(run_id)]


@pytest.mark.contract("7.1.8")
def test_the_job_sends_a_window_and_says_how_far_it_is(stage: Scene) -> None:
    with dagster_instance(stage.settings) as instance:
        result = run_job(stage, instance, {"integration": "fit/main", **WINDOW, "console_log_level": "CRITICAL"})
        assert result.success
        found = metadata(result)
        assert found["state"] == "done"
        assert found["delivered"] == stage.sandbox.audit.accepted > 100
        assert any("of" in line and "events done" in line for line in logged(instance, result.run_id))


def test_the_job_fails_with_one_line_and_reads_no_variable(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MY_SECRET", "s3cret")
    with dagster_instance(stage.settings) as instance:
        result = run_job(stage, instance, {"integration": "fit/nobody", **WINDOW, "console_log_level": "CRITICAL"})
        assert not result.success
        failure = result.failure_data_for_node("send_window")
        assert "there is no integration fit/nobody" in failure.user_failure_data.description
        with pytest.raises(dg.DagsterInvalidConfigError) as refused:
            run_job(stage, instance, {"integration": {"env": "MY_SECRET"}, **WINDOW})
        assert "s3cret" not in str(refused.value)


@pytest.mark.contract("7.1.8")
def test_a_partition_that_is_materialized_with_a_window_is_a_backfill_and_says_so(stage: Scene) -> None:
    (deliveries,) = [asset for asset in ASSETS if asset.key.path == ["amplitude_deliveries"]]

    def materialize(instance: dg.DagsterInstance, config: dict[str, Any]) -> dict[str, Any]:
        session = PipelineSession(stage.settings, "asset")
        try:
            result = dg.materialize(
                [deliveries],
                partition_key="fit|main",
                instance=instance,
                resources={"pipeline": session},
                run_config={"ops": {"amplitude_deliveries": {"config": config}}} if config else {},
            )
        finally:
            session.close()
        assert result.success
        (made,) = result.asset_materializations_for_node("amplitude_deliveries")
        return {name: value.value for name, value in made.metadata.items()}

    with dagster_instance(stage.settings) as instance:
        instance.add_dynamic_partitions(INTEGRATIONS, ["fit|main"])
        assert materialize(instance, {})["what"] == "what is new"
        assert materialize(instance, {**WINDOW, "dry_run": True})["what"] == "plan 1: nothing was sent"
        assert stage.sandbox.audit.accepted == 0
        found = materialize(instance, WINDOW)
        assert found["what"] == "backfill 2"
        assert found["delivered"] == stage.sandbox.audit.accepted > 100


@pytest.mark.contract("7.1.8")
def test_a_backfill_that_nobody_works_on_is_resumed(stage: Scene) -> None:
    new = backfills.NewBackfill("fit/main", Window(0, int(time.time() * 1e6)))
    number = backfills.create(stage.context, new).id
    backfills.run(stage.context, number, stop=lambda: True)
    assert [entry.id for entry in unattended(stage.context)] == [number]
    with dagster_instance(stage.settings) as instance:
        session = PipelineSession(stage.settings)
        try:
            context = dg.build_sensor_context(instance=instance)
            result = unattended_backfills(context, pipeline=session)
            assert isinstance(result, dg.SensorResult)
            (request,) = result.run_requests or []
            assert run_job(stage, instance, {**request.run_config, "console_log_level": "CRITICAL"}).success
            assert isinstance(unattended_backfills(context, pipeline=session), dg.SkipReason)
        finally:
            session.close()
    assert show(stage.context, number).backfill.state == "done"


def test_the_sensor_makes_the_dry_run_that_a_page_asked_for_and_then_runs_its_plan(stage: Scene) -> None:
    new = backfills.NewBackfill("fit/main", Window(0, int(time.time() * 1e6)))
    number = backfills.ask_for_plan(stage.context, new, by="Ana").id
    with dagster_instance(stage.settings) as instance:
        session = PipelineSession(stage.settings)

        def take() -> dg.RunRequest:
            result = unattended_backfills(dg.build_sensor_context(instance=instance), pipeline=session)
            assert isinstance(result, dg.SensorResult)
            (request,) = result.run_requests or []
            return request

        try:
            quiet = {"console_log_level": "CRITICAL"}
            done = run_job(stage, instance, {**take().run_config, **quiet})
            assert done.success
            planned = show(stage.context, number).backfill
            assert planned.state == "planned"
            assert planned.plan is not None
            assert metadata(done)["events"] == sum(planned.plan["by_type"].values()) > 0
            assert show(stage.context, number).captured == 0, "nothing was sent"
            context = dg.build_sensor_context(instance=instance)
            assert isinstance(unattended_backfills(context, pipeline=session), dg.SkipReason)
            backfills.start(stage.context, number)
            assert run_job(stage, instance, {**take().run_config, **quiet}).success
            with pytest.raises(Misconfigured, match="is done"):
                backfills.start(stage.context, number)
        finally:
            session.close()
    status = show(stage.context, number)
    assert status.backfill.state == "done"
    assert status.delivered > 0
