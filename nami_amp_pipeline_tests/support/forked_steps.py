"""Runs of Dagster with a process for each step, all forked from one that has imported what each would import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Final

import dagster as dg

FORKED: Final = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": ["nami_amp_pipeline.definitions"]}}}, name="forked"
)


@contextmanager
def forks_from_here() -> Iterator[None]:
    """Has steps find the environment of this block: the process they are forked from keeps the one that it found."""
    _stop()
    try:
        yield
    finally:
        _stop()


def _stop() -> None:
    server: forkserver.ForkServer = forkserver._forkserver
    server._stop()  # type: ignore[attr-defined]
