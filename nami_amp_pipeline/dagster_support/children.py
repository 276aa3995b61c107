"""Starts processes that belong together, notices when one ends, and stops them all in order."""

from __future__ import annotations

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

from nami_amp_pipeline.dagster_support import orphans
from nami_amp_pipeline.dagster_support.orphans import tell

STOP_SECONDS: Final = 15.0
"""How long a process may take to end: a run records the answers under way within 10 seconds."""

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a request to end, and a terminal that was closed."""

_LOOK_SECONDS: Final = 0.1

_IDLE_SECONDS: Final = 0.5
"""Between two looks of who waits without an end, as a session does while all is well."""


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
        heir: who ends them if this process is killed.
    """

    running: list[Child] = field(default_factory=list)
    asked: int | None = None
    pressed: int = 0
    heir: Heir | None = None

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
            )
        if self.heir is not None:
            self.heir.hears(f"+{process.pid}")
        child = Child(name, log, process)
        self.running.append(child)
        return child

    def wait_until(self, ready: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Waits until something is so; returns whether it came to be.

        Args:
            ready: looks; asked ten times a second, or twice where the wait has no end.
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
            time.sleep(_IDLE_SECONDS if seconds == float("inf") else _LOOK_SECONDS)

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
                tell(child.process.pid, signal.SIGTERM)
            until = time.monotonic() + STOP_SECONDS
            while any(_group_lives(child) for child in stage) and time.monotonic() < until:
                if self.pressed > pressed:
                    break
                time.sleep(_LOOK_SECONDS)
            for child in stage:
                tell(child.process.pid, signal.SIGKILL)
                child.process.wait()
                self.running.remove(child)
                if self.heir is not None:
                    self.heir.hears(f"-{child.process.pid}")


class Heir:
    """A small process that ends the children if this one is killed; see :mod:`orphans`.

    Args:
        keeps: file descriptors that it holds open until it has done so, such as that of a lock.
        removes: folders that it removes then.
    """

    def __init__(self, keeps: Sequence[int] = (), removes: Sequence[Path] = ()) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - a program of this package
            [sys.executable, "-I", "-S", orphans.__file__, *map(str, removes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it outlives Ctrl-C and a terminal that is closed
            pass_fds=keeps,
        )

    def hears(self, line: str) -> None:
        """Tells it of a process group."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # somebody ended it: without it, this process does what it can
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def leaves(self) -> None:
        """Lets it go, as all children have ended; what it still knows of, it ends."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


@contextmanager
def listening(keeps: Sequence[int] = (), removes: Sequence[Path] = ()) -> Iterator[Children]:
    """Turns signals that ask this process to end into :class:`Ended`; whatever still runs afterwards is stopped.

    Args:
        keeps: file descriptors that stay open until that is so, even if this process is killed.
        removes: folders that are removed after that.
    """
    children = Children(heir=Heir(keeps, removes))

    def asked(number: int, _frame: FrameType | None) -> None:
        children.asked = children.asked or number
        children.pressed += 1

    before = {number: signal.signal(number, asked) for number in ENDING}
    try:
        yield children
    finally:
        children.stop()
        if children.heir is not None:
            children.heir.leaves()
        for number, handler in before.items():
            signal.signal(number, handler)


def _group_lives(child: Child) -> bool:
    """Whether the process, or any that it started, is still there."""
    child.process.poll()
    return tell(child.process.pid, 0)
