"""What the demo says at its end: how to look at Dagster's pages and at the local Amplitude."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from nami_amp_pipeline.dagster_support.dev import under_way
from nami_amp_pipeline.demo.local_amplitude import Place
from nami_amp_pipeline.settings import Settings

_FOLDERS: Final = ("NAMI_AMP_HOME", "NAMI_AMP_DATA_DIR", "DAGSTER_HOME")
"""Variables that the command must be given too, as they may have been given to the demo alone; none holds a secret."""


def show_addresses(console: Console, settings: Settings, run_id: str, place: Place, *, is_served: bool) -> None:
    """Prints the pages that there are, and the command that starts those that there are not.

    Args:
        console: where to print.
        settings: of the home.
        run_id: Dagster's, of the demo's run.
        place: of the local Amplitude.
        is_served: whether it goes on listening if it is the demo's.
    """
    running = under_way(settings)
    lines = ["\nTo look around:"]
    if running is None:
        lines += [
            f"  {command('dev', '--open')}",
            "  starts Dagster's pages with this run, a micro-batch every "
            f"{settings.tick_minutes} minutes, the Control Center, and the local Amplitude with all that it received.",
        ]
    else:
        lines += [f"  Dagster    {running.url}/runs/{run_id}", f"             {running.url}/assets/delivery_report"]
        lines += [f"  Control Center  {running.control_center}"] * bool(running.control_center)
    if not place.is_of_the_demo:
        lines.append(f"  Amplitude  {place.url}")
    elif is_served:
        lines.append(f"  Amplitude  {place.url}  (Ctrl-C stops it)")
    lines.append(
        "  Amplitude's page has a button for each thing that can go wrong: an outage, a wrong key, a throttled user, …"
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def command(*words: str) -> str:
    """A command line of this program that works in the shell that started it."""
    folders = [f"{name}={shlex.quote(os.environ[name])}" for name in _FOLDERS if os.environ.get(name)]
    return " ".join([*folders, *_program(), *map(shlex.quote, words)])


def _program() -> list[str]:
    """How this program was called: by its name if the shell would find it so, else by its path."""
    called = Path(sys.argv[0])
    if called.suffix == ".py" or not called.is_file():
        return [shlex.quote(sys.executable), "-m", "nami_amp_pipeline.cli"]
    found = shutil.which("nami-amp")
    if found and Path(found).resolve() == called.resolve():
        return ["nami-amp"]
    return [shlex.quote(str(called))]
