"""One history from beginning to end, in a folder of its own that is removed after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nami_amp_pipeline_tests.simulation.world import Facts, World
from nami_amp_pipeline_tests.support.fast_start import shared_engine, work_folder


class History(Protocol):
    """What a seed makes."""

    world: World

    def run(self) -> Facts:
        """Runs it to its end, and checks what must hold."""


def run_history(make: Callable[[int, Path], History], seed: int) -> Facts:
    """Makes the history of a seed, and runs it.

    Raises:
        WrongError: something that must hold does not.
    """
    folder = work_folder()
    try:
        with shared_engine():
            history = make(seed, folder)
            try:
                return history.run()
            finally:
                history.world.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
