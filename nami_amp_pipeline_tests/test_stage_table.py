"""One entry in the table of stages is all that a stage needs: asset, step, metadata, columns, removal of its files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.assets import build_asset
from nami_amp_pipeline.defs.jobs import build_micro_batch
from nami_amp_pipeline.defs.partitions import add_partitions, app_integrations
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.retention.files import sweep
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.stages.facts import Counts, Facts
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.stage import Stage, Stop
from nami_amp_pipeline.stages.table import STAGES
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = pytest.mark.filterwarnings(WARNINGS)

SCHEMA = pa.schema([("id", pa.string()), ("letters", pa.int64())])


def spell(
    context: Context, some: Sequence[Integration], leases: Mapping[int, Lease], window: Window | None, _stop: Stop
) -> Mapping[int, Any]:
    """The work of a stage that nobody needs: it writes down how long the names of integrations are."""
    written = {}
    for one in some:
        if one.id not in leases:
            continue
        if one.name == "broken":
            raise Blocked("this name cannot be spelled")
        name = context.folder.new_name("spelling", "parquet")
        with context.folder.parquet(name, SCHEMA) as writer:
            writer.write_table(pa.table({"id": [one.key], "letters": [len(one.key)]}, SCHEMA))
        written[one.id] = len(one.key) if window is None else window.until - window.since
    return written


def describe(_context: Context, _some: Sequence[Integration], moved: Mapping[str, Any]) -> dict[str, Facts]:
    return {
        key: {"rows": 1, "letters": letters, "by": Counts("what", {"all": letters})} for key, letters in moved.items()
    }


SPELL = Stage(
    asset="spelling",
    op="spell",
    per="integration",
    upstream=("amplitude_deliveries",),
    run=spell,
    describe=describe,
    summary="Spells names.",
    description="How long names are.",
    kinds=frozenset({"parquet"}),
    schema=SCHEMA,
    lineage={"id": (("amplitude_deliveries", "id"),)},
    files={"spelling": lambda _names: sa.select(sa.literal("", sa.Text)).where(sa.false())},
)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


@pytest.mark.slow
def test_a_fifth_stage_is_one_entry(stage: Scene) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    job = build_micro_batch([*STAGES, SPELL])
    steps = [node.name for node in job.nodes_in_topological_order]
    assert steps == ["capture", "snapshot", "prepare", "upload", "spell"]
    pipeline = PipelineSession(stage.settings, "a-run")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            run_config={"console_log_level": "CRITICAL"}, instance=instance, resources={"pipeline": pipeline}
        )
        assert result.success
        (event,) = [
            one for one in result.get_asset_materialization_events() if one.asset_key == dg.AssetKey("spelling")
        ]
        assert event.partition == "radio|main"
        facts = {name: value.value for name, value in event.materialization.metadata.items()}
        assert (facts["dagster/partition_row_count"], facts["letters"]) == (1, 10)
        checks = instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        assert {entry.step_key for entry in checks} == {"upload"}
    pipeline.close()

    files = list((stage.settings.data_dir / "spelling").iterdir())
    assert len(files) == 1
    os.utime(files[0], (0, 0))
    report = RetentionReport()
    sweep(stage.context, report)
    assert files[0].exists()  # nobody said what refers to such files
    sweep(stage.context, report, [*STAGES, SPELL])
    assert not files[0].exists()


@pytest.mark.slow
def test_its_asset_has_columns_lineage_and_partitions() -> None:
    spec = next(iter(build_asset(SPELL).specs))
    assert spec.key == dg.AssetKey("spelling")
    assert {dep.asset_key.to_user_string() for dep in spec.deps} == {"amplitude_deliveries"}
    assert [column.name for column in spec.metadata["dagster/column_schema"].columns] == ["id", "letters"]
    assert set(spec.metadata["dagster/column_lineage"].deps_by_column) == {"id"}
    assert spec.partitions_def == app_integrations
    assert spec.kinds == {"parquet"}


def test_a_failing_partition_of_a_range_does_not_keep_the_others_from_being_done(stage: Scene) -> None:
    for app, name in (("fit", "main"), ("radio", "broken"), ("radio", "main")):
        stage.add(app, name)
    pipeline = PipelineSession(stage.settings, "by-hand")
    with dg.DagsterInstance.ephemeral() as instance:
        add_partitions(instance, all_integrations(stage.context.store))
        result = dg.materialize(
            [build_asset(SPELL)],
            instance=instance,
            resources={"pipeline": pipeline},
            raise_on_error=False,
            tags={
                "dagster/asset_partition_range_start": "fit|main",
                "dagster/asset_partition_range_end": "radio|main",
            },
        )
        assert not result.success
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        data = failure.step_failure_data.user_failure_data
        assert data is not None
        assert (data.description or "").splitlines()[1:] == ["radio|broken: this name cannot be spelled"]
        assert instance.get_materialized_partitions(dg.AssetKey("spelling")) == {"fit|main", "radio|main"}
    pipeline.close()


def test_a_stage_without_a_step_is_no_part_of_the_job() -> None:
    daily = Stage(**{**SPELL.__dict__, "op": None})
    assert len(build_micro_batch([*STAGES, daily]).nodes_in_topological_order) == len(STAGES)


def test_a_window_is_worked_on_or_refused(stage: Scene) -> None:
    one = stage.add("radio")
    window = Window(since=0, until=7)
    assert run_stage(stage.context, SPELL, [one], window=window) == {"radio|main": 7}
    for known in STAGES:
        subject = one if known.per == "integration" else "radio"
        with pytest.raises(Misconfigured, match=f"{known.asset} works on new data only"):
            run_stage(stage.context, known, [subject], window=window)
    with pytest.raises(Misconfigured, match="must end after it begins"):
        Window(since=7, until=7)


def test_stages_know_no_dagster() -> None:
    folder = Path(__file__).parents[1] / "nami_amp_pipeline" / "stages"
    for path in folder.glob("*.py"):
        assert "import dagster" not in path.read_text(), path
