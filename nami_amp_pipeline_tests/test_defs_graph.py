"""The graph that people see is the one that was promised, and loading it needs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from nami_amp_pipeline.dagster_support.instance import DAGSTER_YAML
from nami_amp_pipeline.definitions import defs
from nami_amp_pipeline.defs.resources import PipelineResource
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

_LOAD = """
import socket, sqlite3, duckdb, dagster
class Closed(socket.socket):
    def __init__(self, *a, **k):
        raise AssertionError("loading opens a socket")
def no(*a, **k):
    raise AssertionError("loading opens a database")
socket.socket, sqlite3.connect, duckdb.connect = Closed, no, no
import nami_amp_pipeline.definitions
dagster.Definitions.validate_loadable(nami_amp_pipeline.definitions.defs)
"""


_SHOW = """
repository = nami_amp_pipeline.definitions.defs.get_repository_def()
schedule = repository.get_schedule_def("micro_batch_schedule")
print(schedule.cron_schedule, repository.get_sensor_def("early_micro_batch").minimum_interval_seconds)
"""


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    return defs.get_repository_def()


def test_assets_are_one_way_from_the_warehouse_to_amplitude(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    seen = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        partitions = node.partitions_def
        seen[key.to_user_string()] = (
            sorted(parent.to_user_string() for parent in node.parent_keys),
            partitions and partitions.name,  # type: ignore[attr-defined]
            node.group_name,
            sorted(node.kinds),
            sorted(node.owners),
        )
    owners = ["team:data-platform"]
    group = "nami_to_amplitude"
    assert seen == {
        "nami_events": ([], "nami_apps", group, ["duckdb", "parquet"], owners),
        "user_property_snapshots": (["nami_events"], "nami_apps", group, ["duckdb", "parquet"], owners),
        "amplitude_events": (
            ["nami_events", "user_property_snapshots"],
            "nami_app_integrations",
            group,
            ["arrow", "duckdb"],
            owners,
        ),
        "amplitude_deliveries": (
            ["amplitude_events"],
            "nami_app_integrations",
            group,
            ["amplitude", "parquet"],
            owners,
        ),
        "delivery_report": (["amplitude_deliveries"], None, group, ["report"], owners),
        "amplitude_reconciliation": (
            ["amplitude_deliveries"],
            "nami_app_integrations",
            group,
            ["amplitude", "duckdb"],
            owners,
        ),
    }


@pytest.mark.contract("6.8")
def test_partition_keys_are_app_and_app_with_integration(repository: dg.RepositoryDefinition) -> None:
    partitions = repository.asset_graph.get(dg.AssetKey("amplitude_deliveries")).partitions_def
    assert partitions == dg.DynamicPartitionsDefinition(name="nami_app_integrations")
    apps = repository.asset_graph.get(dg.AssetKey("nami_events")).partitions_def
    assert apps == dg.DynamicPartitionsDefinition(name="nami_apps")


def test_every_asset_has_a_description_columns_and_a_code_version(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description
        assert "Running it again is always safe" in node.description
        is_daily = key.to_user_string() == "amplitude_reconciliation"
        when = "`reconcile_daily`, every day at 04:23 UTC" if is_daily else "`micro_batch_schedule`, every 5 minutes"
        assert node.description.strip().startswith(f"**Kept up to date by the schedule {when}**: ")
        assert node.code_version == "1"
        if is_daily or key.to_user_string() == "delivery_report":
            continue
        schema = node.metadata["dagster/column_schema"]
        assert {column.name for column in schema.columns} >= {"id", "user_id", "created_date"}
        if key.to_user_string() == "nami_events":
            continue
        lineage = node.metadata["dagster/column_lineage"]
        upstream = {parent.to_user_string() for parent in node.parent_keys}
        for column, sources in lineage.deps_by_column.items():
            assert column in {one.name for one in schema.columns}
            assert {source.asset_key.to_user_string() for source in sources} <= upstream


@pytest.mark.contract("6.1")
def test_job_schedule_sensor_and_checks(repository: dg.RepositoryDefinition) -> None:
    job = repository.get_job("micro_batch")
    assert [node.name for node in job.nodes_in_topological_order] == ["capture", "snapshot", "prepare", "upload"]
    assert job.executor_def.name == "in_process"
    assert repository.get_job("__ASSET_JOB").executor_def.name == "in_process"
    schedule = repository.get_schedule_def("micro_batch_schedule")
    assert schedule.cron_schedule == "*/5 * * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    sensor = repository.get_sensor_def("integration_partitions")
    assert sensor.minimum_interval_seconds == 30
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    checks = {key.name for key in repository.asset_graph.asset_check_keys}
    assert checks == {"conservation", "lag", "not_halted", "none_rejected", "amplitude_holds_all"}


def test_resource_has_no_field_that_could_hold_a_secret() -> None:
    assert PipelineResource.to_config_schema().as_field().config_type.fields == {}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_loading_touches_no_disk_no_database_and_no_network(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [("TICK_MINUTES", "0"), ("SENSOR_SECONDS", "often"), ("STATE_URL", "mysql://u:hush@h/d"), ("LEASE_SECONDS", "5")],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_setting_that_cannot_be_used_does_not_keep_the_code_from_loading(
    tmp_path: Path, name: str, value: str, place: str
) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    if place == ".env":
        (tmp_path / ".env").write_text(f"NAMI_AMP_{name}={value}\n")
    else:
        environ[f"NAMI_AMP_{name}"] = value
    done = subprocess.run(
        [sys.executable, "-c", _LOAD + _SHOW], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "*/5 * * * * 30\n"
    assert f"NAMI_AMP_{name} must be " in done.stderr
    assert "hush" not in done.stderr


def test_home_of_the_command_line_is_set_up_like_the_clone() -> None:
    clone = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    assert clone.pop("storage") == {"sqlite": {"base_dir": ".nami-amp/dagster"}}
    assert clone.pop("local_artifact_storage")["config"] == {"base_dir": ".nami-amp/dagster"}
    assert yaml.safe_load(DAGSTER_YAML) == clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Dagster's tools look at in a clone."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dagster.yaml", "workspace.yaml", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "nami_amp_pipeline").symlink_to(ROOT / "nami_amp_pipeline")
    return folder


@pytest.mark.parametrize("command", [("dagster", "definitions", "validate"), ("dg", "check", "defs")])
@pytest.mark.slow
def test_dagsters_own_tools_find_nothing_wrong(clone: Path, command: tuple[str, ...]) -> None:
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(clone), "VIRTUAL_ENV": str(BIN.parent)}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=clone,
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
