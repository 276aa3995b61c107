"""The asset ``amplitude_reconciliation``: each day on its page, a check that warns and then fails, a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from starlette.testclient import TestClient

from nami_amp_pipeline.control_center.app import create_app
from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.defs.asked_comparisons import asked_comparisons
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.defs.reconciliation import (
    CHECK,
    amplitude_holds_all,
    amplitude_reconciliation,
    reconcile,
    reconcile_daily,
)
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.integrations import IntegrationChange
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.control_center import SAME_ORIGIN
from nami_amp_pipeline_tests.support.held_by_amplitude import SECRET_KEY, Held, held_by_amplitude
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

KEY = dg.AssetKey("amplitude_reconciliation")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Held]:
    """Events that were delivered, and the evening of the day."""
    with held_by_amplitude(tmp_path) as made:
        made.load(20)
        made.add()
        made.tick()
        made.later(hours=6)
        yield made


@pytest.fixture
def instance(world: Held) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        add_partitions(made, all_integrations(world.pipe.context.store))
        yield made


def session(world: Held) -> PipelineSession:
    return PipelineSession(world.pipe.settings, run_id="test", clock=world.pipe.clock)


def run_job(world: Held, instance: dg.DagsterInstance, **config: Any) -> dg.ExecuteInProcessResult:
    return reconcile.execute_in_process(
        instance=instance,
        resources={"pipeline": session(world)},
        run_config={"ops": {"compare_days": {"config": config}}},
        raise_on_error=False,
    )


def days_of(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Metadata of the materializations of the partition, the oldest first."""
    records = instance.fetch_materializations(dg.AssetRecordsFilter(KEY, asset_partitions=["radio|main"]), limit=50)
    found = [record.asset_materialization for record in reversed(records.records)]
    return [{name: value.value for name, value in made.metadata.items()} for made in found if made is not None]


def checked(instance: dg.DagsterInstance) -> tuple[bool, dg.AssetCheckSeverity, str]:
    history = instance.event_log_storage.get_asset_check_execution_history(dg.AssetCheckKey(KEY, CHECK), 10)
    record = next(record for record in history if record.partition == "radio|main")
    assert record.event is not None
    evaluation = record.event.asset_check_evaluation
    assert evaluation is not None
    return evaluation.passed, evaluation.severity, evaluation.description or ""


@pytest.mark.slow
@pytest.mark.contract("8.8")
def test_the_job_compares_the_days_that_are_due_and_shows_each(world: Held, instance: dg.DagsterInstance) -> None:
    total = len(world.held())
    world.later(days=2)
    assert run_job(world, instance).success
    first, second = days_of(instance)
    assert first["result"] == f"2026-12-01: Amplitude holds {total:,} of {total:,}"
    assert (first["delivered"], first["held"], first["hours_compared"]) == (total, total, 24)
    assert "differences" not in first
    assert second["delivered"] == 0
    assert [row.data["day"] for row in second["by_day"].records] == ["2026-12-01", "2026-12-02"]
    assert checked(instance)[0]
    assert run_job(world, instance).success
    assert len(days_of(instance)) == 2, "what is complete and clean is not compared again"


@pytest.mark.slow
@pytest.mark.contract("8.8")
def test_the_check_warns_until_the_day_is_complete_and_fails_after(world: Held, instance: dg.DagsterInstance) -> None:
    lost = sorted(event["insert_id"] for event in world.held())[:2]
    world.damage("lost_after_200", lost)
    cut = sorted(event["insert_id"] for event in world.held())[:1]
    world.damage("cut_property", cut, property_name="namiml_event_category", characters=1)
    assert run_job(world, instance, first_day="2026-12-01").success
    passed, severity, said = checked(instance)
    assert (passed, severity) == (False, dg.AssetCheckSeverity.WARN)
    assert said.startswith("radio|main: 2026-12-01: Amplitude holds ")
    assert "2 missing" in said
    world.later(days=1)
    assert run_job(world, instance, integrations=["radio/main"]).success
    assert checked(instance)[:2] == (False, dg.AssetCheckSeverity.ERROR)
    (*_, newest) = days_of(instance)
    assert (newest["missing"], newest["altered"]) == (2, 1)
    assert "--from 2026-12-01 --repair" in newest["what_to_do"]
    samples = [row.data for row in newest["sent_and_held"].records]
    assert {row["event"] for row in samples if row["class"] == "missing"} == set(lost)
    (altered,) = (row for row in samples if row["class"] == "altered")
    assert (altered["field"], altered["sent"][:2], altered["held"][:2]) == (
        "namiml_event_category", altered["held"][:2], altered["sent"][:2],
    )  # fmt: skip
    world.repair(world.reconcile())
    world.tick()
    world.later(days=1)
    assert run_job(world, instance).success
    passed, _, said = checked(instance)
    assert not passed
    assert "missing" not in said, "what was sent again is there"


@pytest.mark.slow
@pytest.mark.contract("8.8")
def test_a_partition_is_compared_by_hand_and_the_secret_is_nowhere(world: Held, instance: dg.DagsterInstance) -> None:
    result = dg.materialize(
        [amplitude_reconciliation, amplitude_holds_all],
        instance=instance,
        partition_key="radio|main",
        resources={"pipeline": session(world)},
        run_config={"ops": {"amplitude_reconciliation": {"config": {"first_day": "2026-12-01", "with_now": True}}}},
    )
    assert result.success
    (day,) = days_of(instance)
    assert day["delivered"] == len(world.held())
    entries = [str(record.event_log_entry) for record in instance.get_records_for_run(result.run_id).records]
    assert not any(SECRET_KEY in entry for entry in entries)
    assert result.get_asset_check_evaluations()[-1].passed


@pytest.mark.slow
def test_one_that_cannot_be_compared_does_not_keep_others_from_it(world: Held, instance: dg.DagsterInstance) -> None:
    world.add_another("fit", secret="wrong-secret-0123456789abcdef")
    add_partitions(instance, all_integrations(world.pipe.context.store))
    world.later(days=1)
    result = run_job(world, instance)
    assert not result.success
    assert len(days_of(instance)) == 1
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    assert "fit|main" in str(failure.step_failure_data.user_failure_data)
    assert "radio|main" not in str(failure.step_failure_data.user_failure_data)


@pytest.mark.contract("8.8")
def test_the_schedule_starts_where_a_secret_key_is(tmp_path: Path) -> None:
    with held_by_amplitude(tmp_path) as world, dagster_instance(world.pipe.settings) as instance:
        for secret in (None, "given"):
            if secret is not None:
                world.add()
            with dg.build_schedule_context(
                instance=instance,
                scheduled_execution_time=datetime(2026, 12, 2, 4, 23, tzinfo=UTC),
                resources={"pipeline": session(world)},
            ) as context:
                result = reconcile_daily(context)
            if secret is None:
                assert isinstance(result, dg.SkipReason)
                assert "no integration has a secret key" in (result.skip_message or "")
            else:
                assert isinstance(result, dg.RunRequest)
    assert reconcile_daily.default_status is dg.DefaultScheduleStatus.RUNNING


@pytest.mark.slow
def test_what_a_person_asks_for_on_a_page_is_compared_by_the_daemon(world: Held, instance: dg.DagsterInstance) -> None:
    world.later(days=1)
    context = dg.build_sensor_context(instance=instance)
    assert isinstance(asked_comparisons(context, pipeline=session(world)), dg.SkipReason)
    operations = Operations.over(world.pipe.context, by="Ana")
    pages = TestClient(
        create_app(world.pipe.settings, clock=world.pipe.clock), base_url="http://localhost", headers=SAME_ORIGIN
    )
    page = "/apps/radio/reconciliation/main"
    assert "Compare yesterday now</button>" in pages.get(page).text
    answer = pages.post(f"{page}/compare")
    assert "Asked for. Dagster" in answer.text
    assert "<code>nami-amp reconcile radio/main --from 2026-12-01</code>" in answer.text
    assert "<button disabled>Compare yesterday now" in answer.text
    pages.post(f"{page}/compare")  # two people at once
    result = asked_comparisons(context, pipeline=session(world))
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    run = reconcile.execute_in_process(
        run_config=request.run_config, instance=instance, resources={"pipeline": session(world)}, tags=request.tags
    )
    assert run.success
    assert len(operations.reconciled("radio/main")) == 1
    text = pages.get(page).text
    assert "is to be compared" not in text
    assert "<button>Compare yesterday now" in text
    assert isinstance(asked_comparisons(context, pipeline=session(world)), dg.SkipReason)
    (row,), _ = operations.app_history("radio", kind="comparisons")
    assert row.said == "Comparison of 2026-12-01: done"


@pytest.mark.slow
def test_a_comparison_that_was_asked_for_and_cannot_be_made_says_why(world: Held, instance: dg.DagsterInstance) -> None:
    operations = Operations.over(world.pipe.context, by="Ana")
    operations.ask_comparison("radio/main", world.pipe.context.now())
    operations.change("radio/main", IntegrationChange(secret_key=None))
    assert not run_job(world, instance, integrations=["radio/main"], first_day="2026-12-01").success
    asked = operations.asked_comparison("radio/main")
    assert asked is not None
    assert "has no secret key" in (asked.error or "")
    with pytest.raises(Misconfigured, match="no secret key"):
        operations.ask_comparison("radio/main", 0)
