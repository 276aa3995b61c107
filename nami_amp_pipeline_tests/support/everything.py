"""A service as real processes, with a warehouse, two apps and a local Amplitude."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Sandbox
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import NewIntegration, add, all_integrations
from nami_amp_pipeline_tests.support.service import Service, wait_for
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents

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
