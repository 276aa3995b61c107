"""Dagster's history: runs leave it, newest materializations do not, and the runs of others are not ours."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.reconstruct import ReconstructableRepository

from nami_amp_pipeline import definitions
from nami_amp_pipeline.dagster_support import run_history as history
from nami_amp_pipeline.dagster_support.run_history import Cleared, Ours, clear_history
from nami_amp_pipeline.defs.ours import JOB_TAG, OURS
from nami_amp_pipeline.defs.partitions import nami_apps
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.retention_job import retention, retention_hourly
from nami_amp_pipeline_tests.support.command_line import invoke
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

REPOSITORY_TAG = ".dagster/repository"
ASSET = dg.AssetKey("nami_events")
MOVING = Ours(JOB_TAG, {"moving"}, {ASSET})
LATER = timedelta(days=15)
QUIET: Any = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dg.op(config_schema=dict)
def move(context: dg.OpExecutionContext) -> None:
    for partition in context.op_config["partitions"]:
        context.log_event(dg.AssetMaterialization(ASSET, partition=partition))
    for partition in context.op_config["checked"]:
        context.log_event(
            dg.AssetCheckEvaluation(asset_key=ASSET, check_name="lag", passed=True, partition=partition)  # type: ignore[arg-type]
        )


@dg.job(executor_def=dg.in_process_executor)
def moving() -> None:
    move()


@pytest.fixture(params=["sqlite", "postgresql"])
def instance(request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    overrides: dict[str, Any] = {}
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        overrides["storage"] = {"postgres": {"postgres_url": server.fresh_database()}}
    with dg.instance_for_test(overrides=overrides) as made:
        yield made


def run(instance: dg.DagsterInstance, *partitions: str, checked: tuple[str, ...] = (), of: str = "moving") -> str:
    config = {"partitions": list(partitions), "checked": list(checked)}
    result = moving.execute_in_process(
        instance=instance, tags={JOB_TAG: of}, run_config={"ops": {"move": {"config": config}}, **QUIET}
    )
    return result.run_id


def clear(instance: dg.DagsterInstance, later: timedelta = LATER, **more: Any) -> Cleared:
    return clear_history(instance, MOVING, 14, now=datetime.now(UTC) + later, **more)


def left(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_run_ids())


def rows(instance: dg.DagsterInstance, table: str, run_id: str) -> int:
    storage: Any = instance.run_storage if table == "run_tags" else instance.event_log_storage
    connect = storage.connect if table == "run_tags" else storage.index_connection
    with connect() as connection:
        query = sa.select(sa.func.count()).select_from(sa.table(table)).where(sa.column("run_id") == run_id)
        return int(connection.execute(query).scalar_one())


def test_each_partition_keeps_its_newest_materialization(instance: dg.DagsterInstance) -> None:
    first = run(instance, "a", "b")
    second = run(instance, "a")
    third = run(instance, "a", checked=("c",))
    fourth = run(instance, "a")
    nothing = run(instance)
    assert clear(instance, timedelta(days=13)) == Cleared(0, 0)
    assert clear(instance, dry_run=True) == Cleared(2, 3)
    assert len(left(instance)) == 5
    assert clear(instance) == Cleared(2, 3)
    assert left(instance) == {first, third, fourth}
    for run_id in (second, nothing):
        for table in ("event_logs", "run_tags", "asset_check_executions"):
            assert rows(instance, table, run_id) == 0
        assert not list(Path(instance.root_directory).rglob(f"{run_id}*"))
    assert instance.get_materialized_partitions(ASSET) == {"a", "b"}
    assert clear(instance) == Cleared(0, 3)
    run(instance, "a", "b", checked=("c",))
    assert clear(instance).kept == 1
    assert len(left(instance)) == 1
    assert instance.get_materialized_partitions(ASSET) == {"a", "b"}


def test_runs_under_way_and_those_of_others_stay(instance: dg.DagsterInstance) -> None:
    others = run(instance, of="somebody's")
    under_way = instance.create_run_for_job(moving, status=dg.DagsterRunStatus.STARTED, tags={JOB_TAG: "moving"})
    gone = run(instance)
    assert clear(instance).runs == 1
    assert left(instance) == {others, under_way.run_id}
    assert gone not in left(instance)


def test_what_was_cut_short_goes_on_with_the_next(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run(instance, "a")
    run(instance, "a")

    class Die:
        def __instancecheck__(self, _one: object) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr(history, "SqlRunStorage", Die())  # asked for just before the run itself goes
    with pytest.raises(KeyboardInterrupt):
        clear(instance)
    assert run_id in left(instance)
    monkeypatch.undo()
    with dg.DagsterInstance.from_ref(instance.get_ref()) as of_next_process:
        assert clear(of_next_process).runs == 1
    assert run_id not in left(instance)
    assert not list(Path(instance.root_directory).rglob(f"{run_id}*"))


def test_long_histories_are_cleared_by_and_by(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_RUNS", 2)
    runs = [run(instance) for _ in range(3)]
    assert clear(instance).runs == 2
    assert left(instance) == {runs[-1]}  # the oldest went first


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with scene(tmp_path, unused_file_retention_days="0.00001", dagster_retention_days="0.00001") as made:
        yield made


def orphan(stage: Scene) -> Path:
    path = stage.settings.data_dir / "segments" / "orphan.parquet"
    path.write_bytes(b"12345")
    os.utime(path, (0, 0))
    return path


def test_run_shows_what_it_removed(stage: Scene) -> None:
    path = orphan(stage)
    with dg.DagsterInstance.ephemeral() as instance:
        old = instance.create_run_for_job(
            retention, status=dg.DagsterRunStatus.SUCCESS, tags={JOB_TAG: "retention"}
        ).run_id
        with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
            connection.execute(sa.text("UPDATE runs SET create_timestamp = '2026-01-01 00:00:00'"))
        pipeline = PipelineSession(stage.settings, run_id="a-run")
        result = retention.execute_in_process(
            instance=instance,
            resources={"pipeline": pipeline},
            run_config=QUIET,
        )
        pipeline.close()
        assert result.success
        (event,) = [one for one in result.all_events if one.event_type_value == "STEP_OUTPUT"]
        facts = {name: value.value for name, value in event.step_output_data.metadata.items() if name != "removed"}
        table = event.step_output_data.metadata["removed"]
        assert isinstance(table, dg.TableMetadataValue)
        assert [dict(record.data) for record in table.records] == [
            {"kind": "unused_files", "rows": 0, "files": 1, "bytes": 5}
        ]
        assert facts == {
            "rows": 0,
            "files_off_the_disk": 1,
            "bytes_off_the_disk": 5,
            "dagster_runs": 1,
            "dagster_runs_kept": 0,
        }
        assert not path.exists()
        assert old not in left(instance)


@dg.asset(partitions_def=nami_apps)
def churn_scores() -> None:
    """Somebody else's, in the same Dagster."""


@dg.job(name="micro_batch", executor_def=dg.in_process_executor)
def micro_batch_of_others() -> None:
    """A job of the same name, of another code location."""
    move()


def merged() -> dg.Definitions:
    return dg.Definitions.merge(definitions.defs, dg.Definitions(assets=[churn_scores]))


def test_retention_takes_runs_of_ours_only_whatever_the_code_location_is_called(
    stage: Scene, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMI_AMP_HOME", str(stage.home))
    stage.load(apps=("fit",))
    stage.add("fit")
    pointer = ReconstructableRepository.for_module(__name__, "merged", str(stage.home))
    # As a daemon labels the runs of a code location with another name: in the table of tags, and nowhere else.
    label = {REPOSITORY_TAG: "__repository__@my_project"}

    def launch(job: str, asset: str | None = None, **more: Any) -> str:
        selection = [dg.AssetKey(asset)] if asset else None
        tags = {**label, **({"dagster/partition": "fit"} if asset else {})}
        result = dg.execute_job(
            pointer.get_reconstructable_job(job),
            instance,
            tags=tags,
            asset_selection=selection,
            raise_on_error=True,
            **more,
        )
        assert result.success, [event for event in result.all_events if event.is_failure]
        return result.run_id

    quiet: Any = {"run_config": {"console_log_level": "CRITICAL"}}
    first = launch("micro_batch", **quiet)
    assets = [launch("__ASSET_JOB", "nami_events", run_config=QUIET) for _ in range(2)]
    theirs = [launch("__ASSET_JOB", "churn_scores", run_config=QUIET) for _ in range(2)]
    both = dg.execute_job(
        pointer.get_reconstructable_job("__ASSET_JOB"), instance, tags={**label, "dagster/partition": "fit"},
        asset_selection=[dg.AssetKey("churn_scores"), dg.AssetKey("nami_events")], run_config=QUIET,
    )  # fmt: skip
    namesake = micro_batch_of_others.execute_in_process(
        instance=instance, run_config={"ops": {"move": {"config": {"partitions": [], "checked": []}}}, **QUIET}
    )
    stage.load(apps=("fit",), users=20, seed=9)
    second = launch("micro_batch", **quiet)
    third = launch("micro_batch", **quiet)  # moves nothing, and holds the newest report
    before = {key: instance.get_materialized_partitions(key) for key in (*OURS.assets, dg.AssetKey("churn_scores"))}
    assert before[dg.AssetKey("churn_scores")] == {"fit"}
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.text("UPDATE runs SET create_timestamp = '2026-01-01 00:00:00'"))
    last = launch("retention", run_config=QUIET)
    assert left(instance) == {second, third, *theirs, both.run_id, namesake.run_id, last}
    assert not {first, *assets} & left(instance)
    after = {key: instance.get_materialized_partitions(key) for key in before}
    assert after == before


def test_schedule_starts_one_at_a_time() -> None:
    assert retention_hourly.default_status is dg.DefaultScheduleStatus.RUNNING
    with dg.instance_for_test() as instance:
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=datetime.now(UTC))
        assert isinstance(retention_hourly(context), dg.RunRequest)
        instance.create_run_for_job(retention, tags=retention.tags, status=dg.DagsterRunStatus.STARTED)
        assert isinstance(retention_hourly(context), dg.SkipReason)


def test_command_line_says_what_would_go_and_removes_it(stage: Scene) -> None:
    path = orphan(stage)
    settings = {
        "NAMI_AMP_HOME": str(stage.home),
        "NAMI_AMP_UNUSED_FILE_RETENTION_DAYS": "0.5",
    }
    said = invoke(stage.home, "retention", "--dry-run", settings=settings)
    assert (said.exit_code, path.exists()) == (0, True)
    assert "Would be removed" in said.stdout
    assert "unused files" in said.stdout
    did = invoke(stage.home, "retention", "--json", settings=settings)
    assert (did.exit_code, path.exists()) == (0, False)
    assert '"unused_files"' in did.stdout
    assert "There is nothing to remove." in invoke(stage.home, "retention", settings=settings).stdout
