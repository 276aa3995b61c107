"""``nami-amp dev`` as a person runs it: the real command, its real children, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import requests

from nami_amp_pipeline_tests.support.command_line import environment
from nami_amp_pipeline_tests.support.service import wait_for

COMMAND = (sys.executable, "-m", "nami_amp_pipeline.cli")


@dataclass
class Development:
    """One call of ``nami-amp dev``.

    Attributes:
        home: the one that the settings name.
        process: the command.
        out: its output.
    """

    home: Path
    process: subprocess.Popen[bytes]
    out: Path

    @property
    def session(self) -> dict[str, Any]:
        """What it wrote down of itself."""
        found: dict[str, Any] = orjson.loads((self.home / "dev" / "session.json").read_bytes())
        return found

    @property
    def url(self) -> str:
        """Of Dagster's pages."""
        return str(self.session["url"])

    def said(self) -> str:
        """Both its streams."""
        return self.out.read_text()

    def is_up(self) -> bool:
        """Whether it has said where its pages are; fails if it ended."""
        assert self.process.poll() is None, f"{self.said()}\n{self.logs()}"
        return "Ctrl-C ends it." in self.said()

    def logs(self) -> str:
        """What its children wrote."""
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in (self.home / "dev").glob("*.log"))

    def children(self) -> dict[int, str]:
        """Command lines of all living processes that work on the home, by process id; the command's own left out."""
        return {pid: line for pid, line in working_on(self.home).items() if pid != self.process.pid}

    def child(self, part: str) -> int:
        """The process id of the child with this in its command line."""
        (found,) = [pid for pid, line in self.children().items() if part in line]
        return found

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Sends a signal, and waits; returns the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Asks Dagster's GraphQL."""
        answer = requests.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        found: dict[str, Any] = answer["data"]
        return found


def working_on(home: Path) -> dict[int, str]:
    """Living processes whose environment names a home, with their command lines; a zombie does not live."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environ = folder.joinpath("environ").read_bytes().split(b"\0")
            if f"NAMI_AMP_HOME={home}".encode() in environ:
                line = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line:
                    found[int(folder.name)] = line
        except OSError:
            continue
    return found


@contextmanager
def development(folder: Path, home: Path, *arguments: str, **settings: str) -> Iterator[Development]:
    """Starts the command in a folder; nothing of it outlives the block."""
    out = folder / f"dev-{len(list(folder.glob('dev-*.out')))}.out"
    with out.open("wb") as stream:
        process = subprocess.Popen(
            [*COMMAND, "dev", *arguments],
            cwd=folder,
            env=environment(folder, NAMI_AMP_HOME=str(home), **settings),
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
        )
    made = Development(home, process, out)
    try:
        yield made
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        wait_for(lambda: not _killed(home), seconds=30)


def _killed(home: Path) -> list[int]:
    left = list(working_on(home))
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return left


@contextmanager
def up(folder: Path, home: Path, *arguments: str, **settings: str) -> Iterator[Development]:
    """The same, once its pages answer."""
    with development(folder, home, *arguments, **settings) as made:
        wait_for(made.is_up, lambda: f"{made.said()}\n{made.logs()}")
        yield made
