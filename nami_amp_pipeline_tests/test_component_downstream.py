"""What hangs on our assets in somebody's project fires when a micro-batch moves a partition, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster._core.definitions import freshness_evaluator
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.loader import LoadingContextForTest

from nami_amp_pipeline import NamiAmplitude
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.operations.frames import Frames
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.filterwarnings(WARNINGS)]

DELIVERIES = dg.AssetKey("amplitude_deliveries")
PARTITIONS = dg.DynamicPartitionsDefinition(name="nami_app_integrations")
ALL = dg.AssetSelection.all() | dg.AssetSelection.all_asset_checks()
EAGER = dg.AutomationCondition.eager()
UPDATED = dg.AutomationCondition.any_deps_updated()


@dg.asset(deps=[DELIVERIES], partitions_def=PARTITIONS, automation_condition=EAGER)
def churn_scores() -> None:
    """By integration."""


@dg.asset(deps=[DELIVERIES], automation_condition=UPDATED)
def revenue() -> None:
    """Of all integrations."""


with ignore_beta_warnings():  # checks by partition

    @dg.asset_check(asset=DELIVERIES, partitions_def=PARTITIONS, automation_condition=UPDATED)
    def is_plausible() -> dg.AssetCheckResult:
        """By integration."""
        return dg.AssetCheckResult(passed=True)


class WithFreshness(NamiAmplitude):
    def get_asset_spec(self, spec: dg.AssetSpec) -> dg.AssetSpec:
        policy = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2))
        return spec.replace_attributes(freshness_policy=policy)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        monkeypatch.setenv("NAMI_AMP_HOME", str(tmp_path))
        made.load(users=3, apps=("fit", "radio"))
        made.add("fit")
        made.add("radio")
        yield made


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def load_one(stage: Scene, app_id: str, name: str = "new") -> None:
    """Puts an event into the warehouse that is newer than all others."""
    with duckdb.connect(str(stage.home / "warehouse.duckdb")) as connection:
        connection.execute(
            "INSERT INTO nami_events BY NAME SELECT id || $name AS id, app_id, "
            "'user.subscription.renewed' AS event_type, user_id, created_date, "
            "(SELECT max(ingested_at) FROM nami_events) + INTERVAL 1 MINUTE AS ingested_at, payload "
            "FROM nami_events WHERE app_id = $app LIMIT 1",
            {"app": app_id, "name": f"-{name}"},
        )


def requested(result: Any, key: Any) -> set[str | None]:
    """The partitions that the conditions ask for; {None} of what has none."""
    found = next((each.true_subset for each in result.results if each.key == key), None)
    if found is None or found.is_empty:
        return set()
    value = found.convert_to_serializable_subset().value
    return {None} if isinstance(value, bool) else set(value.get_partition_keys())


@pytest.mark.slow
def test_conditions_and_partitioned_checks_fire_for_the_partition_that_moved(
    stage: Scene, instance: dg.DagsterInstance
) -> None:
    ours = NamiAmplitude().definitions()
    defs = dg.Definitions.merge(ours, dg.Definitions(assets=[churn_scores, revenue], asset_checks=[is_plausible]))

    def micro_batch() -> None:
        done = defs.resolve_job_def("micro_batch").execute_in_process(
            run_config={"console_log_level": "CRITICAL"}, instance=instance
        )
        assert done.success

    def look(cursor: Any) -> tuple[list[set[str | None]], Any]:
        result = dg.evaluate_automation_conditions(defs, instance, ALL, cursor=cursor)
        check = dg.AssetCheckKey(DELIVERIES, "is_plausible")
        return [requested(result, key) for key in (churn_scores.key, check, revenue.key)], result.cursor

    _, cursor = look(None)
    micro_batch()
    both = {"fit|main", "radio|main"}
    found, cursor = look(cursor)
    assert found == [both, both, {None}]
    for key in both:
        assert dg.materialize([churn_scores], instance=instance, partition_key=key, selection=[churn_scores]).success
    assert dg.materialize([revenue], instance=instance, selection=[revenue]).success
    _, cursor = look(cursor)
    micro_batch()  # with nothing new
    found, cursor = look(cursor)
    assert found == [set(), set(), set()]
    load_one(stage, "fit")
    micro_batch()
    found, cursor = look(cursor)
    assert found == [{"fit|main"}, {"fit|main"}, {None}]


@pytest.mark.slow
def test_freshness_is_of_an_asset_and_the_report_is_fresh_while_micro_batches_run(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night without events leaves deliveries stale; the report is materialized by each micro-batch all the same."""
    defs = WithFreshness().definitions()
    graph = defs.resolve_asset_graph()
    job = defs.resolve_job_def("micro_batch")
    config = {"console_log_level": "CRITICAL"}

    def state(name: str) -> FreshnessState:
        evaluator = freshness_evaluator.TimeWindowFreshnessPolicyEvaluator()
        context: Any = LoadingContextForTest(instance)
        return asyncio.run(evaluator.evaluate_freshness(context, graph.get(dg.AssetKey(name))))

    assert state("amplitude_deliveries") is FreshnessState.UNKNOWN
    job.execute_in_process(run_config=config, instance=instance)
    assert state("amplitude_deliveries") is state("delivery_report") is FreshnessState.PASS
    later = datetime.now(UTC) + timedelta(hours=3)
    monkeypatch.setattr(freshness_evaluator, "get_current_timestamp", later.timestamp)
    assert state("amplitude_deliveries") is state("delivery_report") is FreshnessState.FAIL
    before = instance.get_latest_materialization_event(dg.AssetKey("delivery_report"))
    moved = instance.get_latest_materialization_event(DELIVERIES)
    job.execute_in_process(run_config=config, instance=instance)
    assert instance.get_latest_materialization_event(DELIVERIES) == moved
    assert instance.get_latest_materialization_event(dg.AssetKey("delivery_report")) != before


@pytest.mark.slow
def test_materializations_say_what_is_new_and_leave_nothing_out(stage: Scene, instance: dg.DagsterInstance) -> None:
    """Also what a run delivered that was killed before it could say so."""
    job = NamiAmplitude().definitions().resolve_job_def("micro_batch")
    seen: list[str] = []

    def cursors(run: bool = True) -> tuple[int, int]:
        if run:
            job.execute_in_process(run_config={"console_log_level": "CRITICAL"}, instance=instance)
        filters = dg.AssetRecordsFilter(asset_key=DELIVERIES, asset_partitions=["fit|main"])
        made = instance.fetch_materializations(filters, limit=1).records[0].asset_materialization
        assert made is not None
        first, last = (made.metadata[name].value for name in ("nami/from", "nami/to"))
        assert isinstance(first, int)
        assert isinstance(last, int)
        return first, last

    def read(after: int, upto: int) -> list[str]:
        with Frames(stage.settings) as frames:
            return list(
                frames.events(integration="fit/main", after=after, upto=upto).to_arrow()["event_id"].to_pylist()
            )

    first = cursors()
    assert first[0] == 0
    seen += read(*first)
    load_one(stage, "fit", "second")
    with dg.DagsterInstance.ephemeral() as lost:  # its history never reaches ours
        job.execute_in_process(run_config={"console_log_level": "CRITICAL"}, instance=lost)
    load_one(stage, "fit", "third")
    second = cursors()
    assert second[0] == first[1]
    new = read(*second)
    assert {ident.rsplit("-", 1)[1] for ident in new} == {"second", "third"}
    seen += new
    by_hand = dg.materialize(
        [*NamiAmplitude().definitions().assets],  # type: ignore[misc]
        selection=dg.AssetSelection.assets(DELIVERIES),
        instance=instance,
        partition_key="fit|main",
        resources=NamiAmplitude().definitions().resources,
    )
    assert by_hand.success
    assert cursors(run=False) == (second[1], second[1])  # nothing new
    assert read(second[1], second[1]) == []
    with Frames(stage.settings) as frames:
        events = frames.events(integration="fit/main").to_arrow().to_pylist()
    assert sorted(seen) == sorted(event["event_id"] for event in events if event["request_id"] is not None)
    assert len(seen) == len(set(seen)) > 3


@pytest.mark.slow
def test_each_asset_says_what_is_new_and_frames_read_just_that(stage: Scene, instance: dg.DagsterInstance) -> None:
    job = NamiAmplitude().definitions().resolve_job_def("micro_batch")

    def new(asset: str, partition: str) -> tuple[int, int]:
        filters = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
        made = instance.fetch_materializations(filters, limit=1).records[0].asset_materialization
        assert made is not None
        first, last = (made.metadata[name].value for name in ("nami/from", "nami/to"))
        assert isinstance(first, int)
        assert isinstance(last, int)
        return first, last

    wanted = {"nami_events": "fit", "user_property_snapshots": "fit", "amplitude_events": "fit|main"}
    before: dict[str, tuple[int, int]] = {}
    for name in ("second", "third"):
        load_one(stage, "fit", name)
        if before:
            with dg.DagsterInstance.ephemeral() as lost:  # its history never reaches ours
                job.execute_in_process(run_config={"console_log_level": "CRITICAL"}, instance=lost)
        load_one(stage, "fit", f"{name}-more")
        job.execute_in_process(run_config={"console_log_level": "CRITICAL"}, instance=instance)
        now = {asset: new(asset, partition) for asset, partition in wanted.items()}
        for asset, (first, last) in now.items():
            assert first < last
            assert not before or first == before[asset][1], f"{asset} leaves something out"
        before = now
    assert before["nami_events"] == before["user_property_snapshots"], "both are segments"
    with Frames(stage.settings) as frames:
        first, last = before["amplitude_events"]
        found = frames.events(integration="fit/main", prepared_after=first, prepared_upto=last).to_arrow()
        assert {ident.partition("-third")[2] for ident in found["event_id"].to_pylist()} == {"", "-more"}
        assert all("-third" in ident for ident in found["event_id"].to_pylist())
        everybody = frames.current_snapshots("fit").to_arrow()
        first, last = before["user_property_snapshots"]
        moved = frames.current_snapshots("fit", after=first, upto=last).to_arrow()
        assert 0 < moved.num_rows < everybody.num_rows
        assert moved.schema == everybody.schema
        assert frames.current_snapshots("fit", after=last, upto=last).to_arrow().num_rows == 0
        for path in (stage.home / "data" / "snapshots").rglob("*.parquet"):
            path.unlink()
        assert frames.current_snapshots("fit", after=first, upto=last).to_arrow() == everybody
