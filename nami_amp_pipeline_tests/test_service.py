"""End to end with real processes: PostgreSQL, code server, daemon, webserver, and an Amplitude that looks closely.

The daemon, and then the code server, die under a run that is posting: the rest is delivered, each event once.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.state.integrations import all_integrations, set_enabled
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS
from nami_amp_pipeline_tests.support.service import service, wait_for
from nami_amp_pipeline_tests.support.webhook import SECRET, Webhook

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

_KEYS = """
query { assetNodes { assetKey { path } partitionKeys } }
"""


def test_the_service_runs_by_itself_and_survives_its_processes(tmp_path: Path, postgres: Postgres) -> None:
    sandbox = Sandbox(refused_keys=[BAD_KEY], options=Options(throttle=False))
    with (
        Webhook() as webhook,
        SandboxServer(sandbox) as server,
        service(
            tmp_path,
            postgres,
            NAMI_AMP_TICK_MINUTES="1",
            NAMI_AMP_SENSOR_SECONDS="10",
            NAMI_AMP_EARLY_TICK_SECONDS="10",
            NAMI_AMP_RUN_RETRY_SECONDS="30",
            NAMI_AMP_BATCH_EVENTS="20",
            NAMI_AMP_MAX_LANES="2",
            NAMI_AMP_ALERT_WEBHOOK_URL=webhook.url,
        ) as running,
    ):
        every = Everything(running, sandbox, server.endpoint)
        every.load("radio", 60, seed=1)
        every.load("fit", 10, seed=2)
        every.add("radio", GOOD_KEY)
        every.add("fit", BAD_KEY)
        assert running.healthy("webserver")
        assert running.healthy("code-server")
        assert running.run(["dagster", "definitions", "validate", "-w", "deploy/workspace.yaml"]).returncode == 0
        # The code server was there before the integrations; a run would add their partitions too, if it came first.
        wait_for(lambda: time.gmtime().tm_sec < 40)
        running.start("daemon")
        _partitions_come_without_a_reload(every)
        _micro_batch_comes_by_itself(every)
        _alerts_come(every, webhook)
        _the_daemon_dies_under_a_run(every, sandbox)
        set_enabled(every.context.store, "fit/main", enabled=False)
        _rest_is_delivered_once(every, sandbox)
        assert sandbox.audit.duplicates == 0
        _sensors_are_well(every)
        wait_for(lambda: sum(message[0] == "✅" for message in webhook.messages) == 1, every.logs)
        assert len(webhook.messages) == 2
        _the_code_server_dies_under_a_run(every, sandbox)
        _rest_is_delivered_once(every, sandbox)
        assert running.healthy("daemon")
        secrets = (GOOD_KEY, BAD_KEY, SECRET, running.environ["NAMI_AMP_ENCRYPTION_KEY"])
        assert not [secret for secret in secrets if secret in every.logs()]
        every.context.store.close()
        assert running.stop("daemon") < 30
        assert running.stop("code-server") < 15
        assert not running.healthy("code-server")


def _partitions_come_without_a_reload(every: Everything) -> None:
    def added() -> set[str]:
        ticks = every.sensors()["integration_partitions"]["ticks"]
        found = [result for tick in ticks for result in tick["dynamicPartitionsRequestResults"]]
        return {key for result in found for key in result["partitionKeys"] or ()}

    assert wait_for(added, every.logs) == {"radio", "fit", "radio|main", "fit|main"}
    nodes = {node["assetKey"]["path"][0]: node for node in every.service.ask(_KEYS)["assetNodes"]}
    assert set(nodes["amplitude_events"]["partitionKeys"]) == {"radio|main", "fit|main"}


def _micro_batch_comes_by_itself(every: Everything) -> None:
    def scheduled() -> list[dict[str, Any]]:
        ended = every.runs("SUCCESS", "FAILURE")
        return [run for run in ended if run["tags"].get("dagster/schedule_name") == "micro_batch_schedule"]

    wait_for(scheduled, every.logs)
    assert {run["tags"].get("nami/job") for run in every.runs()} == {"micro_batch"}
    wait_for(lambda: every.sandbox.audit.accepted, every.logs)


def _alerts_come(every: Everything, webhook: Webhook) -> None:
    wait_for(lambda: webhook.messages, every.logs)
    (halted,) = webhook.messages  # the run failed for nothing else, so it has no alert of its own
    assert "*Integration halted*" in halted
    assert "*fit/main*: invalid_api_key" in halted
    assert "Integration halted: fit/main" in every.service.log("code-server")


def _run_that_posts(every: Everything, sandbox: Sandbox, seed: int) -> str:
    """Loads events, and waits for a run that has been answered something, and is under way for long; returns its id."""
    sandbox.options = dataclasses.replace(sandbox.options, latency_ms=1_500)
    every.load("radio", 60, seed=seed)
    accepted = sandbox.audit.accepted
    wait_for(lambda: sandbox.audit.accepted > accepted, every.logs)
    (run,) = wait_for(lambda: every.runs("STARTED"), every.logs)
    return str(run["runId"])


def _ended(every: Everything, run_id: str) -> str:
    """Waits for the end of a run; returns its status."""

    def of_run() -> list[str]:
        ended = every.runs("CANCELED", "FAILURE", "SUCCESS")
        return [str(run["status"]) for run in ended if run["runId"] == run_id]

    return wait_for(of_run, every.logs)[0]


def _the_daemon_dies_under_a_run(every: Everything, sandbox: Sandbox) -> None:
    run_id = _run_that_posts(every, sandbox, seed=3)
    every.service.kill("daemon")
    every.service.start("daemon")
    sandbox.options = dataclasses.replace(sandbox.options, latency_ms=0)
    assert _ended(every, run_id) == "SUCCESS"  # it is a child of the code server
    delivered = sum(row.delivered for row in status(every.context, all_integrations(every.context.store)))
    assert delivered == sandbox.audit.accepted
    assert sandbox.audit.duplicates == 0


def _the_code_server_dies_under_a_run(every: Everything, sandbox: Sandbox) -> None:
    run_id = _run_that_posts(every, sandbox, seed=4)
    every.service.kill("code-server")
    every.service.start("code-server")
    sandbox.options = dataclasses.replace(sandbox.options, latency_ms=0)
    assert _ended(every, run_id) == "FAILURE"  # the sensor `lost_runs` says so


def _rest_is_delivered_once(every: Everything, sandbox: Sandbox) -> None:
    radio = [one for one in all_integrations(every.context.store) if one.app_id == "radio"]

    def done() -> bool:
        (now,) = status(every.context, radio)
        return now.captured > 0 and now.pending == 0 and every.runs()[0]["status"] == "SUCCESS"

    wait_for(done, every.logs)
    (now,) = status(every.context, radio)
    assert now.delivered == now.captured == sandbox.audit.accepted
    assert sandbox.audit.accepted_more_than_once.count == 0  # what was under way was sent again, and recognised
    assert sandbox.audit.order_violations.count == 0
    assert not every.runs("STARTED", "QUEUED", "CANCELING")


def _sensors_are_well(every: Everything) -> None:
    for name, sensor in every.sensors().items():
        assert sensor["status"] == "RUNNING"
        assert not [tick["error"] for tick in sensor["ticks"] if tick["error"]], name
