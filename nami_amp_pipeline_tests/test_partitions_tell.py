"""Partitions say what is wrong with them for as long as it is, and runs fail for news only."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from nami_amp_pipeline.dagster_support.run_history import clear_history
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import OURS
from nami_amp_pipeline.defs.partitions import app_integrations
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.state.integration_changes import IntegrationChange, change
from nami_amp_pipeline.state.integrations import set_enabled
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS, Scene, scene

pytestmark = pytest.mark.filterwarnings(WARNINGS)

DELIVERIES = dg.AssetKey("amplitude_deliveries")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path, run_retry_seconds="0") as made:
        yield made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


def run(stage: Scene, instance: dg.DagsterInstance, *integrations: str) -> dg.ExecuteInProcessResult:
    pipeline = PipelineSession(stage.settings, run_id=str(uuid.uuid4()))
    try:
        return micro_batch.execute_in_process(
            run_config={"integrations": list(integrations), "console_log_level": "CRITICAL"},
            instance=instance,
            resources={"pipeline": pipeline},
            raise_on_error=False,
        )
    finally:
        pipeline.close()


def shown(instance: dg.DagsterInstance) -> tuple[set[str], set[str]]:
    """The partitions that Dagster's pages count as materialized and not failed, and as failed."""
    with partition_loading_context(dynamic_partitions_store=instance):
        seen = get_and_update_asset_status_cache_value(instance, DELIVERIES, app_integrations)
        if seen is None:
            return set(), set()
        failed = set(seen.deserialize_failed_partition_subsets(app_integrations).get_partition_keys())
        there = set(seen.deserialize_materialized_partition_subsets(app_integrations).get_partition_keys())
        return there - failed, failed


def observed(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Metadata, and the description, of what a run observed, by partition."""
    found: dict[str, dict[str, Any]] = {}
    for entry in instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION):
        assert entry.dagster_event is not None
        seen = entry.dagster_event.asset_observation_data.asset_observation
        assert seen.partition is not None
        assert seen.partition not in found
        assert str(seen.description).startswith(f"{seen.partition}: ")
        found[seen.partition] = {name: value.value for name, value in seen.metadata.items()}
    return found


def checks(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], bool]:
    found = {}
    for entry in instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        assert entry.dagster_event is not None
        check = entry.dagster_event.asset_check_evaluation_data
        assert str(check.description).startswith(f"{check.partition}: ")
        found[check.check_name, check.partition] = check.passed
    return found


def report(instance: dg.DagsterInstance) -> dict[str, Any]:
    (record,) = instance.fetch_materializations(dg.AssetKey("delivery_report"), limit=1).records
    assert record.asset_materialization is not None
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


def repair(stage: Scene, key: str) -> None:
    new = IntegrationChange(api_key=Secret(GOOD_KEY), allow_shared_key=True)
    change(stage.context.store, stage.context.cipher, key, new)
    set_enabled(stage.context.store, key, enabled=True)


def test_a_refused_key_fails_one_run_and_its_partition_until_it_works_again(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    stage.add("quiet")
    assert not run(stage, instance).success
    assert shown(instance) == ({"fit|main"}, {"radio|main"})
    for _ in range(2):
        again = run(stage, instance)
        assert again.success
        assert shown(instance) == ({"fit|main"}, {"radio|main"})
        facts = observed(instance, again)["radio|main"]
        assert (facts["state"], facts["why"]) == ("halted", "Amplitude does not know the API key at this endpoint")
        assert facts["pending"] > 50
        assert facts["since"] > 0
        assert "`nami-amp integrations enable radio/main`" in facts["what_to_do"]
        assert "nami-amp trace" in facts["did_it_arrive"]
        assert checks(instance, again)["not_halted", "radio|main"] is False
    repair(stage, "radio/main")
    assert run(stage, instance).success
    assert shown(instance) == ({"fit|main", "radio|main"}, set())


def test_an_outage_is_news_once_whatever_it_looks_like(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    outcomes = []
    for kind in ("503", "closed_without_answer", "500"):
        stage.sandbox.faults.add(Fault(kind))
        result = run(stage, instance)
        outcomes.append(result.success)
        facts = observed(instance, result)["radio|main"]
        assert facts["state"] == "unreachable"
        assert facts["next_try"] > 0
        assert shown(instance) == (set(), {"radio|main"})
        stage.sandbox.faults.remove()
    assert outcomes == [False, True, True]
    assert run(stage, instance).success
    assert shown(instance) == ({"radio|main"}, set())


def test_a_throttled_user_keeps_its_partition_failed_while_others_move(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("throttle_user", share=0.1, seed=3))
    first = run(stage, instance)
    assert not first.success
    facts = observed(instance, first)["radio|main"]
    assert facts["state"] == "throttled"
    assert facts["whose_events_wait"]
    for seed in (8, 9):
        stage.load(apps=("radio",), seed=seed, users=20)
        before = stage.sandbox.audit.accepted
        assert run(stage, instance).success
        assert stage.sandbox.audit.accepted > before  # which made it count as materialized for a moment
        assert shown(instance) == (set(), {"radio|main"})


def test_another_trouble_of_the_same_partition_is_news(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("503"))
    assert [run(stage, instance).success for _ in range(2)] == [False, True]
    stage.sandbox.faults.remove()
    stage.sandbox.faults.add(Fault("invalid_key"))
    assert [run(stage, instance).success for _ in range(2)] == [False, True]
    assert shown(instance) == (set(), {"radio|main"})


def test_what_is_everybodys_fails_each_run(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("radio")  # and there is no warehouse
    assert [run(stage, instance).success for _ in range(3)] == [False] * 3
    assert shown(instance)[1] == set()


def test_an_integration_that_is_switched_off_is_no_failure_any_more(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio", key=BAD_KEY)
    assert not run(stage, instance).success
    set_enabled(stage.context.store, "radio/main", enabled=False)
    assert run(stage, instance).success
    assert shown(instance) == ({"radio|main"}, set())


def test_a_run_of_others_clears_nothing(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    assert not run(stage, instance).success
    assert run(stage, instance, "fit/main").success
    assert shown(instance) == ({"fit|main"}, {"radio|main"})


def test_retention_keeps_the_run_that_a_partition_failed_in(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio", key=BAD_KEY)
    first = run(stage, instance)
    for _ in range(2):
        assert run(stage, instance).success
    later = datetime.now(UTC) + timedelta(days=40)
    clear_history(instance, OURS, 1, now=later)
    assert instance.get_run_by_id(first.run_id) is not None
    instance.wipe_asset_cached_status([DELIVERIES])
    assert shown(instance) == (set(), {"radio|main"})
    assert run(stage, instance).success  # it is still known


def test_rejected_events_are_seen_at_their_partition(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("poison", share=0.2, seed=5, indexes="all"))
    result = run(stage, instance)
    assert result.success  # they are at an end; the others were delivered
    facts = observed(instance, result)["radio|main"]
    assert facts["rejected"] > 5
    assert "nami-amp dead-letters list" in facts["what_to_do"]
    assert checks(instance, result)["none_rejected", "radio|main"] is False
    assert checks(instance, result)["not_halted", "radio|main"] is True
    assert report(instance)["rejected_total"] == facts["rejected"]


def test_the_report_has_all_integrations_and_does_not_mix_them(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    stage.add("tv", enabled=False)
    run(stage, instance)
    run(stage, instance, "fit/main")  # also by a run for one of them
    found = report(instance)
    assert found["verdict"] == "1 of 3 integrations needs you"
    rows = {record.data["integration"]: record.data for record in found["integrations"].records}
    assert list(rows) == ["radio/main", "fit/main", "tv/main"]  # who needs you comes first
    assert (rows["radio/main"]["state"], rows["tv/main"]["state"]) == ("halted", "off")
    assert found["pending of radio/main"] == rows["radio/main"]["pending"] == found["pending_total"] > 0
    assert found["delivered of fit/main"] == found["delivered_total"] == rows["fit/main"]["delivered"] > 0
    link = "[radio|main](/assets/amplitude_deliveries?view=events&partition=radio%7Cmain)"
    assert link in found["what is wrong with radio/main"]
    assert "what is wrong with fit/main" not in found


def test_of_many_in_trouble_each_fails_and_a_few_are_observed(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nami_amp_pipeline.defs.jobs.LOGGED_PARTITIONS", 2)
    stage.load(apps=("radio",))
    names = {f"n-{number}" for number in range(4)}
    for name in names:
        stage.add("radio", name, key=BAD_KEY)
    result = run(stage, instance)
    assert not result.success
    assert shown(instance)[1] == {f"radio|{name}" for name in names}
    assert len(observed(instance, result)) == 2
