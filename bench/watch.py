"""Runs a command and says what it took: seconds, processor time, memory at its highest."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05


@dataclass
class Took:
    """What a command took.

    Attributes:
        seconds: from start to end.
        cpu: seconds of processor, of its children too.
        peak_rss: highest resident memory of the process and its children at once, in bytes, as sampled; pages of
            files that are mapped into memory count.
        peak_anonymous: the same without pages of files, which the kernel may drop at any time.
        output: what it printed.
    """

    seconds: float
    cpu: float
    peak_rss: int
    peak_anonymous: int
    output: bytes


class Failed(Exception):
    """A command ended with another status than 0."""


def run(command: Sequence[str], *, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Took:
    """Runs a command to its end.

    Raises:
        Failed: with the last lines of what it said on standard error.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        before = os.times()
        began = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environ) if environ else None, stdout=out, stderr=err, cwd=cwd)
        peaks = _Peaks(process.pid)
        peaks.start()
        status = process.wait()
        seconds = time.perf_counter() - began
        peaks.done.set()
        peaks.join()
        after = os.times()
        out.seek(0)
        if status:
            err.seek(0)
            raise Failed(f"{command[0]} ended with {status}: {err.read()[-2_000:].decode(errors='replace')}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return Took(seconds, cpu, peaks.resident, peaks.anonymous, out.read())


class _Peaks(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.done = threading.Event()
        self.resident = 0
        self.anonymous = 0

    def run(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            resident = anonymous = 0
            for pid in family(self.pid):
                values = memory(pid)
                resident += values.get("VmRSS", 0)
                anonymous += values.get("RssAnon", 0)
            self.resident = max(self.resident, resident)
            self.anonymous = max(self.anonymous, anonymous)


def family(pid: int) -> list[int]:
    """A process with all that it started, and what those started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """Seconds of processor of a process and its family, of those that ended and were waited for too."""
    return sum(sum(_spent(member)) for member in family(pid))


def own_cpu_seconds(pid: int) -> float:
    """Seconds of processor of a process alone."""
    return _spent(pid)[0]


def _spent(pid: int) -> tuple[float, float]:
    """Seconds of processor of a process, and of those that it started and waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    user, system, of_children, system_of_children = map(int, fields[11:15])
    second = os.sysconf("SC_CLK_TCK")
    return (user + system) / second, (of_children + system_of_children) / second


def memory(pid: int) -> dict[str, int]:
    """Resident bytes of a process, ``VmRSS``, and those that are no pages of files, ``RssAnon``."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in lines)
        if name in ("VmRSS", "RssAnon")
    }
