"""The schedule starts one micro-batch at a time, and the sensor keeps partitions in step with the integrations."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, ScheduleInstigatorData
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.defs import partitions, schedules
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import UNDER_WAY, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import build_schedule
from nami_amp_pipeline.defs.sensors import early_micro_batch, integration_partitions
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
    return build_schedule(Settings())(
        dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
    )


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
    assert dg.DagsterRunStatus.QUEUED in UNDER_WAY  # such a run cannot be made without a daemon
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


def test_schedule_goes_by_the_settings() -> None:
    assert build_schedule(Settings.load({"NAMI_AMP_TICK_MINUTES": "10"})).cron_schedule == "*/10 * * * *"
    settings = Settings.load({"NAMI_AMP_TICK_CRON": "0 6-22 * * 1-5", "NAMI_AMP_TICK_TIME_ZONE": "Europe/Berlin"})
    schedule = build_schedule(settings)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 6-22 * * 1-5", "Europe/Berlin")
    assert schedule.name == "micro_batch_schedule"
    assert schedule.description is not None
    assert schedule.description.startswith("Starts a micro-batch at '0 6-22 * * 1-5' (cron) (Europe/Berlin)")
    assert settings.early_tick_seconds == 0  # or it would start one every six minutes all the same


def test_nothing_starts_in_quiet_hours(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(tick(instance), dg.RunRequest)
    hour = datetime.now(UTC).hour
    monkeypatch.setenv("NAMI_AMP_QUIET_HOURS", f"{(hour - 1) % 24:02}:00-{(hour + 2) % 24:02}:00")
    skipped = tick(instance)
    assert isinstance(skipped, dg.SkipReason)
    assert f"T{(hour + 2) % 24:02}:00:00Z" in (skipped.skip_message or "")
    pipeline = PipelineSession(stage.settings.replace(quiet_hours=Settings.load().quiet_hours))
    early = early_micro_batch(dg.build_sensor_context(instance=instance), pipeline=pipeline)
    assert isinstance(early, dg.SkipReason)
    assert "quiet hours" in (early.skip_message or "")


@pytest.mark.slow
def test_a_schedule_that_was_switched_off_under_its_old_name_stays_off(instance: dg.DagsterInstance) -> None:
    def switch(name: str, status: InstigatorStatus) -> None:
        origin = RemoteInstigatorOrigin(
            RemoteRepositoryOrigin(InProcessCodeLocationOrigin(LoadableTargetOrigin()), "__repository__"), name
        )
        state = InstigatorState(origin, InstigatorType.SCHEDULE, status, ScheduleInstigatorData("* * * * *", None))
        known = {one.name for one in instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE)}
        (instance.update_instigator_state if name in known else instance.add_instigator_state)(state)

    switch("micro_batch_every_5_minutes", InstigatorStatus.RUNNING)
    assert isinstance(tick(instance), dg.RunRequest)
    switch("micro_batch_every_5_minutes", InstigatorStatus.STOPPED)
    skipped = tick(instance)
    assert isinstance(skipped, dg.SkipReason)
    assert "switched off as 'micro_batch_every_5_minutes'" in (skipped.skip_message or "")
    switch("micro_batch_schedule", InstigatorStatus.DECLARED_IN_CODE)  # what it is while nobody touches it
    assert isinstance(tick(instance), dg.SkipReason)
    switch("micro_batch_schedule", InstigatorStatus.RUNNING)
    assert isinstance(tick(instance), dg.RunRequest)


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
    return (
        set(instance.get_dynamic_partitions("nami_apps")),
        set(instance.get_dynamic_partitions("nami_app_integrations")),
    )


def test_sensor_adds_and_removes_partitions(stage: Scene, instance: dg.DagsterInstance) -> None:
    first = look(stage.settings, instance)
    assert isinstance(first, dg.SensorResult)
    assert not first.dynamic_partitions_requests
    assert isinstance(look(stage.settings, instance, first.cursor), dg.SkipReason)
    stage.add("radio")
    stage.add("fit")
    stage.add("fit", "eu")
    result = look(stage.settings, instance)
    assert isinstance(result, dg.SensorResult)
    assert keys(instance) == ({"radio", "fit"}, {"radio|main", "fit|main", "fit|eu"})
    assert isinstance(look(stage.settings, instance, result.cursor), dg.SkipReason)
    remove(stage.context.store, "fit/eu")
    remove(stage.context.store, "fit/main")
    look(stage.settings, instance)
    assert keys(instance) == ({"radio"}, {"radio|main"})


@pytest.mark.slow
def test_partitions_of_an_older_version_are_replaced_once(stage: Scene, instance: dg.DagsterInstance) -> None:
    """An older version had the names by themselves, and crossed them with the apps."""
    stage.add("radio")
    stage.add("fit", "eu")
    stage.add("fit", "gone")
    remove(stage.context.store, "fit/gone")
    instance.add_dynamic_partitions("nami_apps", ["radio", "fit"])
    instance.add_dynamic_partitions("nami_integrations", ["main", "eu", "gone", "of-another-store"])
    before = dg.MultiPartitionsDefinition(
        {name: dg.DynamicPartitionsDefinition(name=f"nami_{name}s") for name in ("app", "integration")}
    )

    @dg.asset(partitions_def=before, name="amplitude_deliveries")
    def of_before() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"delivered": 7})

    with ignore_beta_warnings():
        key = dg.MultiPartitionKey({"app": "radio", "integration": "main"})
        assert dg.materialize([of_before], instance=instance, partition_key=key).success
    label = store_label(stage.settings)
    asset = dg.AssetKey("amplitude_deliveries")
    get_and_update_asset_status_cache_value(instance, asset, partitions.app_integrations)  # a page opened too early
    result = look(stage.settings, instance, f"{label}:0")
    assert isinstance(result, dg.SensorResult)
    assert keys(instance) == ({"radio", "fit"}, {"radio|main", "fit|eu"})
    assert instance.get_dynamic_partitions("nami_integrations") == ["of-another-store"]
    with partition_loading_context(dynamic_partitions_store=instance):
        seen = get_and_update_asset_status_cache_value(instance, asset, partitions.app_integrations)
        assert seen is not None
        shown = seen.deserialize_materialized_partition_subsets(partitions.app_integrations)
        assert set(shown.get_partition_keys()) == {"radio|main"}
    (record,) = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset, asset_partitions=["radio|main"]), limit=5
    ).records
    assert record.asset_materialization is not None
    assert record.asset_materialization.metadata["delivered"].value == 7
    # A process of that version may still be at it: it is left in peace from now on, and the cursor means nothing to it.
    instance.add_dynamic_partitions("nami_integrations", ["main"])
    assert isinstance(look(stage.settings, instance, result.cursor), dg.SkipReason)
    assert (result.cursor or "").partition(":")[0] != label


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
    assert set(instance.get_dynamic_partitions(partitions.INTEGRATIONS)) == {"radio|main", "fit|main"}
