"""A micro-batch as several runs: each app is in exactly one of them, and together they do what one run does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import REPORT, SHARD_TAG
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import build_schedule, requests
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.shards import Shard, shards
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = pytest.mark.filterwarnings(WARNINGS)

APPS = ("radio", "fit")
BOTH = Settings.load({"NAMI_AMP_SHARDS": "2"})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


@pytest.mark.parametrize("many", [2, 3, 7])
def test_each_app_is_in_one_shard_and_shards_are_about_equal(many: int) -> None:
    sizes = [0] * many
    for number in range(1_000):
        (mine,) = (shard for shard in shards(many) if shard is not None and shard.has(f"app-{number}"))
        sizes[mine.number - 1] += 1
    assert min(sizes) > 0.7 * 1_000 / many


def test_where_an_app_belongs_never_changes() -> None:
    # Another version may run beside this one: were it to divide them otherwise, apps would have to wait for a lease.
    assert [app for app in ("radio", "fit", "news", "cook") if Shard(1, 2).has(app)] == ["radio", "fit", "cook"]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/", "/2", "1/2/3", "-1/2", "1/999", "٣/٤x"])
def test_what_names_no_shard_is_said(text: str) -> None:
    with pytest.raises(Misconfigured, match="a shard is named as in 2/4"):
        Shard.parse(text)


def test_a_shard_is_named_by_its_text() -> None:
    assert Shard.parse("") is None
    assert [str(Shard.parse(str(shard))) for shard in shards(3)] == ["1/3", "2/3", "3/3"]
    assert shards(1) == [None]


def tick(instance: dg.DagsterInstance, settings: Settings) -> list[dg.RunRequest]:
    """What Dagster makes of a tick, which is stricter than the function alone."""
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
    return list(build_schedule(settings).evaluate_tick(context).run_requests or [])


@pytest.mark.slow
def test_the_schedule_asks_for_each_shard_that_has_no_run(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMI_AMP_SHARDS", "3")
    asked = tick(instance, Settings.load())
    assert [(one.run_config, one.tags[SHARD_TAG]) for one in asked] == [
        ({"shard": text}, text) for text in ("1/3", "2/3", "3/3")
    ]
    under_way = instance.create_run_for_job(
        micro_batch, tags={**micro_batch.tags, SHARD_TAG: "2/3"}, status=dg.DagsterRunStatus.STARTED
    )
    again = tick(instance, Settings.load())
    assert [one.tags[SHARD_TAG] for one in again] == ["1/3", "3/3"]
    assert not {one.run_key for one in again} & {one.run_key for one in asked}, (
        "Dagster takes a key for a run only once"
    )
    # After the number was changed, what is under way may work for any app; so may a run for all.
    for tags in ({SHARD_TAG: "2/3"}, {}):
        instance.delete_run(under_way.run_id)
        under_way = instance.create_run_for_job(
            micro_batch, tags={**micro_batch.tags, **tags}, status=dg.DagsterRunStatus.STARTED
        )
        asked, why = requests(instance, BOTH, micro_batch.name)
        assert asked == []
        assert under_way.run_id in why


def test_only_shards_with_work_are_asked_for(instance: dg.DagsterInstance) -> None:
    asked, _ = requests(instance, BOTH, micro_batch.name, lambda shard: shard is None or shard.number == 2)
    assert [one.tags[SHARD_TAG] for one in asked] == ["2/2"]


@pytest.mark.slow
def test_all_shards_together_do_what_one_run_does(stage: Scene, instance: dg.DagsterInstance) -> None:
    names = [f"app-{number}" for number in range(4)]
    assert {Shard(1, 2).has(name) for name in names} == {True, False}
    stage.load(users=10, apps=names)
    mine = {name: stage.add(name) for name in names}
    reports = 0
    for shard in ("1/2", "2/2"):
        pipeline = PipelineSession(stage.settings, run_id=f"run-{shard[0]}")
        result = micro_batch.execute_in_process(
            run_config={"console_log_level": "CRITICAL", "shard": shard},
            instance=instance,
            resources={"pipeline": pipeline},
        )
        pipeline.close()
        made = {
            str(event.partition)
            for event in result.all_events
            if event.is_step_materialization and event.asset_key == dg.AssetKey("amplitude_deliveries")
        }
        given = Shard.parse(shard)
        assert given is not None
        assert made == {f"{name}|main" for name in names if given.has(name)}
        keys = [event.asset_key for event in result.all_events if event.is_step_materialization]
        reports += keys.count(dg.AssetKey(REPORT))
    status = stage.status(*mine.values())
    assert all(now.delivered and not now.pending for now in status.values())
    assert reports == 1


@pytest.mark.slow
def test_a_shard_that_is_none_fails_in_one_line(stage: Scene, instance: dg.DagsterInstance) -> None:
    pipeline = PipelineSession(stage.settings, run_id="odd")
    result = micro_batch.execute_in_process(
        run_config={"console_log_level": "CRITICAL", "shard": "9/2"},
        instance=instance,
        resources={"pipeline": pipeline},
        raise_on_error=False,
    )
    pipeline.close()
    assert not result.success
    assert "a shard is named as in 2/4" in str(pipeline.error)
