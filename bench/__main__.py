"""Measures the parts named, or all, and writes the page: ``python -m bench [PART…]``.

Each part is a process of its own: one that fails leaves the others, and its own earlier figures, alone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import orjson

from bench import page, results
from bench.part import say

PARTS = (
    "micro_batch",
    "postgres",
    "whole_state",
    "object_storage",
    "history",
    "many_apps",
    "workers",
    "backlog",
    "latency",
    "start_up",
    "at_rest",
    "compression",
    "limits",
    "live_first",
    "reconcile",
    "control_center",
    "enrichments",
)
PATIENCE_SECONDS = 900
"""How long a part may take that does not have a ``PATIENCE_SECONDS`` of its own."""


def modules() -> dict[str, ModuleType]:
    """The parts by name, in the order of the page."""
    return {name: importlib.import_module(f"bench.{name}") for name in PARTS}


def measure(part: str, options: list[str]) -> bool:
    """Runs one part and records what came of it; whether it could be measured."""
    command = " ".join(["python -m", f"bench.{part}", *options])
    patience = getattr(importlib.import_module(f"bench.{part}"), "PATIENCE_SECONDS", PATIENCE_SECONDS)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", f"bench.{part}", "--json", *options], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=patience)
        if process.returncode:
            raise RuntimeError(f"ended with {process.returncode}; it said why above")
        figures = orjson.loads(output)
    except (subprocess.TimeoutExpired, RuntimeError, orjson.JSONDecodeError) as error:
        message = "took too long" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        say(f"{part} failed: {message}")
        results.record_failure(part, command, message)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its receiver and its commands, too
            process.wait()
    results.record(part, command, time.monotonic() - began, figures)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--page", action="store_true", help="only write the page from what was measured before")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}")
    failed = []
    for part in [] if arguments.page else arguments.parts or PARTS:
        say(f"{part} …")
        if not measure(part, []):
            failed.append(part)
        page.write(modules())
    page.write(modules())
    say(f"{page.PAGE.name} is written" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
