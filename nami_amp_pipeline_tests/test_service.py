"""End to end with real processes: PostgreSQL, code server, daemon, webserver, and an Amplitude that looks closely."""

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
_TERMINATE = """
mutation ($runId: String!) { terminateRun(runId: $runId) { __typename } }
"""


def test_the_service_runs_by_itself(tmp_path: Path, postgres: Postgres) -> None:
    sandbox = Sandbox(refused_keys=[BAD_KEY], options=Options(throttle=False))
    with (
        Webhook() as webhook,
        SandboxServer(sandbox) as server,
        service(
            tmp_path,
            postgres,
            NAMI_AMP_TICK_MINUTES="1",
            NAMI_AMP_SENSOR_SECONDS="5",
            NAMI_AMP_EARLY_TICK_SECONDS="10",
            NAMI_AMP_RUN_RETRY_SECONDS="30",
            NAMI_AMP_BATCH_EVENTS="50",
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
        every.load("radio", 120, seed=3)
        _termination_is_graceful(every, sandbox)
        set_enabled(every.context.store, "fit/main", enabled=False)
        _rest_is_delivered_once(every, sandbox)
        wait_for(lambda: sum(message[0] == "✅" for message in webhook.messages) == 1, every.logs)
        assert len(webhook.messages) == 2
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


def _termination_is_graceful(every: Everything, sandbox: Sandbox) -> None:
    accepted = sandbox.audit.accepted
    sandbox.options = dataclasses.replace(sandbox.options, latency_ms=1_500)
    wait_for(lambda: sandbox.audit.accepted > accepted, every.logs)
    (run,) = wait_for(lambda: every.runs("STARTED"), every.logs)
    answer = every.service.ask(_TERMINATE, runId=run["runId"])
    assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
    wait_for(lambda: run["runId"] in [one["runId"] for one in every.runs("CANCELED")], every.logs)
    assert every.pending()
    delivered = sum(one.delivered for one in status(every.context, all_integrations(every.context.store)))
    assert delivered == sandbox.audit.accepted
    sandbox.options = dataclasses.replace(sandbox.options, latency_ms=0)


def _rest_is_delivered_once(every: Everything, sandbox: Sandbox) -> None:
    radio = [one for one in all_integrations(every.context.store) if one.app_id == "radio"]

    def done() -> bool:
        (now,) = status(every.context, radio)
        return now.captured > 0 and now.pending == 0 and every.runs()[0]["status"] == "SUCCESS"

    wait_for(done, every.logs)
    (now,) = status(every.context, radio)
    assert now.delivered == now.captured == sandbox.audit.accepted
    assert sandbox.audit.duplicates == 0
    assert sandbox.audit.order_violations.count == 0
    assert not every.runs("STARTED", "QUEUED", "CANCELING")
    for name, sensor in every.sensors().items():
        assert sensor["status"] == "RUNNING"
        assert not [tick["error"] for tick in sensor["ticks"] if tick["error"]], name
