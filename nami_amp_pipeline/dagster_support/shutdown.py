"""Ends a run early within 10 seconds, after recording the answers under way.

Dagster's *Terminate* sends SIGINT to the process of a run, and whoever stops a machine, a container or ``nami-amp run``
sends SIGTERM. Both mean the same here. Stages that only compute are interrupted: their work counts only after their
last transaction. The delivery posts nothing more, and records the answers under way.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from dagster import DagsterExecutionInterruptedError

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
"""The signals that ask a process to end."""

END_SECONDS: Final = 9.0
"""A process that has not ended by then ends at once: safe at any instruction, but less tidy."""

LAST_WORD_SECONDS: Final = 0.4

ASKED_TO_END: Final = "The process of this run was asked to end."


def nothing() -> None:
    """Does nothing."""


@dataclass
class Stop:
    """Whether somebody asked this process to end.

    Attributes:
        asked_at: when, on the monotonic clock; None if nobody did.
    """

    asked_at: float | None = None

    def __call__(self) -> bool:
        """Whether it was asked."""
        return self.asked_at is not None

    @property
    def is_pressing(self) -> bool:
        """Whether the remaining work should be skipped."""
        return self.asked_at is not None and time.monotonic() > self.asked_at + END_SECONDS - 1.0


@dataclass
class Guard:
    """Ends the process if it does not react to a signal in time, whatever it is doing.

    Python runs its signal handlers between two of its own instructions, so a long call into a database driver would
    delay the end. DuckDB mostly stops at once, but not always. A thread receives the signal in any case.

    Attributes:
        signal: the number of the first signal that came; None if none did.
        last_word: called before the process ends itself.
    """

    last_word: Callable[[], None]
    signal: int | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    def listen(self, read: int) -> None:
        """Waits for signals on the reading end of a pipe, until it is closed."""
        while heard := os.read(read, 1):
            if heard[0] in ENDING and self.signal is None:
                self.signal = heard[0]
                threading.Thread(target=self._end, name="end", daemon=True).start()
        os.close(read)

    def _end(self) -> None:
        if self._over.wait(END_SECONDS):
            return
        speaker = threading.Thread(target=self.last_word, name="last-word", daemon=True)
        speaker.start()
        speaker.join(LAST_WORD_SECONDS)
        os._exit(128 + (self.signal or signal.SIGTERM))

    def call_off(self) -> None:
        """Lets the process live."""
        self._over.set()


_guard: Guard | None = None


@contextmanager
def guarded(last_word: Callable[[], None] = nothing) -> Iterator[Guard | None]:
    """Makes sure that the block reacts to a signal in time, and restores the signal handlers afterwards.

    Dagster does not: after a run in this process SIGTERM would do what SIGINT does, and a process that was told to end
    while it says what it did would end with the wrong status.

    Args:
        last_word: called, in another thread, before the process ends itself.

    Yields:
        The guard, which knows the signal; that of the block around this one, where there is one. None in a thread other
        than the main one, which gets no signals.
    """
    global _guard
    if _guard is not None or threading.current_thread() is not threading.main_thread():
        yield _guard
        return
    _guard = Guard(last_word)
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    handlers = {number: signal.getsignal(number) for number in ENDING}
    threading.Thread(target=_guard.listen, args=(read,), name="signals", daemon=True).start()
    try:
        yield _guard
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # else it is not Python's, and stays
                signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(write)
        _guard.call_off()
        _guard = None


@contextmanager
def graceful(end: Callable[[], None] = nothing, last_word: Callable[[], None] = nothing) -> Iterator[Stop]:
    """Turns the first SIGTERM or SIGINT in the block into a stop request that is raised at its end; the second raises.

    Args:
        end: called before it raises.
        last_word: called instead, in another thread, if time runs out.

    Raises:
        DagsterExecutionInterruptedError: the run was asked to end.
    """
    with _signals(end, last_word, at_once=False) as stop:
        yield stop


@contextmanager
def prompt(end: Callable[[], None] = nothing, last_word: Callable[[], None] = nothing) -> Iterator[Stop]:
    """Breaks the block off at the first SIGTERM or SIGINT.

    Args:
        end: called after it was broken off.
        last_word: called instead, in another thread, if time runs out.

    Raises:
        DagsterExecutionInterruptedError: the run was asked to end.
    """
    with _signals(end, last_word, at_once=True) as stop:
        yield stop


@contextmanager
def _signals(end: Callable[[], None], last_word: Callable[[], None], *, at_once: bool) -> Iterator[Stop]:
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may catch signals
        return

    def asked(_number: int, _frame: FrameType | None) -> None:
        again = stop()
        if not again:
            stop.asked_at = time.monotonic()
        if again or at_once:
            raise DagsterExecutionInterruptedError

    with guarded(last_word):
        before = {number: signal.signal(number, asked) for number in ENDING}
        try:
            yield stop
        except BaseException:
            if not stop():
                raise
            # Else it is what the signal raised, or what a library made of it: DuckDB a RuntimeError.
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if stop():
            end()
            raise DagsterExecutionInterruptedError
