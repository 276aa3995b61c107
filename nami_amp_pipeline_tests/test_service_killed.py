"""A run's process ends without a word (SIGKILL) in each step of a service; a person re-executes it from failure."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from nami_amp_pipeline.contract import event_type_names
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.pages import Pages
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import GOOD_KEY, WARNINGS
from nami_amp_pipeline_tests.support.service import Service, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

MODULE = "nami_amp_pipeline_tests.support.stopping_definitions"
MOMENTS = (
    "capture.commit",
    "capture.committed",
    "snapshot.commit",
    "prepare.commit",
    "prepare.committed",
    "deliver.post",
    "deliver.answered",
    "receipts.commit",
)
"""Just before or after each step takes effect."""


@pytest.mark.contract("5.1.2")
def test_a_run_that_is_killed_in_each_step_is_re_executed_from_failure(tmp_path: Path, postgres: Postgres) -> None:
    sandbox = Sandbox(options=Options(throttle=False))
    order = tmp_path / "stop"
    with SandboxServer(sandbox) as server:
        running = Service.prepare(
            tmp_path, postgres, NAMI_AMP_TICK_MINUTES="59", NAMI_AMP_BATCH_EVENTS="20", NAMI_AMP_MAX_LANES="2",
            NAMI_AMP_EARLY_TICK_SECONDS="0", STOP_FILE=str(order),
        )  # fmt: skip
        try:
            command = running.compose["code-server"]["command"]
            running.compose["code-server"]["command"] = [*command[:-1], MODULE]
            # Dagster would run it again by itself, and take the next order in place of the run that is to take it.
            dagster = running.folder / "deploy" / "dagster.yaml"
            retries = "run_retries:\n  enabled: true"
            assert retries in dagster.read_text()
            dagster.write_text(dagster.read_text().replace(retries, "run_retries:\n  enabled: false"))
            running.migrate()
            for name, port in (("code-server", running.code_port), ("webserver", int(running.url.rpartition(":")[2]))):
                running.start(name)
                wait_for(lambda at=port: running.answers(at), lambda of=name: running.log(of))  # type: ignore[misc]
            every = Everything(running, sandbox, server.endpoint)
            every.add("radio", GOOD_KEY)
            running.start("daemon")
            _killed_in_each_step(every, order)
            every.context.store.close()
        finally:
            running.close()
    assert sandbox.audit.accepted_more_than_once.count == 0
    assert sandbox.audit.order_violations.count == 0
    assert sandbox.audit.concurrent_same_user.count == 0


def _killed_in_each_step(every: Everything, order: Path) -> None:
    pages = Pages(every)
    known = ", ".join(map(literal, event_type_names()))  # the sample has others too
    reached = order.with_suffix(".reached")
    for number, moment in enumerate(MOMENTS):
        every.load("radio", 12, seed=number)
        order.write_text(moment)
        run_id = pages.launch()
        wait_for(lambda: reached.exists() and reached.read_text(), every.logs)
        os.kill(int(reached.read_text()), signal.SIGKILL)
        order.unlink()
        reached.unlink()
        assert pages.ends(run_id) == "FAILURE", moment
        found = status(every.context, all_integrations(every.context.store))[0]
        assert found.captured == found.delivered + found.pending, moment
        assert pages.ends(pages.again(run_id)) == "SUCCESS", moment
        found = status(every.context, all_integrations(every.context.store))[0]
        ((loaded,),) = every.events.run(f"SELECT count(DISTINCT id) FROM nami_events WHERE event_type IN ({known})")
        assert (found.captured, found.pending) == (loaded, 0), moment
        assert found.delivered == every.sandbox.audit.accepted == loaded, moment
