"""What a person waits for before anything happens: the import, and ``nami-amp status``.

``python -m bench.start_up --repeats 3``
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from bench import watch
from bench.data import sample_warehouse
from bench.part import alone, spread, table
from bench.receiver import Receiver
from bench.scene import NAMI_AMP, Home, delivered_all, room, summary

TITLE = "Start-up"
GOALS = {"import": 0.3, "status": 1.0}
_COMMANDS = {
    "python": ([sys.executable, "-c", "pass"], "`python -c pass`, for comparison"),
    "import": ([sys.executable, "-c", "import nami_amp_pipeline"], "`import nami_amp_pipeline`, interpreter included"),
    "help": ([NAMI_AMP, "--help"], "`nami-amp --help`"),
    "status": ([NAMI_AMP, "status", "--json"], "`nami-amp status`"),
}


def measure(*, repeats: int = 7, rows: int = 10_000) -> dict[str, Any]:
    """Times commands in turns, after a first one of each that fills the caches of the disk.

    Args:
        repeats: of each.
        rows: that have been delivered when the status is asked for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    with Receiver() as receiver, room("start-up") as folder:
        home = Home(folder, f"duckdb:///{sample_warehouse(rows)}")
        home.integrate(receiver.url)
        delivered_all(home, receiver)
        for number in range(repeats + 1):
            for name, (command, _) in _COMMANDS.items():
                took = watch.run(command, environ=home.environ, cwd=folder)
                if number:
                    seconds[name].append(took.seconds)
        loaded = "import sys, nami_amp_pipeline.cli as c; print('dagster' in sys.modules, 'duckdb' in sys.modules)"
        found = subprocess.run(
            [sys.executable, "-c", loaded], check=True, capture_output=True, text=True
        ).stdout.split()
    return {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "command_line_loads_dagster": found[0] == "True",
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    return [
        (_COMMANDS[name][1], f"≤ {goal} s", f"{spread(result['seconds'][name], '.2f')} s",
         result["seconds"][name]["median"] <= goal)
        for name, goal in GOALS.items()
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    loads = "loads" if result["command_line_loads_dagster"] else "does not load"
    rows = [[label, spread(result["seconds"][name], ".2f")] for name, (_, label) in _COMMANDS.items()]
    return table(["", "seconds"], rows) + f"\n\nThe command line {loads} Dagster where it is not needed."


if __name__ == "__main__":
    alone(sys.modules[__name__])
