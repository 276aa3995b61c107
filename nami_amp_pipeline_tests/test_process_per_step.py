"""With a process for each step, what one step could not do is known to the last: the run fails, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import PipelineResource, PipelineSession
from nami_amp_pipeline.errors import Blocked, WarehouseUnavailable
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.retention import retain
from nami_amp_pipeline.stages.table import CAPTURE, DELIVER, PREPARE, SNAPSHOTS
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.forked_steps import FORKED, forks_from_here
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]


def stepwise() -> dg.JobDefinition:
    return micro_batch.graph.to_job(
        name="stepwise", executor_def=FORKED, resource_defs={"pipeline": PipelineResource()}
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    more = {}
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        more["state_url"] = server.fresh_database()
        monkeypatch.setenv("NAMI_AMP_STATE_URL", more["state_url"])
    monkeypatch.setenv("NAMI_AMP_HOME", str(tmp_path))
    with forks_from_here(), scene(tmp_path, **more) as made:
        yield made


def failure_of(instance: dg.DagsterInstance, run_id: str) -> str:
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    (event,) = [entry.dagster_event for entry in entries if entry.dagster_event is not None]
    assert event.step_key == "upload"
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return data.description or ""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sqlite"], indirect=True)
def test_a_dead_warehouse_ends_in_a_failed_run(stage: Scene) -> None:
    stage.load(apps=("radio",))
    one = stage.add("radio")
    for earlier in (CAPTURE, SNAPSHOTS):
        MicroBatch.begin(stage.context).run(earlier)
    (stage.home / "warehouse.duckdb").unlink()
    with dg.instance_for_test() as instance:
        result = dg.execute_job(dg.reconstructable(stepwise), instance)
        assert not result.success
        apart = failure_of(instance, result.run_id)
        pipeline = PipelineSession(stage.settings, "in-one-process")
        together = micro_batch.execute_in_process(
            run_config={"console_log_level": "CRITICAL"},
            instance=instance,
            resources={"pipeline": pipeline},
            raise_on_error=False,
        )
        pipeline.close()
        assert failure_of(instance, together.run_id) == apart
    assert "nami_events: there is no DuckDB file" in apart
    assert stage.status(one)["radio/main"].delivered > 0  # what was captured before


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["postgresql"], indirect=True)
def test_a_good_run_is_green_in_as_many_processes(stage: Scene) -> None:
    stage.load(apps=("radio",))
    one = stage.add("radio")
    with dg.instance_for_test() as instance:
        result = dg.execute_job(dg.reconstructable(stepwise), instance)
        assert result.success
        assert instance.get_materialized_partitions(dg.AssetKey("amplitude_deliveries")) == {"radio|main"}
    assert stage.status(one)["radio/main"].delivered == stage.sandbox.audit.accepted > 0


def test_troubles_are_of_their_run_and_go_when_that_is_old(stage: Scene) -> None:
    stage.add("radio")
    first = MicroBatch.begin(stage.context)
    first.run(CAPTURE)  # there is no warehouse
    first.note(PREPARE, Blocked("radio/main: a file is lost"), "radio|main")
    again = MicroBatch.begin(stage.context)  # another process of the same run
    assert [(asset, type(error)) for asset, error in again.troubles] == [
        ("nami_events", WarehouseUnavailable),
        ("amplitude_events", Blocked),
    ]
    assert [str(error) for _, error in again.troubles] == [str(error) for _, error in first.troubles]
    assert again.problems()[1] == "amplitude_events: radio/main: a file is lost"
    with stage.context.store.begin() as tx:
        rows = tx.execute(sa.select(tables.run_troubles).order_by(tables.run_troubles.c.id)).all()
    assert [(row.run_id, row.partition) for row in rows] == [("test", None), ("test", "radio|main")]
    stage.context.run_id = "another"
    other = MicroBatch.begin(stage.context)
    other.run(DELIVER)
    assert (other.troubles, other.problems()) == ([], [])
    assert "run_troubles" not in retain(stage.context).removed
    later = (datetime.now(UTC) + timedelta(days=15)).timestamp()
    stage.context.clock = lambda: later
    assert retain(stage.context, dry_run=True).removed["run_troubles"].rows == 2
    assert retain(stage.context).removed["run_troubles"].rows == 2
    stage.context.run_id = "test"
    assert MicroBatch.begin(stage.context).troubles == []
