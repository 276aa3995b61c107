"""What Dagster loads has the names that do not change, and a failing integration fails alone and keeps its key."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.definitions import defs
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline_tests.support.harness import Pipeline
from nami_amp_pipeline_tests.support.rows import row

KEY = "clear-text-of-a-key-0123456789abcdef"


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return defs if isinstance(defs, dg.Definitions) else defs()


@pytest.mark.contract("6.8")
def test_assets_are_the_four_stages_in_one_direction(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    parents = {
        node.key.to_user_string(): {parent.to_user_string() for parent in node.parent_keys}
        for node in graph.asset_nodes
    }
    assert parents == {
        "nami_events": set(),
        "user_property_snapshots": {"nami_events"},
        "amplitude_events": {"nami_events", "user_property_snapshots"},
        "amplitude_deliveries": {"amplitude_events"},
        "delivery_report": {"amplitude_deliveries"},
        "amplitude_reconciliation": {"amplitude_deliveries"},
    }


def test_job_schedule_and_sensor_are_there_and_on(definitions: dg.Definitions) -> None:
    repository = definitions.get_repository_def()
    assert repository.has_job("micro_batch")
    schedule, reconcile, retention = sorted(repository.schedule_defs, key=lambda one: one.name)
    assert (reconcile.name, reconcile.default_status) == ("reconcile_daily", dg.DefaultScheduleStatus.RUNNING)
    assert repository.has_job("reconcile")
    assert retention.name == "retention_hourly"
    assert retention.default_status is dg.DefaultScheduleStatus.RUNNING
    assert repository.has_job("retention")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert schedule.cron_schedule == "*/5 * * * *"
    assert all(sensor.default_status is dg.DefaultSensorStatus.RUNNING for sensor in repository.sensor_defs)
    names = {sensor.name for sensor in repository.sensor_defs}
    assert names == {
        "integration_partitions",
        "early_micro_batch",
        "lost_runs",
        "unattended_backfills",
        "unattended_identifies",
        "asked_comparisons",
        "alerts",
        "failed_runs",
    }
    assert repository.has_job("backfill")


@pytest.mark.slow
def test_a_failing_integration_fails_alone_and_its_key_is_nowhere(tmp_path: Path) -> None:
    sandbox = Sandbox(options=Options(throttle=False), refused_keys=[KEY])
    with SandboxServer(sandbox) as server:
        pipeline = Pipeline(tmp_path)
        account = [{"key": "external_id", "type": "uuid", "value": "account-1"}]
        pipeline.insert([row(str(n), n, "user.subscription.renewed", external_ids=account) for n in range(5)])
        for name, key in (("bad", KEY), ("good", "0" * 32)):
            pipeline.add("app", name, endpoint=server.endpoint, api_key=Secret(key), allow_custom_endpoint=True)
        pipeline.close()
        report = run_micro_batch(pipeline.settings)
        by_name = {one["integration"]: one for one in report.integrations}
        assert by_name["app/good"]["delivered"] == 5
        assert by_name["app/bad"]["delivered"] == 0
        assert by_name["app/bad"]["pending"] == by_name["app/bad"]["captured"] == 5
        assert "invalid_api_key" in by_name["app/bad"]["error"]
        assert not report.ok
        assert KEY not in json.dumps(report.to_json())
        with dagster_instance(pipeline.settings) as instance:
            run = instance.get_run_by_id(report.run_id)
            assert run is not None
            assert run.status is dg.DagsterRunStatus.FAILURE
            entries = [str(record.event_log_entry) for record in instance.get_records_for_run(report.run_id).records]
            moved = instance.get_materialized_partitions(dg.AssetKey("amplitude_deliveries"))
        assert "app|good" in moved
        assert entries
        assert not any(KEY in entry for entry in entries)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
