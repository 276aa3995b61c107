"""Ends what a session left behind that was killed itself: a program of its own, which needs nothing but Unix.

It reads process groups from standard input, one ``+GROUP`` or ``-GROUP`` a line. The kernel closes the other end when
the session ends in whatever way; then every group that was added and not taken away is ended. Linux alone could have a
signal sent to each process instead, but not to what that has started. Folders that are named as arguments are removed
after that.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

END_SECONDS = 12.0
"""How long the groups may take: a run records the answers under way within 10 seconds."""


def left_by(lines: Iterable[str]) -> list[int]:
    """The process groups that are left when the session has ended, in the order in which they were started."""
    left: dict[int, None] = {}
    for line in lines:
        sign, group = line[:1], line[1:].strip()
        if not group.isdigit() or not line.endswith("\n"):
            continue  # the session was killed while it wrote
        if sign == "+":
            left[int(group)] = None
        else:
            left.pop(int(group), None)
    return list(left)


def tell(group: int, number: int) -> bool:
    """Sends a signal to a process group; 0 only asks. Returns whether any of its processes lives."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        return False
    return True


def end(groups: list[int], seconds: float = END_SECONDS) -> None:
    """Ends process groups: asks them, and kills what still lives after so many seconds."""
    alive = [group for group in groups if tell(group, signal.SIGTERM)]
    until = time.monotonic() + seconds
    while alive and time.monotonic() < until:
        time.sleep(0.1)
        alive = [group for group in alive if tell(group, 0)]
    for group in alive:
        tell(group, signal.SIGKILL)


if __name__ == "__main__":
    end(left_by(sys.stdin))
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)
