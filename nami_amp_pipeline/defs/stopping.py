"""How a run ends early without leaving a request behind whose answer nobody recorded."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from dagster import DagsterExecutionInterruptedError


@dataclass
class Stop:
    """Whether somebody asked this process to end."""

    asked: bool = False

    def __call__(self) -> bool:
        """Whether it was asked."""
        return self.asked


@contextmanager
def graceful() -> Iterator[Stop]:
    """Turns the first SIGTERM or SIGINT in the block into a wish, and raises at its end; a second one raises at once.

    Dagster's *Terminate* sends SIGINT. It would otherwise break off between an answer and its record, which is safe, as
    the next run sends the same bytes again, but needless.

    Raises:
        DagsterExecutionInterruptedError: the run was asked to end; Dagster then shows it as canceled.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may catch signals
        return

    def wish(_number: int, _frame: FrameType | None) -> None:
        if stop.asked:
            raise DagsterExecutionInterruptedError
        stop.asked = True

    before = {number: signal.signal(number, wish) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.asked:
        raise DagsterExecutionInterruptedError
