"""Two code locations of one Dagster load this pipeline, each with a store of its own: neither is in the other's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.defs.alert_sensors import _succeeded
from nami_amp_pipeline.defs.jobs import build_micro_batch, micro_batch
from nami_amp_pipeline.defs.ours import MICRO_BATCH, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import micro_batch_schedule, run_under_way
from nami_amp_pipeline.defs.sensors import integration_partitions
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import remove
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Scene, Scene]]:
    with ExitStack() as stack:
        yield (stack.enter_context(scene(tmp_path / "one")), stack.enter_context(scene(tmp_path / "two")))


class Location:
    """The sensor of a code location, with the cursor that the daemon keeps for it."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.cursor: str | None = None
        self.changes = 0

    def look(self) -> None:
        """Evaluates the sensor, and does what it asks for."""
        pipeline = PipelineSession(self.settings)
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = integration_partitions(context, pipeline=pipeline)
        pipeline.close()
        if not isinstance(result, dg.SensorResult):
            return
        self.cursor = result.cursor
        for request in result.dynamic_partitions_requests or ():
            self.changes += len(request.partition_keys)
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition(request.partitions_def_name, key)


def keys(instance: dg.DagsterInstance) -> tuple[set[str], set[str]]:
    return (
        set(instance.get_dynamic_partitions("nami_apps")),
        set(instance.get_dynamic_partitions("nami_app_integrations")),
    )


@pytest.mark.slow
def test_neither_removes_the_partitions_of_the_other(two: tuple[Scene, Scene], instance: dg.DagsterInstance) -> None:
    first, second = (Location(one.settings, instance) for one in two)
    two[0].add("radio")
    two[0].add("radio", "prod")
    two[1].add("fit", "prod")
    two[1].add("radio", "prod")  # which the other one has too
    for _ in range(3):
        first.look()
        second.look()
        assert keys(instance) == ({"radio", "fit"}, {"radio|main", "radio|prod", "fit|prod"})
    assert (first.changes, second.changes) == (3, 2)
    remove(two[0].context.store, "radio/main")
    remove(two[0].context.store, "radio/prod")
    for _ in range(3):
        first.look()
        second.look()
        assert keys(instance) == ({"radio", "fit"}, {"radio|prod", "fit|prod"})
    assert (first.changes, second.changes) == (6, 4)  # once, and not to and fro


def test_a_store_that_is_not_there_removes_nothing(
    two: tuple[Scene, Scene], instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    two[0].add("radio")
    Location(two[0].settings, instance).look()
    Location(Settings.load({"NAMI_AMP_HOME": str(tmp_path / "mistyped")}), instance).look()
    assert keys(instance) == ({"radio"}, {"radio|main"})


def test_each_has_its_own_micro_batch_under_way(
    two: tuple[Scene, Scene], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMI_AMP_HOME", str(two[0].home))
    theirs = build_micro_batch()
    run = instance.create_run_for_job(theirs, tags=theirs.tags, status=dg.DagsterRunStatus.STARTED)
    assert run_under_way(instance, two[0].settings) == run.run_id
    monkeypatch.setenv("NAMI_AMP_HOME", str(two[1].home))
    assert run_under_way(instance, two[1].settings) is None
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
    assert isinstance(micro_batch_schedule(context), dg.RunRequest)
    # The limit of `dagster.yaml` is one at a time by this tag: they take turns.
    assert theirs.tags["nami/job"] == micro_batch.tags["nami/job"] == MICRO_BATCH


@pytest.mark.slow
def test_a_success_of_one_is_no_all_clear_for_the_other(two: tuple[Scene, Scene], tmp_path: Path) -> None:
    two[0].load(apps=("radio",))
    two[0].add("radio")
    began = from_datetime(datetime.now(UTC))
    assert run_micro_batch(two[0].settings).ok
    from nami_amp_pipeline.dagster_support.instance import dagster_instance

    with dagster_instance(two[0].settings) as instance:
        assert [_succeeded(instance, MICRO_BATCH, began, store_label(one.settings)) for one in two] == [
            True,
            False,
        ]


def test_the_label_of_a_store_tells_nothing_and_is_the_same_for_all_who_use_it() -> None:
    def label(url: str) -> str:
        return store_label(Settings.load({"NAMI_AMP_STATE_URL": url}))

    one = label("postgresql://nami:secret@db.example:5432/state")
    assert one == label("postgresql://other:changed@db.example:5432/state")
    assert one != label("postgresql://nami:secret@db.example:5432/staging")
    assert "example" not in one
    assert label("sqlite:///state.db") == label(f"sqlite:///{Path.cwd()}/state.db")
