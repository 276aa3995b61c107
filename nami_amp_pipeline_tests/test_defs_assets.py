"""Each asset does its stage for its own partitions, and says in its metadata what it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from nami_amp_pipeline.defs.assets import ASSETS as DEFINED
from nami_amp_pipeline.defs.checks import asset_checks
from nami_amp_pipeline.defs.partitions import add_partitions, app_integrations
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.sandbox.faults import Fault
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.scene import BAD_KEY, WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

ASSETS = {asset.key.to_user_string(): asset for asset in DEFINED}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        made.load()
        yield made


@pytest.fixture
def instance(stage: Scene) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def materialize(
    stage: Scene, instance: dg.DagsterInstance, name: str, key: str | None = None, *, tags: dict[str, str] | None = None
) -> dg.ExecuteInProcessResult:
    add_partitions(instance, all_integrations(stage.context.store))
    pipeline = PipelineSession(stage.settings, run_id="by-hand")
    checks = list(asset_checks) if name == "amplitude_deliveries" else []
    try:
        return dg.materialize(
            [ASSETS[name], *checks],
            instance=instance,
            partition_key=key,
            resources={"pipeline": pipeline},
            raise_on_error=False,
            tags=tags,
        )
    finally:
        pipeline.close()


def materialized(result: dg.ExecuteInProcessResult, name: str) -> dict[str, dict[str, Any]]:
    """Metadata by partition of the materializations of one asset."""
    return {
        str(event.partition): {key: value.value for key, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(name)
    }


@pytest.mark.slow
def test_each_asset_works_for_its_own_partition_only(stage: Scene, instance: dg.DagsterInstance) -> None:
    radio, fit = stage.add("radio"), stage.add("fit")

    captured = materialized(materialize(stage, instance, "nami_events", "radio"), "nami_events")
    assert list(captured) == ["radio"]
    assert captured["radio"]["dagster/partition_row_count"] > 50
    assert len(captured["radio"]["preview"].records) == 5
    assert stage.status(fit)["fit/main"].captured == 0

    snapshots = materialized(
        materialize(stage, instance, "user_property_snapshots", "radio"), "user_property_snapshots"
    )
    assert snapshots["radio"]["users"] >= 10
    assert snapshots["radio"]["truncated_arrays"] == 0

    prepared = materialized(materialize(stage, instance, "amplitude_events", "radio|main"), "amplitude_events")
    facts = prepared["radio|main"]
    assert facts["captured"] == facts["to_send"] + facts["skipped"] + facts["dead_letters"] + facts["waiting_for_login"]
    assert stage.status(radio)["radio/main"].pending == facts["to_send"]

    result = materialize(stage, instance, "amplitude_deliveries", "radio|main")
    assert result.success
    delivered = materialized(result, "amplitude_deliveries")["radio|main"]
    assert delivered["delivered"] == facts["to_send"] == stage.sandbox.audit.accepted
    assert delivered["pending"] == 0
    assert delivered["first_event"] < delivered["last_event"]
    assert {row.data["HTTP status and outcome"] for row in delivered["requests_by_status"].records} == {"200 delivered"}
    assert "nami-amp trace" in delivered["did_it_arrive"]
    assert delivered["state"] == "delivering"
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(checks) == {"conservation", "lag", "not_halted", "none_rejected"}
    assert all(check.passed and check.partition == "radio|main" for check in checks.values())
    assert all(str(check.description).startswith("radio|main: ") for check in checks.values())
    assert stage.status(fit)["fit/main"].captured == 0


@pytest.mark.slow
def test_range_of_partitions_in_one_run(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("fit")
    stage.add("radio")
    tags = {"dagster/asset_partition_range_start": "fit", "dagster/asset_partition_range_end": "radio"}
    captured = materialized(materialize(stage, instance, "nami_events", tags=tags), "nami_events")
    assert set(captured) == {"fit", "radio"}
    assert all(facts["dagster/partition_row_count"] > 50 for facts in captured.values())
    materialize(stage, instance, "user_property_snapshots", tags=tags)
    pairs = {
        "dagster/asset_partition_range_start": "fit|main",
        "dagster/asset_partition_range_end": "radio|main",
    }
    assert set(materialized(materialize(stage, instance, "amplitude_events", tags=pairs), "amplitude_events")) == {
        "fit|main",
        "radio|main",
    }
    result = materialize(stage, instance, "amplitude_deliveries", tags=pairs)
    assert result.success
    assert set(materialized(result, "amplitude_deliveries")) == {"fit|main", "radio|main"}
    assert all(check.passed for check in result.get_asset_check_evaluations())


@pytest.mark.parametrize("name", ["amplitude_events", "amplitude_deliveries"])
def test_partition_of_an_integration_that_was_removed_is_left_alone(
    stage: Scene, instance: dg.DagsterInstance, name: str
) -> None:
    stage.add("radio", "main")
    instance.add_dynamic_partitions("nami_app_integrations", ["radio|other"])
    result = materialize(stage, instance, name, "radio|other")
    assert result.success
    assert materialized(result, name) == {}


def test_app_whose_integrations_are_off_is_left_alone(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("radio", enabled=False)
    result = materialize(stage, instance, "nami_events", "radio")
    assert result.success
    assert materialized(result, "nami_events") == {}


@pytest.mark.slow
def test_refused_key_fails_the_asset_in_plain_words(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("radio", key=BAD_KEY)
    for name, key in (
        ("nami_events", "radio"),
        ("user_property_snapshots", "radio"),
        ("amplitude_events", "radio|main"),
    ):
        assert materialize(stage, instance, name, key).success
    result = materialize(stage, instance, "amplitude_deliveries", "radio|main")
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None
    assert data.description is not None
    assert "radio|main: halted since " in data.description
    assert "API key" in data.description
    assert "'nami-amp integrations enable radio/main'" in data.description
    assert BAD_KEY not in repr(result.all_events)


@pytest.mark.parametrize("name", ["nami_events", "user_property_snapshots", "amplitude_events", "amplitude_deliveries"])
@pytest.mark.slow
def test_nothing_new_does_not_wipe_what_a_page_shows(stage: Scene, instance: dg.DagsterInstance, name: str) -> None:
    stage.add("radio")
    for asset in ASSETS:
        before = materialized(materialize(stage, instance, asset, key := key_of(asset)), asset)[key]
        if asset == name:
            break
    again = materialized(materialize(stage, instance, name, key), name)[key]
    since = {"nothing_new_at", "lag_seconds", "run", "nami/from"}
    assert {fact: value for fact, value in again.items() if fact not in since} == {
        fact: value for fact, value in before.items() if fact not in since
    }
    assert again.get("nami/from") == before.get("nami/to")  # a reader has read all of it
    assert again["nothing_new_at"] > 0
    assert again["dagster/partition_row_count"] > 0


@pytest.mark.slow
def test_a_partition_without_anything_yet_says_so(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("quiet")
    (facts,) = materialized(materialize(stage, instance, "nami_events", "quiet"), "nami_events").values()
    assert facts["dagster/partition_row_count"] == 0
    (facts,) = materialized(
        materialize(stage, instance, "amplitude_deliveries", "quiet|main"), "amplitude_deliveries"
    ).values()
    assert (facts["state"], facts["why"]) == ("idle", "No event has come since it was added")


def key_of(asset: str) -> str:
    return "radio|main" if asset.startswith("amplitude") else "radio"


def failed(instance: dg.DagsterInstance, name: str) -> set[str]:
    """What Dagster's pages count as failed."""
    with partition_loading_context(dynamic_partitions_store=instance):
        seen = get_and_update_asset_status_cache_value(instance, dg.AssetKey(name), app_integrations)
        assert seen is not None
        return set(seen.deserialize_failed_partition_subsets(app_integrations).get_partition_keys())


@pytest.mark.slow
def test_of_a_range_only_what_is_in_trouble_counts_as_failed(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("fit")
    stage.add("quiet")  # nothing moves, and nothing is wrong with it
    stage.add("radio", key=BAD_KEY)
    apps = {"dagster/asset_partition_range_start": "fit", "dagster/asset_partition_range_end": "radio"}
    pairs = {"dagster/asset_partition_range_start": "fit|main", "dagster/asset_partition_range_end": "radio|main"}
    for name in ASSETS:
        result = materialize(stage, instance, name, tags=pairs if name.startswith("amplitude") else apps)
    assert not result.success
    assert failed(instance, "amplitude_deliveries") == {"radio|main"}
    assert failed(instance, "amplitude_events") == set()


@pytest.mark.slow
def test_what_moved_in_part_and_is_in_trouble_counts_as_failed(stage: Scene, instance: dg.DagsterInstance) -> None:
    stage.add("radio")
    stage.sandbox.faults.add(Fault("throttle_user", share=0.1, seed=3))
    settings = stage.settings
    stage.settings = settings.replace(run_retry_seconds=0.0)
    for name in ASSETS:
        result = materialize(stage, instance, name, key_of(name))
    assert not result.success
    deliveries = dg.AssetKey("amplitude_deliveries")
    filters = dg.AssetRecordsFilter(asset_key=deliveries, asset_partitions=["radio|main"])
    (record,) = instance.fetch_materializations(filters, limit=2).records
    assert record.asset_materialization is not None
    facts: dict[str, Any] = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    assert facts["delivered"] > 0
    assert facts["whose_events_wait"]
    assert failed(instance, "amplitude_deliveries") == {"radio|main"}
