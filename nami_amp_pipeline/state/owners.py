"""Names for processes, which tell others on the same machine whether the process still runs."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

LONGEST_LEASE_SECONDS = 3_600.0
"""Longer leases than this cannot be set."""


def new_owner(lease_seconds: float = LONGEST_LEASE_SECONDS) -> str:
    """A name for this process, which tells others on the same machine whether it still runs.

    Args:
        lease_seconds: how long its leases last; a lease that lasts longer shows that a clock is wrong.
    """
    pid = os.getpid()
    return f"{_machine()}|{pid}|{_started(pid) or ''}|{uuid.uuid4().hex[:8]}|{lease_seconds:g}"


def lease_seconds_of(owner: str) -> float:
    """How long the leases of a process last, or the maximum if its name does not say."""
    text = owner.split("|")[4:5]
    try:
        return min(float(text[0]), LONGEST_LEASE_SECONDS) if text else LONGEST_LEASE_SECONDS
    except ValueError:
        return LONGEST_LEASE_SECONDS


def has_ended(owner: str) -> bool:
    """Whether the process of that name has certainly ended; never true for a process of another machine."""
    parts = owner.split("|")
    if len(parts) not in (4, 5) or parts[0] != _machine() or not parts[1].isdigit() or not parts[2]:
        return False
    return _started(int(parts[1])) != parts[2]


def _machine() -> str:
    """This machine's boot, and the namespace of its process numbers (Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}:{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}:"


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's count; None if there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
