"""A service whose code server is stopped, and killed, under a run.

``python -m nami_amp_pipeline_tests.tools.service_kills`` takes some minutes, and prints what it saw.
``test_service.py`` has the rest of the service.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import GOOD_KEY
from nami_amp_pipeline_tests.support.service import service, wait_for


def say(text: str) -> None:
    """For whoever started it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_under_way(every: Everything, sandbox: Sandbox) -> str:
    """Waits until a run is posting; returns its id."""
    accepted = sandbox.audit.accepted
    wait_for(lambda: sandbox.audit.accepted > accepted, every.logs)
    (run,) = wait_for(lambda: every.runs("STARTED"), every.logs)
    return str(run["runId"])


def ended(every: Everything, run_id: str) -> str:
    """Waits for the end of a run; returns its status."""
    found = wait_for(
        lambda: [run for run in every.runs("CANCELED", "FAILURE", "SUCCESS") if run["runId"] == run_id], every.logs
    )
    return str(found[0]["status"])


def main() -> None:
    """Stops, kills, and looks at what became of it."""
    sandbox = Sandbox(options=Options(throttle=False, latency_ms=1_500))
    postgres = Postgres()
    with (
        tempfile.TemporaryDirectory() as home,
        SandboxServer(sandbox) as server,
        service(
            Path(home) / "service", postgres, NAMI_AMP_TICK_MINUTES="1", NAMI_AMP_EARLY_TICK_SECONDS="10",
            NAMI_AMP_BATCH_EVENTS="20", NAMI_AMP_MAX_LANES="2",
        ) as running,
    ):  # fmt: skip
        every = Everything(running, sandbox, server.endpoint)
        every.load("radio", 300, seed=1)
        every.add("radio", GOOD_KEY)
        running.start("daemon")

        run_id = run_under_way(every, sandbox)
        took = running.stop("code-server")
        began = time.monotonic()
        found = ended(every, run_id)
        say(f"stopped: the code server took {took:.1f} s, the run was {found} {time.monotonic() - began:.1f} s later")
        assert found == "CANCELED"
        assert took < 15
        (now,) = status(every.context, all_integrations(every.context.store))
        assert now.delivered == sandbox.audit.accepted

        running.start("code-server")
        run_id = run_under_way(every, sandbox)
        running.kill("code-server")
        began = time.monotonic()
        running.start("code-server")
        found = ended(every, run_id)
        say(f"killed: the run was {found} {time.monotonic() - began:.1f} s later")
        assert found == "FAILURE"

        sandbox.options = dataclasses.replace(sandbox.options, latency_ms=0)
        began = time.monotonic()

        def done() -> bool:
            (now,) = status(every.context, all_integrations(every.context.store))
            return now.captured > 0 and now.pending == 0

        wait_for(done, every.logs)
        (now,) = status(every.context, all_integrations(every.context.store))
        say(f"then: {now.delivered:,} of {now.captured:,} delivered {time.monotonic() - began:.1f} s later; "
            f"{sandbox.audit.duplicates} sent twice and recognised")  # fmt: skip
        assert now.delivered == now.captured == sandbox.audit.accepted
        assert sandbox.audit.accepted_more_than_once.count == 0
        every.context.store.close()
    postgres.stop()


if __name__ == "__main__":
    main()
