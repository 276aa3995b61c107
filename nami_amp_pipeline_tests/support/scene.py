"""A home with a small sample, a local Amplitude on a port, and integrations: what the tests of Dagster start from."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import Integration, NewIntegration, add
from nami_amp_pipeline.storage.duckdb_engine import sql

GOOD_KEY = "good-0123456789abcdef0123456789"
BAD_KEY = "wrong-key-9876543210fedcba98765"

WARNINGS = "ignore::pydantic.warnings.PydanticDeprecatedSince20"
"""Dagster 1.13 reads Pydantic models the old way."""


@dataclass
class Scene:
    """Everything that the tests of Dagster need.

    Attributes:
        home: where everything lives.
        settings: of that home.
        context: for looking at the store; no run uses it.
        sandbox: the local Amplitude, which refuses ``BAD_KEY``.
        endpoint: where it listens.
    """

    home: Path
    settings: Settings
    context: Context
    sandbox: Sandbox
    endpoint: str

    def load(self, users: int = 30, apps: Sequence[str] = ("radio", "fit"), seed: int = 7) -> int:
        """Puts sample events into the warehouse; returns how many."""
        with duckdb.connect(str(self.home / "warehouse.duckdb")) as connection:
            connection.execute(sql("nami_events"))
            connection.register("sample", pa.Table.from_batches(generate(users, apps=apps, seed=seed)))
            ((rows,),) = connection.execute("INSERT INTO nami_events BY NAME FROM sample").fetchall()
        return int(rows)

    def add(self, app_id: str, name: str = "main", key: str = GOOD_KEY, **more: Any) -> Integration:
        """Adds an integration that sends everybody under Nami's user id."""
        more = {"user_id_kind": "nami_user_id", "endpoint": self.endpoint, "allow_shared_key": True, **more}
        new = NewIntegration(app_id, name, api_key=Secret(key), allow_custom_endpoint=True, **more)
        return add(self.context.store, self.context.cipher, new)

    def run(
        self, instance: dg.DagsterInstance, *integrations: str, run_id: str = "", raise_on_error: bool = False
    ) -> dg.ExecuteInProcessResult:
        """A run of ``micro_batch`` in this process, for all integrations or some."""
        pipeline = PipelineSession(self.settings, run_id=run_id or str(uuid.uuid4()))
        try:
            return micro_batch.execute_in_process(
                run_config={"integrations": list(integrations), "console_log_level": "CRITICAL"},
                instance=instance,
                resources={"pipeline": pipeline},
                raise_on_error=raise_on_error,
            )
        finally:
            pipeline.close()

    def status(self, *integrations: Integration) -> dict[str, IntegrationStatus]:
        """The numbers of integrations by key."""
        return {one.integration: one for one in status(self.context, integrations)}


@contextmanager
def scene(home: Path, **settings: str) -> Iterator[Scene]:
    """Sets the scene in an empty folder."""
    environ = {f"NAMI_AMP_{name.upper()}": value for name, value in settings.items()}
    loaded = Settings.load({"NAMI_AMP_HOME": str(home), **environ})
    sandbox = Sandbox(refused_keys=[BAD_KEY], options=Options(throttle=False))
    with SandboxServer(sandbox) as server:
        context = Context.open(loaded, run_id="test")
        try:
            yield Scene(home, loaded, context, sandbox, server.endpoint)
        finally:
            context.store.close()
