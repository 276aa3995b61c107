"""Real processes that are killed: runs the stages in a child each time it is told to, and kills it where it is told.

``python -m nami_amp_pipeline_tests.simulation.killed`` reads one JSON object a line, ``{"kill_at": 17}`` (a step,
counted from the start), ``{"after": 0.2}`` (seconds) or ``{}``, and answers each with ``{"killed": …, "status": …}``.
The children are forked from a process that has everything imported and nothing open, so a start takes no time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry


def run(kill_at: int | None) -> None:
    """All four stages; the process ends itself the hard way at a step."""
    context = Context.open(Settings.load())
    steps = 0

    def step(_name: str) -> None:
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    context.step = step
    pipeline.capture_apps(context)
    pipeline.snapshot_apps(context)
    pipeline.prepare_integrations(context, registry.all_integrations(context.store))
    pipeline.deliver_integrations(context, registry.all_integrations(context.store))


def spawn(kill_at: int | None, after: float | None) -> dict[str, object]:
    """Runs a child to its end, or kills it after some time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(kill_at)
            status = 0
        except BaseException:  # noqa: BLE001 - the parent must get its answer whatever happened
            traceback.print_exc()
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, result = os.waitpid(child, 0)
    return {"killed": os.WIFSIGNALED(result), "status": os.waitstatus_to_exitcode(result)}


def main() -> None:
    """Reads orders until there are no more."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        sys.stdout.write(json.dumps(spawn(order.get("kill_at"), order.get("after"))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
