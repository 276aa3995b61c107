"""The sensors ``early_micro_batch``, ``lost_runs``, ``alerts`` and ``failed_runs``, evaluated as the daemon would."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path

import dagster as dg
import duckdb
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.alerts.alert_store import entries
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.alert_sensors import alerts, failed_runs, subject_of
from nami_amp_pipeline.defs.assets import ASSETS
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import STORE_TAG, store_label
from nami_amp_pipeline.defs.resources import PipelineResource, PipelineSession
from nami_amp_pipeline.defs.sensors import LOST, early_micro_batch, lost_runs_sensor
from nami_amp_pipeline.operations.backlog import due, not_captured
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.heartbeat import lost_runs
from nami_amp_pipeline.state.integration_changes import IntegrationChange, change
from nami_amp_pipeline.state.integrations import Integration, halt, set_enabled
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS, Scene, scene
from nami_amp_pipeline_tests.support.webhook import Webhook

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as made:
        yield made


@pytest.fixture
def stage(tmp_path: Path, webhook: Webhook) -> Iterator[Scene]:
    with scene(
        tmp_path,
        alert_webhook_url=webhook.url,
        early_tick_seconds="60",
        run_retry_seconds="0",
        alert_nothing_ingested_seconds="0",
    ) as made:
        yield made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


class Daemon:
    """Evaluates one sensor again and again, and keeps its cursor."""

    def __init__(self, sensor: dg.SensorDefinition, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.sensor = sensor
        self.settings = settings
        self.instance = instance
        self.cursor: str | None = None

    def __call__(self) -> str | dg.RunRequest:
        """Why it did nothing, or the run that it asks for."""
        pipeline = PipelineSession(self.settings)
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        try:
            result = self.sensor(context, pipeline=pipeline)
        finally:
            pipeline.close()
        if isinstance(result, dg.SkipReason):
            return result.skip_message or ""
        assert isinstance(result, dg.SensorResult)
        if result.cursor is not None:
            self.cursor = result.cursor
        if result.skip_reason is not None:
            return result.skip_reason.skip_message or ""
        (request,) = result.run_requests or ()
        return request


@pytest.mark.slow
def test_old_rows_in_the_warehouse_start_a_micro_batch(stage: Scene, instance: dg.DagsterInstance) -> None:
    look = Daemon(early_micro_batch, stage.settings, instance)
    assert look() == "nothing has waited for 60 s"
    stage.add("radio")
    assert "there is no DuckDB file" in str(look())
    stage.load(apps=("radio", "fit"))  # weeks old
    assert set(not_captured(stage.context)) == {"radio"}  # nobody asked for the other one
    request = look()
    assert isinstance(request, dg.RunRequest)
    assert request.run_key is None
    run_micro_batch(stage.settings)
    assert due(stage.context) == []
    assert look() == "nothing has waited for 60 s"


@pytest.mark.slow
def test_new_rows_are_left_to_the_schedule(stage: Scene, instance: dg.DagsterInstance) -> None:
    look = Daemon(early_micro_batch, stage.settings, instance)
    stage.add("radio")
    stage.load(apps=("radio",))
    run_micro_batch(stage.settings)
    with duckdb.connect(str(stage.home / "warehouse.duckdb")) as connection:
        connection.execute(
            "INSERT INTO nami_events BY NAME SELECT * REPLACE (id || '-new' AS id, now() AS ingested_at) FROM "
            "nami_events LIMIT 1"
        )
    assert [one.what for one in due(stage.context)] == ["rows of radio in the warehouse"]
    assert look() == "nothing has waited for 60 s"


@pytest.mark.slow
def test_a_micro_batch_under_way_is_left_alone(stage: Scene, instance: dg.DagsterInstance) -> None:
    look = Daemon(early_micro_batch, stage.settings, instance)
    stage.add("radio")
    stage.load(apps=("radio",))
    tags = {STORE_TAG: store_label(stage.settings)}
    run = instance.create_run_for_job(micro_batch, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert run.run_id in str(look())
    instance.delete_run(run.run_id)
    assert isinstance(look(), dg.RunRequest)


@pytest.mark.slow
def test_what_a_micro_batch_got_no_further_with_is_left_to_the_schedule(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    look = Daemon(early_micro_batch, stage.settings, instance)
    stage.add("radio")
    stage.load(apps=("radio",))
    assert isinstance(look(), dg.RunRequest)
    assert "made no progress on rows of radio" in str(look())
    stage.add("fit")
    stage.load(apps=("fit",), seed=8)  # another app's lag is news
    assert isinstance(look(), dg.RunRequest)
    assert "made no progress" in str(look())


@pytest.mark.slow
def test_events_that_could_be_posted_start_a_micro_batch(stage: Scene, instance: dg.DagsterInstance) -> None:
    from nami_amp_pipeline.stages import pipeline as stages

    one = stage.add("radio")
    stage.load(apps=("radio",))
    stages.capture_apps(stage.context)
    stages.snapshot_apps(stage.context)
    assert [found.what for found in due(stage.context)] == ["events of radio/main"]
    with stage.context.store.begin() as tx:
        halt(tx, one.id, "invalid_api_key", stage.context.now())
    assert due(stage.context) == []
    set_enabled(stage.context.store, one.key, enabled=True)
    assert isinstance(Daemon(early_micro_batch, stage.settings, instance)(), dg.RunRequest)
    set_enabled(stage.context.store, one.key, enabled=False)
    assert due(stage.context) == []


@pytest.mark.slow
def test_early_ticks_can_be_switched_off(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path / "new"), "NAMI_AMP_EARLY_TICK_SECONDS": "0"})
    assert "switched off" in str(Daemon(early_micro_batch, settings, instance)())
    assert Settings.load({"NAMI_AMP_TICK_MINUTES": "10"}).early_tick_seconds == 660
    assert Settings.load({}).early_tick_seconds == 360


@pytest.mark.parametrize("sensor", [early_micro_batch, alerts])
def test_sensors_make_no_store_where_there_is_none(
    tmp_path: Path, instance: dg.DagsterInstance, sensor: dg.SensorDefinition
) -> None:
    home = tmp_path / "empty"
    look = Daemon(sensor, Settings.load({"NAMI_AMP_HOME": str(home)}), instance)
    assert look() == "there is no state store yet"
    assert not home.exists()


def fail(
    stage: Scene, instance: dg.DagsterInstance, *integrations: str, launched_by: str = "dagster/schedule_name"
) -> dg.ExecuteInProcessResult:
    """Runs a micro-batch as the daemon's runs are, and lets the sensor see it if it failed."""
    run_id = str(uuid.uuid4())
    pipeline = PipelineSession(stage.settings, run_id=run_id)
    result = micro_batch.execute_in_process(
        run_config={"integrations": list(integrations), "console_log_level": "CRITICAL"},
        instance=instance,
        resources={"pipeline": pipeline},
        raise_on_error=False,
        run_id=run_id,
        # As the job has it, whose settings are those of its runs.
        tags={STORE_TAG: store_label(stage.settings), launched_by: "micro_batch_schedule"},
    )
    pipeline.close()
    if not result.success:
        see(stage, instance, result)
    return result


def see(stage: Scene, instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> str:
    """What the sensor of failed runs makes of one."""
    context = dg.build_run_status_sensor_context(
        sensor_name="failed_runs",
        dagster_event=result.get_run_failure_event(),
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        partition_key=None,
    ).for_run_failure()
    resource = PipelineSession(stage.settings)
    skipped = failed_runs(context, pipeline=resource)
    resource.close()
    assert isinstance(skipped, dg.SkipReason)
    return skipped.skip_message or ""


def bad(stage: Scene) -> Integration:
    stage.load(apps=("radio",))
    return stage.add("radio", key=BAD_KEY)


@pytest.mark.slow
def test_a_halt_is_told_once_by_an_alert_of_its_own(
    stage: Scene, instance: dg.DagsterInstance, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    stage.settings = stage.settings.replace(alert_lag_seconds=0)
    look = Daemon(alerts, stage.settings, instance)
    integration = bad(stage)
    assert not fail(stage, instance).success
    assert fail(stage, instance).success
    assert look() == "1 open: integration halted: radio/main"
    look()
    (halted,) = webhook.messages
    assert "*Integration halted*" in halted
    (page,) = {entry.alert.page for entry in entries(stage.context.store)}
    assert page == "/assets/amplitude_deliveries?view=events&partition=radio%7Cmain"
    set_enabled(stage.context.store, integration.key, enabled=True)
    assert "1 open" in str(look())  # enabled, but nothing has shown yet that it works
    set_enabled(stage.context.store, integration.key, enabled=False)
    assert look() == "nothing is wrong"
    assert [message[0] for message in webhook.messages] == ["🔴", "✅"]
    assert BAD_KEY not in "".join(webhook.messages)
    assert BAD_KEY not in caplog.text


@pytest.mark.slow
def test_the_all_clear_of_a_halt_comes_with_the_first_delivery(
    stage: Scene, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    stage.settings = stage.settings.replace(alert_lag_seconds=0)
    look = Daemon(alerts, stage.settings, instance)
    bad(stage)
    fail(stage, instance)
    look()
    new = IntegrationChange(api_key=Secret(GOOD_KEY), allow_shared_key=True)
    change(stage.context.store, stage.context.cipher, "radio/main", new)
    set_enabled(stage.context.store, "radio/main", enabled=True)
    look()
    assert [message[0] for message in webhook.messages] == ["🔴"]
    assert fail(stage, instance).success
    assert look() == "nothing is wrong"
    assert [message[0] for message in webhook.messages] == ["🔴", "✅"]


@pytest.mark.slow
def test_a_throttled_user_fails_a_run_and_only_its_end_is_an_all_clear(
    stage: Scene, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    stage.settings = stage.settings.replace(run_retry_seconds=0.0, alert_lag_seconds=0)
    look = Daemon(alerts, stage.settings, instance)
    stage.load(apps=("radio", "fit"))
    stage.add("radio")
    stage.add("fit")
    stage.sandbox.faults.add(Fault("throttle_user", user_id=None, share=0.1, seed=3))
    assert not fail(stage, instance).success
    look()
    (said,) = webhook.messages
    assert "*micro_batch*: fit|main: throttled since " in said
    assert fail(stage, instance).success  # it is no news any more, and it is not over
    assert fail(stage, instance, "radio/main").success  # nor does a run of others say so
    assert "1 open" in str(look())
    stage.sandbox.faults.remove()
    stage.settings = stage.settings.replace(run_retry_seconds=90.0)
    assert fail(stage, instance).success
    assert look() == "nothing is wrong"


@pytest.mark.slow
def test_warehouse_that_cannot_be_read_is_told_at_the_second_look(
    stage: Scene, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    stage.settings = stage.settings.replace(sensor_seconds=0)
    stage.add("radio")
    assert not fail(stage, instance).success
    late = Daemon(alerts, stage.settings.replace(sensor_seconds=3_600), instance)
    assert late() == "1 open: warehouse cannot be read: warehouse"
    assert webhook.messages == []  # a loader may hold the file for a moment
    look = Daemon(alerts, stage.settings, instance)
    look()
    (said,) = webhook.messages
    assert "*Warehouse cannot be read*" in said
    assert "there is no DuckDB file" in said
    stage.load(apps=("radio",))
    look()
    assert [message[0] for message in webhook.messages if "Warehouse" in message] == ["🔴", "✅"]


@pytest.mark.slow
def test_amplitude_that_does_not_answer_is_told_and_its_answer_is_the_all_clear(
    stage: Scene, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    stage.settings = stage.settings.replace(run_retry_seconds=0.0, alert_lag_seconds=0)
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("503"))
    assert not fail(stage, instance).success
    look = Daemon(alerts, stage.settings, instance)
    assert look() == "nothing is wrong"  # not for an outage of a moment
    with stage.context.store.begin() as tx:
        earlier = tables.requests.c.sent_at - 3_600_000_000
        tx.execute(sa.update(tables.requests).values(sent_at=earlier))
    assert look() == "1 open: amplitude unreachable: radio/main"
    assert fail(stage, instance).success
    assert "1 open" in str(look())
    stage.sandbox.faults.remove()
    assert fail(stage, instance).success
    assert look() == "nothing is wrong"
    assert [message[0] for message in webhook.messages] == ["🔴", "✅"]


@pytest.mark.slow
def test_a_typing_error_of_a_person_alerts_nobody(stage: Scene, instance: dg.DagsterInstance, webhook: Webhook) -> None:
    stage.settings = stage.settings.replace(alert_lag_seconds=0)
    stage.load(apps=("radio",))
    stage.add("radio")
    result = fail(stage, instance, "radio/mian", launched_by="dagster/launched_by")
    assert not result.success
    assert "a person launched it" in see(stage, instance, result)
    assert Daemon(alerts, stage.settings, instance)() == "nothing is wrong"
    fail(stage, instance, "radio/mian")  # what a schedule does is no typing error of the moment
    assert "1 open: run failed: micro_batch (radio/mian)" in str(Daemon(alerts, stage.settings, instance)())


def a_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **partition: str) -> dg.DagsterRun:
    """A run of the asset of deliveries, as the pages launch one."""
    (asset,) = (made for made in ASSETS if made.key == dg.AssetKey("amplitude_deliveries"))
    job = dg.Definitions(
        assets=[asset], resources={"pipeline": PipelineResource()}
    ).resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(job, asset_selection=frozenset({asset.key}), status=status, tags=partition)
    assert run.job_name == "__ASSET_JOB"
    return run


@pytest.mark.slow
def test_runs_of_assets_are_called_by_assets_and_partitions(instance: dg.DagsterInstance) -> None:
    one = a_run(instance, dg.DagsterRunStatus.FAILURE, **{"dagster/partition": "radio|main"})
    assert subject_of(one) == "amplitude_deliveries radio|main"
    instance.add_dynamic_partitions("nami_app_integrations", ["fit|main", "tv|main"])
    ends = {f"dagster/asset_partition_range_{end}": key for end, key in (("start", "fit|main"), ("end", "tv|main"))}
    assert (
        subject_of(a_run(instance, dg.DagsterRunStatus.FAILURE, **ends)) == "amplitude_deliveries fit|main to tv|main"
    )


@pytest.mark.slow
def test_store_that_is_away_is_told_once_and_its_return_too(
    stage: Scene, instance: dg.DagsterInstance, webhook: Webhook
) -> None:
    look = Daemon(alerts, stage.settings, instance)
    stage.context.store.close()
    aside = stage.home / "aside"
    store = stage.home / "state.db"
    for file in stage.home.glob("state.db*"):
        file.rename(aside) if file == store else file.unlink()
    store.write_text("this is no database, and long enough to be seen as none" * 100)
    for _ in range(3):
        assert "state store" in str(look())
    (said,) = webhook.messages  # the second look told it: the first could have been a restart
    assert "*State store unavailable*" in said
    store.unlink()
    aside.rename(store)
    for _ in range(2):
        assert look() == "nothing is wrong"
    assert [message[0] for message in webhook.messages] == ["🔴", "✅"]


@pytest.mark.parametrize("sensor", [alerts, early_micro_batch])
@pytest.mark.slow
def test_a_look_asks_the_store_no_more_often_for_more_apps(
    stage: Scene, instance: dg.DagsterInstance, sensor: dg.SensorDefinition
) -> None:
    stage.load(apps=("radio",))
    stage.add("app-0")
    few = statements(Daemon(sensor, stage.settings, instance))
    for number in range(1, 50):
        stage.add(f"app-{number}")
    assert 0 < statements(Daemon(sensor, stage.settings, instance)) <= few


def statements(look: Daemon) -> int:
    """How many SQL statements the second of two looks sends to the state store."""
    look()
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        sent.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        look()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    return len(sent)


def started(instance: dg.DagsterInstance, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> str:
    return instance.create_run_for_job(micro_batch, status=status).run_id


def status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.mark.slow
def test_runs_whose_machine_is_gone_are_ended_and_others_are_not(stage: Scene, instance: dg.DagsterInstance) -> None:
    look = Daemon(lost_runs_sensor, stage.settings, instance)
    gone, stopping, at_work, unheard = (
        started(instance),
        started(instance, dg.DagsterRunStatus.CANCELING),
        started(instance),
        started(instance),
    )
    elsewhere = Context.open(stage.settings, run_id="elsewhere", clock=lambda: time.time() - 3_600)
    for run_id in (gone, stopping):
        assert elsewhere.store.acquire([f"run:{run_id}"])
    elsewhere.store.close()
    living = PipelineSession(stage.settings, at_work)
    living.open()
    assert gone in str(look())
    assert status_of(instance, gone) is dg.DagsterRunStatus.FAILURE
    assert status_of(instance, stopping) is dg.DagsterRunStatus.CANCELED
    assert status_of(instance, at_work) is dg.DagsterRunStatus.STARTED
    assert status_of(instance, unheard) is dg.DagsterRunStatus.STARTED
    events = [record.event_log_entry.dagster_event for record in instance.get_records_for_run(gone).records]
    assert LOST in [event.message for event in events if event is not None]
    assert look() == "no run is lost"
    living.close()
    assert look() == "no run is lost"
    assert lost_runs(stage.context.store) == []


def test_a_run_whose_process_is_gone_before_it_was_heard_of_is_ended(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery has given it away, and would call it alive for good."""
    waiting, taken = (started(instance, dg.DagsterRunStatus.STARTING) for _ in range(2))
    begun, at_work = (started(instance) for _ in range(2))
    for run_id in (waiting, taken, begun, at_work):
        instance.add_run_tags(run_id, {STORE_TAG: store_label(stage.settings)})
    runs = {run.run_id: run for run in instance.get_runs()}
    for run_id in (taken, begun, at_work):
        instance.report_engine_event("Started process for run (pid: 1).", runs[run_id])
    instance.report_engine_event("It logged that the run started, and did not come to its status.", runs[taken])
    instance.report_engine_event("Celery task has been forwarded to the broker.", runs[waiting])
    living = PipelineSession(stage.settings, at_work)
    living.open()
    look = Daemon(lost_runs_sensor, stage.settings, instance)
    assert look() == "no run is lost", "they may still load code"

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls.fromtimestamp(time.time() + stage.settings.lease_seconds + 1, tz)

    monkeypatch.setattr("nami_amp_pipeline.defs.sensors.datetime", Later)
    said = str(look())
    assert {taken, begun} == set(said.removeprefix("ended: ").split(", "))
    assert {status_of(instance, run_id) for run_id in (taken, begun)} == {dg.DagsterRunStatus.FAILURE}
    assert status_of(instance, waiting) is dg.DagsterRunStatus.STARTING, "in the queue of the workers"
    assert status_of(instance, at_work) is dg.DagsterRunStatus.STARTED
    assert look() == "no run is lost"
    living.close()


@pytest.mark.slow
def test_a_run_at_work_is_heard_of_for_as_long_as_it_takes(tmp_path: Path) -> None:
    settings = Settings.load(
        {"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_LEASE_SECONDS": "5", "NAMI_AMP_HTTP_TIMEOUT_SECONDS": "2"}
    )
    living = PipelineSession(settings, "run-1")
    store = living.open().store
    time.sleep(7)
    assert lost_runs(store) == []
    with store.begin() as tx:
        names = tx.execute(sa.select(tables.leases.c.name)).scalars().all()
    assert names == ["run:run-1"]
    living.close()
    context = Context.open(settings)
    with context.store.begin() as tx:
        assert tx.execute(sa.select(tables.leases.c.name)).scalars().all() == []
    context.store.close()
