"""The daemon, and then the code server, die under a run that is posting: the rest is delivered, each event once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import GOOD_KEY, WARNINGS
from nami_amp_pipeline_tests.support.service import service, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]


class Watched:
    """A service whose Amplitude takes its time, so that a run is under way for long."""

    def __init__(self, every: Everything, sandbox: Sandbox) -> None:
        self.every = every
        self.sandbox = sandbox

    def run_that_posts(self) -> str:
        """Waits for a run that has been answered something; returns its id."""
        accepted = self.sandbox.audit.accepted
        wait_for(lambda: self.sandbox.audit.accepted > accepted, self.every.logs)
        (run,) = wait_for(lambda: self.every.runs("STARTED"), self.every.logs)
        return str(run["runId"])

    def ended(self, run_id: str) -> str:
        """Waits for the end of a run; returns its status."""

        def of_run() -> list[str]:
            ended = self.every.runs("CANCELED", "FAILURE", "SUCCESS")
            return [str(run["status"]) for run in ended if run["runId"] == run_id]

        return wait_for(of_run, self.every.logs)[0]

    def now(self) -> IntegrationStatus:
        """How the integration stands."""
        return status(self.every.context, all_integrations(self.every.context.store))[0]


def test_daemon_and_code_server_die_under_a_run(tmp_path: Path, postgres: Postgres) -> None:
    sandbox = Sandbox(options=Options(throttle=False, latency_ms=1_500))
    with (
        SandboxServer(sandbox) as server,
        service(
            tmp_path, postgres, NAMI_AMP_TICK_MINUTES="1", NAMI_AMP_SENSOR_SECONDS="5",
            NAMI_AMP_EARLY_TICK_SECONDS="5", NAMI_AMP_BATCH_EVENTS="20", NAMI_AMP_MAX_LANES="2",
        ) as running,
    ):  # fmt: skip
        every = Everything(running, sandbox, server.endpoint)
        watched = Watched(every, sandbox)
        every.load("radio", 60, seed=1)
        every.add("radio", GOOD_KEY)
        running.start("daemon")

        run_id = watched.run_that_posts()
        running.kill("daemon")
        running.start("daemon")
        sandbox.options = dataclasses.replace(sandbox.options, latency_ms=200)
        assert watched.ended(run_id) == "SUCCESS"  # it is a child of the code server
        assert watched.now().delivered == sandbox.audit.accepted
        assert sandbox.audit.duplicates == 0

        sandbox.options = dataclasses.replace(sandbox.options, latency_ms=1_500)
        every.load("radio", 60, seed=2)
        run_id = watched.run_that_posts()
        running.kill("code-server")
        running.start("code-server")
        sandbox.options = dataclasses.replace(sandbox.options, latency_ms=0)
        assert watched.ended(run_id) == "FAILURE"  # the sensor `lost_runs` says so
        wait_for(lambda: watched.now().captured > 0 and watched.now().pending == 0, every.logs)
        found = watched.now()
        assert found.delivered == found.captured == sandbox.audit.accepted
        assert sandbox.audit.accepted_more_than_once.count == 0  # what was under way was sent again, and recognised
        every.context.store.close()
