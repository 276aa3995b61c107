"""Runs that are terminated on Dagster's pages, or killed, at each step; in a real service with two code locations more.

All of it is one test, as a service takes most of its time to start.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import event_type_names
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.integrations import NewIntegration, add, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.pages import Pages
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import GOOD_KEY, WARNINGS
from nami_amp_pipeline_tests.support.service import Service, free_port, wait_for
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

MODULE = "nami_amp_pipeline_tests.support.stopping_definitions"

GRACEFUL, FORCED = "SAFE_TERMINATE", "MARK_AS_CANCELED_IMMEDIATELY"
TERMINATED = (("snapshot.commit", GRACEFUL), ("prepare.commit", FORCED), ("deliver", GRACEFUL), ("deliver", FORCED))
"""Steps that only compute, each like the other, and the one that posts."""

KILLED = ("capture.committed", "snapshot.commit", "prepare.committed", "deliver.answered")
"""Just before or after what each step takes effect by; ``test_kill.py`` kills at every instruction."""

SOMEBODY = """
import dagster as dg

@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a"]))
def theirs() -> None: ...

@dg.job(name="retention")
def retention() -> None: ...

defs = dg.Definitions([theirs], jobs=[retention])
"""


def three_locations(running: Service, tmp_path: Path, postgres: Postgres) -> Settings:
    """Adds a second code location of ours, with a store of its own, and one of somebody else; returns its settings."""
    other = {
        "NAMI_AMP_HOME": str(tmp_path / "other"),
        "NAMI_AMP_STATE_URL": postgres.fresh_database(),
        "NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database(),
    }
    somebody = tmp_path / "somebody.py"
    somebody.write_text(SOMEBODY)
    locations = [
        {"grpc_server": {"host": "127.0.0.1", "port": running.code_port, "location_name": "nami_amp_pipeline"}}
    ]
    for name, module, environ in (
        ("other", ["--module-name", "nami_amp_pipeline.definitions"], other),
        ("somebody", ["--python-file", str(somebody)], {}),
    ):
        port = free_port()
        command = ["dagster", "api", "grpc", "--host", "127.0.0.1", "--port", str(port), *module]
        settings = (f"{key}={value}" for key, value in environ.items())
        running.compose = {**running.compose, name: {"command": ["env", *settings, *command]}}
        running.start(name)
        wait_for(lambda at=port: running.answers(at), lambda of=name: running.log(of))  # type: ignore[misc]
        locations.append({"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": name}})
    (running.folder / "deploy" / "workspace.yaml").write_text(yaml.safe_dump({"load_from": locations}))
    return Settings.load({**running.environ, **other}, Path("no.env"))


@pytest.mark.contract("5.1.2")
def test_runs_that_are_terminated_or_killed_and_three_code_locations(tmp_path: Path, postgres: Postgres) -> None:
    sandbox = Sandbox(options=Options(throttle=False))
    order = tmp_path / "stop"
    with SandboxServer(sandbox) as server:
        running = Service.prepare(
            tmp_path, postgres, NAMI_AMP_TICK_MINUTES="59", NAMI_AMP_SENSOR_SECONDS="60", NAMI_AMP_BATCH_EVENTS="20",
            NAMI_AMP_MAX_LANES="2", NAMI_AMP_EARLY_TICK_SECONDS="0", NAMI_AMP_DAGSTER_RETENTION_DAYS="0.000001",
            STOP_FILE=str(order),
        )  # fmt: skip
        try:
            command = running.compose["code-server"]["command"]
            running.compose["code-server"]["command"] = [*command[:-1], MODULE]
            _without_retries(running)
            running.migrate()
            running.start("code-server")
            wait_for(lambda: running.answers(running.code_port), lambda: running.log("code-server"))
            other = Context.open(three_locations(running, tmp_path, postgres))
            running.start("webserver")
            wait_for(lambda: running.answers(int(running.url.rpartition(":")[2])), lambda: running.log("webserver"))
            every = Everything(running, sandbox, server.endpoint)
            every.add("radio", GOOD_KEY)
            running.start("daemon")
            _terminated_at_each_step(every, sandbox, order)
            _killed_in_each_step(every, order)
            _locations_leave_each_other_alone(every, other)
            other.store.close()
            every.context.store.close()
        finally:
            running.close()
    assert sandbox.audit.accepted_more_than_once.count == 0
    assert sandbox.audit.order_violations.count == 0
    assert sandbox.audit.concurrent_same_user.count == 0


def _without_retries(running: Service) -> None:
    """Keeps Dagster from running a killed run again by itself, which would take the next order in its place."""
    dagster = running.folder / "deploy" / "dagster.yaml"
    retries = "run_retries:\n  enabled: true"
    assert retries in dagster.read_text()
    dagster.write_text(dagster.read_text().replace(retries, "run_retries:\n  enabled: false"))


def _now(context: Context) -> IntegrationStatus:
    return status(context, all_integrations(context.store))[0]


def _terminated_at_each_step(every: Everything, sandbox: Sandbox, order: Path) -> None:
    pages = Pages(every)
    reached = order.with_suffix(".reached")
    for number, (step, policy) in enumerate(TERMINATED):
        every.load("radio", 15, seed=number)
        accepted = sandbox.audit.accepted
        if step == "deliver":
            sandbox.options = dataclasses.replace(sandbox.options, latency_ms=1_500)
        else:
            order.write_text(step)
        run_id = pages.launch()
        if step == "deliver":
            wait_for(lambda before=accepted: sandbox.audit.accepted > before, every.logs)  # type: ignore[misc]
        else:
            wait_for(reached.exists, every.logs)
        pages.terminate(run_id, policy)
        assert pages.ends(run_id) == "CANCELED", step
        order.unlink(missing_ok=True)
        reached.unlink(missing_ok=True)
        sandbox.options = dataclasses.replace(sandbox.options, latency_ms=0)
        found = _now(every.context)
        assert found.captured == found.delivered + found.pending, step


def _killed_in_each_step(every: Everything, order: Path) -> None:
    """Each run but the first is the one before, re-executed from failure, and the last one is let live."""
    pages = Pages(every)
    reached = order.with_suffix(".reached")
    every.load("radio", 12, seed=len(TERMINATED))
    run_id = ""
    for moment in KILLED:
        order.write_text(moment)
        run_id = pages.again(run_id) if run_id else pages.launch()
        wait_for(lambda: reached.exists() and reached.read_text(), every.logs)
        os.kill(int(reached.read_text()), signal.SIGKILL)
        order.unlink()
        reached.unlink()
        assert pages.ends(run_id) == "FAILURE", moment
        found = _now(every.context)
        assert found.captured == found.delivered + found.pending, moment
        assert found.pending > 0, moment
    assert pages.ends(pages.again(run_id)) == "SUCCESS"
    known = ", ".join(map(literal, event_type_names()))  # the sample has others too
    ((loaded,),) = every.events.run(f"SELECT count(DISTINCT id) FROM nami_events WHERE event_type IN ({known})")
    found = _now(every.context)
    assert (found.captured, found.pending) == (loaded, 0)
    assert found.delivered == every.sandbox.audit.accepted == loaded


def _locations_leave_each_other_alone(every: Everything, other: Context) -> None:
    pages = Pages(every)
    theirs = pages.launch("somebody", "retention")
    assert pages.ends(theirs) == "SUCCESS"
    before = _now(every.context)
    key = "1" * 32
    new = NewIntegration(
        "fit", "main", every.endpoint, Secret(key), user_id_kind="nami_user_id", allow_custom_endpoint=True
    )
    add(other.store, other.cipher, new)
    loaded = datetime.now(UTC) - timedelta(seconds=30)
    rows = [row | {"ingested_at": loaded} for batch in generate(5, apps=["fit"], seed=1) for row in batch.to_pylist()]
    PostgresEvents(other.settings.warehouse_url).insert(rows)
    assert pages.ends(pages.launch("other")) == "SUCCESS", every.service.log("other")[-4_000:]
    assert _now(other).delivered == _now(other).captured > 0
    assert _now(every.context) == before
    runs = {run["runId"] for run in every.runs()}
    assert pages.ends(pages.launch(job="retention")) == "SUCCESS"
    left = {run["runId"] for run in every.runs()}
    assert left < runs, "but for those that hold what is newest of a partition"
    assert pages.status(theirs) == "SUCCESS", "a job of somebody else that has a name of ours"
