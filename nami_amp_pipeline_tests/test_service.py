"""End to end with real processes: PostgreSQL, code server, daemon, webserver, and an Amplitude that looks closely."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import NewIntegration, add, all_integrations, set_enabled
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS
from nami_amp_pipeline_tests.support.service import Service, service, wait_for
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents
from nami_amp_pipeline_tests.support.webhook import SECRET, Webhook

pytestmark = pytest.mark.filterwarnings(WARNINGS)

_RUNS = """
query { runsOrError(filter: {pipelineName: "micro_batch"}, limit: 50) { ... on Runs {
  results { runId status tags { key value } } } } }
"""
_STATES = """
query { repositoryOrError(repositorySelector: {
    repositoryName: "__repository__", repositoryLocationName: "nami_amp_pipeline"}) { ... on Repository {
  schedules { name scheduleState { status } }
  sensors { name sensorState { status ticks(limit: 100) { status error { message }
    dynamicPartitionsRequestResults { partitionsDefName partitionKeys type } } } } } } }
"""
_KEYS = """
query { assetNodes { assetKey { path } partitionKeys } }
"""
_TERMINATE = """
mutation ($runId: String!) { terminateRun(runId: $runId) { __typename } }
"""


class Everything:
    """A service with a warehouse, two apps and an Amplitude."""

    def __init__(self, running: Service, sandbox: Sandbox, endpoint: str) -> None:
        self.service = running
        self.sandbox = sandbox
        self.endpoint = endpoint
        self.context = Context.open(Settings.load(running.environ, Path("no.env")))
        self.events = PostgresEvents(self.context.settings.warehouse_url)

    def load(self, app: str, users: int, seed: int) -> None:
        """Puts events of new users into the warehouse that were loaded half a minute ago."""
        loaded = datetime.now(UTC) - timedelta(seconds=30)
        rows = [row for batch in generate(users, apps=[app], seed=seed) for row in batch.to_pylist()]
        for row in rows:
            row |= {"id": f"{row['id']}-{seed}", "user_id": f"{row['user_id']}-{seed}", "ingested_at": loaded}
        self.events.insert(rows)

    def add(self, app: str, key: str) -> None:
        """Adds an integration that sends everybody."""
        new = NewIntegration(
            app, "main", self.endpoint, Secret(key), user_id_kind="nami_user_id", allow_custom_endpoint=True
        )
        add(self.context.store, self.context.cipher, new)

    def runs(self, *statuses: str) -> list[dict[str, Any]]:
        """Dagster's runs, newest first."""
        results: list[dict[str, Any]] = self.service.ask(_RUNS)["runsOrError"]["results"]
        for run in results:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return [run for run in results if not statuses or run["status"] in statuses]

    def sensors(self) -> dict[str, Any]:
        """The states of the sensors."""

        def loaded() -> dict[str, Any] | None:
            # A webserver that has lost its code server for a moment has no repository.
            found: dict[str, Any] = self.service.ask(_STATES)["repositoryOrError"]
            return found if "schedules" in found else None

        found = wait_for(loaded, self.logs)
        assert found is not None
        assert {one["scheduleState"]["status"] for one in found["schedules"]} == {"RUNNING"}
        return {one["name"]: one["sensorState"] for one in found["sensors"]}

    def pending(self) -> int:
        """Events that were read and have no end state."""
        return sum(one.pending for one in status(self.context, all_integrations(self.context.store)))

    def logs(self) -> str:
        """What everybody wrote, for when it goes wrong."""
        names = ("code-server", "daemon", "webserver")
        return "\n".join(f"== {name}\n{self.service.log(name)[-4000:]}" for name in names)


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
        wait_for(lambda: sum(message[0] == "✅" for message in webhook.messages) == 2, every.logs)
        assert len(webhook.messages) == 4
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

    assert wait_for(added, every.logs) == {"radio", "fit", "main"}
    nodes = {node["assetKey"]["path"][0]: node for node in every.service.ask(_KEYS)["assetNodes"]}
    assert set(nodes["amplitude_events"]["partitionKeys"]) == {"radio|main", "fit|main"}


def _micro_batch_comes_by_itself(every: Everything) -> None:
    def scheduled() -> list[dict[str, Any]]:
        ended = every.runs("SUCCESS", "FAILURE")
        return [run for run in ended if run["tags"].get("dagster/schedule_name") == "micro_batch_every_5_minutes"]

    wait_for(scheduled, every.logs)
    assert {run["tags"].get("nami/job") for run in every.runs()} == {"micro_batch"}
    wait_for(lambda: every.sandbox.audit.accepted, every.logs)


def _alerts_come(every: Everything, webhook: Webhook) -> None:
    wait_for(lambda: len(webhook.messages) == 2, every.logs)
    halted, failed = sorted(webhook.messages)
    assert "*Integration halted*" in halted
    assert "*fit/main*: invalid_api_key" in halted
    assert "*Run failed*" in failed
    pages = {f"<{every.service.url}/runs/{run['runId']}|" for run in every.runs("FAILURE")}
    assert any(page in failed for page in pages)
    assert "Integration halted: fit/main" in every.service.log("code-server")


def _termination_is_graceful(every: Everything, sandbox: Sandbox) -> None:
    accepted = sandbox.audit.accepted
    sandbox.options = dataclasses.replace(sandbox.options, latency_ms=1_500)
    wait_for(lambda: sandbox.audit.accepted > accepted, every.logs)
    (run,) = wait_for(lambda: every.runs("STARTED"), every.logs)
    begun = time.monotonic()
    answer = every.service.ask(_TERMINATE, runId=run["runId"])
    assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"
    wait_for(lambda: run["runId"] in [one["runId"] for one in every.runs("CANCELED")], every.logs)
    assert time.monotonic() - begun < 15  # ten, and what a busy machine takes to tell
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
