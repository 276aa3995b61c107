"""The schedule starts one micro-batch at a time, and the sensor keeps partitions in step with the integrations."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.defs import partitions, schedules
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import build_schedule
from nami_amp_pipeline.defs.sensors import integration_partitions
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import all_integrations, remove
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:  # the schedule opens it by its folder
        yield made


def tick(instance: dg.DagsterInstance) -> object:
    return build_schedule(5)(dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC)))


@pytest.mark.parametrize(
    "status",
    [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)
@pytest.mark.slow
def test_schedule_leaves_a_micro_batch_under_way_alone(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    assert isinstance(tick(instance), dg.RunRequest)
    assert dg.DagsterRunStatus.QUEUED in schedules.UNDER_WAY  # such a run cannot be made without a daemon
    run = instance.create_run_for_job(micro_batch, tags=micro_batch.tags, status=status)
    skipped = tick(instance)
    assert isinstance(skipped, dg.SkipReason)
    assert run.run_id in (skipped.skip_message or "")
    instance.delete_run(run.run_id)
    assert isinstance(tick(instance), dg.RunRequest)


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE])
def test_schedule_does_not_mind_finished_runs(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    instance.create_run_for_job(micro_batch, tags=micro_batch.tags, status=status)
    assert isinstance(tick(instance), dg.RunRequest)


def test_run_that_died_without_a_word_does_not_stop_the_schedule_for_ever(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.create_run_for_job(micro_batch, tags=micro_batch.tags, status=dg.DagsterRunStatus.STARTED)
    assert isinstance(tick(instance), dg.SkipReason)
    monkeypatch.setattr(schedules, "FORGOTTEN", timedelta(seconds=-5))
    assert isinstance(tick(instance), dg.RunRequest)


def test_schedule_goes_by_the_setting() -> None:
    assert build_schedule(10).cron_schedule == "*/10 * * * *"


def look(stage_settings: Settings, instance: dg.DagsterInstance, cursor: str | None = None) -> object:
    """Evaluates the sensor, and does what it asks for as the daemon would."""
    pipeline = PipelineSession(stage_settings)
    result = integration_partitions(dg.build_sensor_context(instance=instance, cursor=cursor), pipeline=pipeline)
    pipeline.close()
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests or ():
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
            else:
                for key in request.partition_keys:
                    instance.delete_dynamic_partition(request.partitions_def_name, key)
    return result


def keys(instance: dg.DagsterInstance) -> tuple[set[str], set[str]]:
    return set(instance.get_dynamic_partitions("nami_apps")), set(instance.get_dynamic_partitions("nami_integrations"))


def test_sensor_adds_and_removes_partitions(stage: Scene, instance: dg.DagsterInstance) -> None:
    assert isinstance(look(stage.settings, instance), dg.SkipReason)
    stage.add("radio")
    stage.add("fit")
    stage.add("fit", "eu")
    result = look(stage.settings, instance)
    assert isinstance(result, dg.SensorResult)
    assert keys(instance) == ({"radio", "fit"}, {"main", "eu"})
    assert isinstance(look(stage.settings, instance, result.cursor), dg.SkipReason)
    remove(stage.context.store, "fit/eu")
    remove(stage.context.store, "fit/main")
    look(stage.settings, instance)
    assert keys(instance) == ({"radio"}, {"main"})


def test_sensor_does_a_bounded_amount_at_once(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "MOST_CHANGES", 2)
    for number in range(5):
        stage.add(f"app-{number}")
    for expected in (2, 4, 5):
        look(stage.settings, instance)
        assert len(keys(instance)[0]) == expected


def test_sensor_makes_no_store_where_there_is_none(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    home = tmp_path / "empty"
    assert isinstance(look(Settings.load({"NAMI_AMP_HOME": str(home)}), instance), dg.SkipReason)
    assert not home.exists()


def test_sensor_says_in_one_line_that_the_store_is_gone(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    (tmp_path / "state.db").write_text("this is no database, and long enough to be seen as none" * 100)
    result = look(Settings.load({"NAMI_AMP_HOME": str(tmp_path)}), instance)
    assert isinstance(result, dg.SkipReason)
    assert "state store" in (result.skip_message or "")


def test_a_partition_that_another_process_adds_at_the_same_moment_is_no_error(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    """Dagster looks what is there, and then adds the rest: between the two another run may have added it."""
    stage.add("radio")
    stage.add("fit")
    others: list[str] = []

    def add_first(connection: sa.Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO dynamic_partitions") and len(others) < 2:
            others.append("radio")
            with sqlite3.connect(connection.engine.url.database or "") as other:
                other.execute(
                    "INSERT OR IGNORE INTO dynamic_partitions (partitions_def_name, partition) VALUES (?, ?)",
                    (partitions.APPS, others[0]),
                )

    sa.event.listen(sa.Engine, "before_cursor_execute", add_first)
    try:
        partitions.add_partitions(instance, all_integrations(stage.context.store))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", add_first)
    assert others
    assert set(instance.get_dynamic_partitions(partitions.APPS)) == {"radio", "fit"}
    assert set(instance.get_dynamic_partitions(partitions.INTEGRATIONS)) == {"main"}
