"""Partitions say what is wrong with them for as long as it is, and runs fail for news only."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from nami_amp_pipeline.dagster_support.run_history import clear_history
from nami_amp_pipeline.defs.ours import OURS
from nami_amp_pipeline.defs.partitions import app_integrations
from nami_amp_pipeline.operations import dead_letters
from nami_amp_pipeline.operations.standing import Standing, standings
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


@pytest.mark.slow
def test_a_refused_key_fails_one_run_and_its_partition_until_it_works_again(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    stage.add("quiet")
    assert not stage.run(instance).success
    assert shown(instance) == ({"fit|main"}, {"radio|main"})
    for _ in range(2):
        again = stage.run(instance)
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
    assert stage.run(instance).success
    assert shown(instance) == ({"fit|main", "radio|main"}, set())


@pytest.mark.slow
def test_an_outage_is_news_once_whatever_it_looks_like(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    outcomes = []
    for kind in ("503", "closed_without_answer", "500"):
        stage.sandbox.faults.add(Fault(kind))
        result = stage.run(instance)
        outcomes.append(result.success)
        facts = observed(instance, result)["radio|main"]
        assert facts["state"] == "unreachable"
        assert facts["next_try"] > 0
        assert shown(instance) == (set(), {"radio|main"})
        stage.sandbox.faults.remove()
    assert outcomes == [False, True, True]
    assert stage.run(instance).success
    assert shown(instance) == ({"radio|main"}, set())


@pytest.mark.slow
def test_a_throttled_user_keeps_its_partition_failed_while_others_move(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("throttle_user", share=0.1, seed=3))
    first = stage.run(instance)
    assert not first.success
    facts = observed(instance, first)["radio|main"]
    assert facts["state"] == "throttled"
    assert facts["whose_events_wait"]
    for seed in (8, 9):
        stage.load(apps=("radio",), seed=seed, users=20)
        before = stage.sandbox.audit.accepted
        assert stage.run(instance).success
        assert stage.sandbox.audit.accepted > before  # which made it count as materialized for a moment
        assert shown(instance) == (set(), {"radio|main"})


@pytest.mark.slow
def test_another_trouble_of_the_same_partition_is_news(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("503"))
    assert [stage.run(instance).success for _ in range(2)] == [False, True]
    stage.sandbox.faults.remove()
    stage.sandbox.faults.add(Fault("invalid_key"))
    assert [stage.run(instance).success for _ in range(2)] == [False, True]
    assert shown(instance) == (set(), {"radio|main"})


@pytest.mark.slow
def test_what_is_everybodys_fails_each_run(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("radio")  # and there is no warehouse
    assert [stage.run(instance).success for _ in range(3)] == [False] * 3
    assert shown(instance)[1] == set()


@pytest.mark.slow
def test_an_integration_that_is_switched_off_is_no_failure_any_more(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio", key=BAD_KEY)
    assert not stage.run(instance).success
    set_enabled(stage.context.store, "radio/main", enabled=False)
    assert stage.run(instance).success
    assert shown(instance) == ({"radio|main"}, set())


@pytest.mark.slow
def test_a_run_of_others_clears_nothing(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    assert not stage.run(instance).success
    assert stage.run(instance, "fit/main").success
    assert shown(instance) == ({"fit|main"}, {"radio|main"})


@pytest.mark.slow
def test_retention_keeps_the_run_that_a_partition_failed_in(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio", key=BAD_KEY)
    first = stage.run(instance)
    for _ in range(2):
        assert stage.run(instance).success
    later = datetime.now(UTC) + timedelta(days=40)
    clear_history(instance, OURS, 1, now=later)
    assert instance.get_run_by_id(first.run_id) is not None
    instance.wipe_asset_cached_status([DELIVERIES])
    assert shown(instance) == (set(), {"radio|main"})
    assert stage.run(instance).success  # it is still known


@pytest.mark.slow
def test_rejected_events_are_seen_at_their_partition(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("poison", share=0.2, seed=5, indexes="all"))
    result = stage.run(instance)
    assert result.success  # they are at an end; the others were delivered
    facts = observed(instance, result)["radio|main"]
    assert facts["rejected"] > 5
    assert "nami-amp dead-letters list" in facts["what_to_do"]
    assert checks(instance, result)["none_rejected", "radio|main"] is False
    assert checks(instance, result)["not_halted", "radio|main"] is True
    assert report(instance)["rejected_total"] == facts["rejected"]


@pytest.mark.slow
def test_rejected_events_keep_no_partition_failed_once_its_trouble_is_over(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    stage.sandbox.faults.add(Fault("poison", share=0.2, seed=5, indexes="all"))
    assert stage.run(instance).success
    stage.load(apps=("radio",), seed=9, users=5)
    stage.sandbox.faults.remove()
    stage.sandbox.faults.add(Fault("503"))
    assert not stage.run(instance).success
    assert shown(instance) == (set(), {"radio|main"})
    set_enabled(stage.context.store, "radio/main", enabled=False)  # nothing moves from here on
    assert stage.run(instance).success
    assert shown(instance) == ({"radio|main"}, set())
    stage.sandbox.faults.remove()
    set_enabled(stage.context.store, "radio/main", enabled=True)
    again = stage.run(instance)
    assert again.success
    assert observed(instance, again)["radio|main"]["rejected"] > 5
    assert shown(instance) == ({"radio|main"}, set())
    dead_letters.dismiss(stage.context.store, dead_letters.Filter())
    seen = stage.run(instance)
    assert observed(instance, seen) == {}
    assert report(instance)["rejected_total"] == 0
    assert report(instance)["dismissed_total"] > 5


@pytest.mark.slow
def test_a_micro_batch_asks_once_how_integrations_stand(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def count(*given: Any, **named: Any) -> list[Standing]:
        asked.append(given)
        return standings(*given, **named)

    for module in ("jobs", "assets", "checks", "delivery_report"):
        monkeypatch.setattr(f"nami_amp_pipeline.defs.{module}.standings", count)
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    for _ in range(3):
        asked.clear()
        stage.run(instance)
        assert len(asked) == 1


@pytest.mark.slow
def test_the_report_says_that_the_warehouse_cannot_be_read(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    assert stage.run(instance).success
    assert "what is wrong with the warehouse" not in report(instance)
    (stage.home / "warehouse.duckdb").rename(stage.home / "away.duckdb")
    assert not stage.run(instance).success
    found = report(instance)
    assert found["verdict"] == "0 of 1 integration need you, and the warehouse cannot be read"
    assert "there is no DuckDB file" in found["what is wrong with the warehouse"]
    (stage.home / "away.duckdb").rename(stage.home / "warehouse.duckdb")
    assert stage.run(instance).success
    assert report(instance)["verdict"] == "0 of 1 integration need you"


def test_the_report_has_all_integrations_and_does_not_mix_them(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio", key=BAD_KEY)
    stage.add("fit")
    stage.add("tv", enabled=False)
    stage.run(instance)
    stage.run(instance, "fit/main")  # also by a run for one of them
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


@pytest.mark.slow
def test_of_many_in_trouble_each_fails_and_a_few_are_observed(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nami_amp_pipeline.defs.jobs.LOGGED_PARTITIONS", 2)
    stage.load(apps=("radio",))
    names = {f"n-{number}" for number in range(4)}
    for name in names:
        stage.add("radio", name, key=BAD_KEY)
    result = stage.run(instance)
    assert not result.success
    assert shown(instance)[1] == {f"radio|{name}" for name in names}
    assert len(observed(instance, result)) == 2
