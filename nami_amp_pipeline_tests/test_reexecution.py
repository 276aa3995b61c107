"""Dagster's *Re-execute from failure*: it does what the failed run could not do, and is green only if that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import PipelineResource
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.state.integration_changes import IntegrationChange, change
from nami_amp_pipeline.state.integrations import set_enabled
from nami_amp_pipeline_tests.support.forked_steps import FORKED, forks_from_here
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS, Scene, scene

pytestmark = pytest.mark.filterwarnings(WARNINGS)


def _job(executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    return micro_batch.graph.to_job(
        name="micro_batch_again", executor_def=executor, resource_defs={"pipeline": PipelineResource()}
    )


def in_one_process() -> dg.JobDefinition:
    return _job(dg.in_process_executor)


def in_a_process_each() -> dg.JobDefinition:
    return _job(FORKED)


EXECUTORS = [in_one_process, pytest.param(in_a_process_each, marks=pytest.mark.slow)]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("NAMI_AMP_HOME", str(tmp_path))
    with forks_from_here(), scene(tmp_path) as made:
        made.load()
        yield made


def run(job: Callable[[], dg.JobDefinition], instance: dg.DagsterInstance, after: str | None = None) -> str:
    """Runs the job, again from failure where a run is given; returns the run's id."""
    options = dg.ReexecutionOptions.from_failure(after, instance) if after else None
    with dg.execute_job(dg.reconstructable(job), instance, reexecution_options=options) as result:
        return str(result.run_id)


def steps(instance: dg.DagsterInstance, run_id: str) -> dict[str, bool]:
    """The steps of a run and whether they succeeded."""
    found = instance.get_run_step_stats(run_id)
    return {one.step_key: one.status is not None and one.status.value == "SUCCESS" for one in found}


@pytest.mark.slow
@pytest.mark.parametrize("job", EXECUTORS)
def test_after_a_warehouse_that_could_not_be_read(stage: Scene, job: Callable[[], dg.JobDefinition]) -> None:
    one = stage.add("radio")
    warehouse = stage.home / "warehouse.duckdb"
    with dg.instance_for_test() as instance:
        warehouse.rename(stage.home / "away")
        failed = run(job, instance)
        assert steps(instance, failed) == {"capture": True, "snapshot": True, "prepare": True, "upload": False}
        failed_again = run(job, instance, failed)
        assert steps(instance, failed_again) == {"upload": False}  # it is still away
        (stage.home / "away").rename(warehouse)
        assert steps(instance, run(job, instance, failed_again)) == {"upload": True}
        done = instance.get_materialized_partitions
        assert done(dg.AssetKey("nami_events")) == {"radio"}
        assert done(dg.AssetKey("amplitude_deliveries")) == {"radio|main"}
    now = stage.status(one)["radio/main"]
    assert now.captured == now.delivered == stage.sandbox.audit.accepted > 0
    assert stage.sandbox.audit.duplicates == 0


@pytest.mark.slow
def test_after_an_integration_that_was_halted(stage: Scene) -> None:
    job = in_one_process
    good, bad = stage.add("fit"), stage.add("radio", key=BAD_KEY)
    with dg.instance_for_test() as instance:
        failed = run(job, instance)
        assert steps(instance, failed)["upload"] is False
        before = stage.status(good)["fit/main"]
        assert before.pending == 0
        captured = instance.fetch_materializations(dg.AssetKey("nami_events"), limit=100).records
        change(stage.context.store, stage.context.cipher, bad.key, IntegrationChange(api_key=Secret(GOOD_KEY)))
        set_enabled(stage.context.store, bad.key, enabled=True)
        assert steps(instance, run(job, instance, failed)) == {"upload": True}
        again = instance.fetch_materializations(dg.AssetKey("nami_events"), limit=100).records
    assert len(again) == len(captured)  # what was done is not done again
    now = stage.status(bad)["radio/main"]
    assert (now.pending, now.delivered + before.delivered) == (0, stage.sandbox.audit.accepted)
    assert stage.sandbox.audit.duplicates == 0
