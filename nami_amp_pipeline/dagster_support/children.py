"""Starts processes that belong together, notices when one ends, and stops them all in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

STOP_SECONDS: Final = 15.0
"""How long a process may take to end: a run records the answers under way within 10 seconds."""

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end, and a terminal that was closed."""

_LOOK_SECONDS: Final = 0.1
_PDEATHSIG: Final = 1
_PRCTL: Final = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
"""Linux's system call with which a process asks for a signal when its parent ends."""


class Ended(Exception):
    """A signal asked this process to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class ChildDied(Exception):
    """A process ended that should have gone on.

    Args:
        child: which one.
    """

    def __init__(self, child: Child) -> None:
        super().__init__(child.name)
        self.child = child


@dataclass
class Child:
    """A process that was started here, the leader of a process group of its own.

    Attributes:
        name: as people call it.
        log: where its output goes.
        process: the process itself.
    """

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def how_it_ended(self) -> str:
        """Its exit status or signal, in words."""
        code = self.process.returncode
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit status {code}"


@dataclass
class Children:
    """Processes in the order in which they were started; use it inside :func:`listening`.

    Attributes:
        running: those that were started and not stopped yet.
        asked: the first signal that asked this process to end; None if none did.
        pressed: how many such signals came.
    """

    running: list[Child] = field(default_factory=list)
    asked: int | None = None
    pressed: int = 0

    def start(self, name: str, command: Sequence[str], log: Path, environ: Mapping[str, str]) -> Child:
        """Starts a process whose output goes to a log file; what that held before is kept beside it as ``.1``.

        Raises:
            OSError: the log cannot be written.
        """
        if log.exists():
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - commands of this program and of Dagster
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process only, which stops them in order
                preexec_fn=_end_with_parent if _PRCTL is not None else None,
            )
        child = Child(name, log, process)
        self.running.append(child)
        return child

    def wait_until(self, ready: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Waits until something is so; returns whether it came to be.

        Args:
            ready: looks; asked several times a second.
            seconds: how long to wait.

        Raises:
            Ended: a signal came.
            ChildDied: a process ended.
        """
        until = time.monotonic() + seconds
        while True:
            if self.asked is not None:
                raise Ended(self.asked)
            for child in self.running:
                if child.process.poll() is not None:
                    raise ChildDied(child)
            if ready():
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_SECONDS)

    def stop(self, order: Sequence[Sequence[str]] = ()) -> None:
        """Stops every process with all that it started; a second signal makes short work of it.

        Args:
            order: names of processes that end at the same time, and those that end after them; what is not named ends
                last.
        """
        stages = [[child for child in self.running if child.name in names] for names in order]
        named = [child for stage in stages for child in stage]
        pressed = self.pressed
        for stage in [*stages, [child for child in self.running if child not in named]]:
            for child in stage:
                _signal_group(child, signal.SIGTERM)
            until = time.monotonic() + STOP_SECONDS
            while any(_group_lives(child) for child in stage) and time.monotonic() < until:
                if self.pressed > pressed:
                    break
                time.sleep(_LOOK_SECONDS)
            for child in stage:
                _signal_group(child, signal.SIGKILL)
                child.process.wait()
                self.running.remove(child)


@contextmanager
def listening() -> Iterator[Children]:
    """Turns signals that ask this process to end into :class:`Ended`; whatever still runs afterwards is stopped."""
    children = Children()

    def asked(number: int, _frame: FrameType | None) -> None:
        children.asked = children.asked or number
        children.pressed += 1

    before = {number: signal.signal(number, asked) for number in ENDING}
    try:
        yield children
    finally:
        children.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Lets the kernel end the process that is being started when this one is killed, so that none is left alone."""
    if _PRCTL is not None:
        _PRCTL(_PDEATHSIG, signal.SIGTERM)


def _signal_group(child: Child, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(child.process.pid, number)


def _group_lives(child: Child) -> bool:
    """Whether the process, or any that it started, is still there."""
    child.process.poll()
    try:
        os.killpg(child.process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
