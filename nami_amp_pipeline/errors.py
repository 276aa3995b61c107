"""Errors, named by what happens next.

- NamiAmpError
  - Misconfigured: a person has to change a setting or an argument. Exit status 2, one line.
  - Blocked: this work cannot continue until something outside is repaired; finished work stays. Exit status 1.
    - OutOfMemory: a segment is too large for the compute engine or the process, at least beside other segments.
    - WarehouseUnavailable: the next run reads again from where this run stopped.
    - StoreUnavailable: nothing was committed; the next run does the same again.
    - Unexpected: a bug met one partition; the others go on, and the next run tries again.
  - Busy: another process holds the lease or the lock; try again later.
  - LostLease: another process works on this partition now; stop without writing anything more.

Anything else that is raised is a bug.
"""

from __future__ import annotations

from typing import Final

from nami_amp_pipeline import redaction

OUT_OF_MEMORY: Final = (
    "this process ran out of memory; the next run continues where it stopped. Give it more memory, or lower "
    "NAMI_AMP_DUCKDB_MEMORY, NAMI_AMP_SEGMENT_ROWS or NAMI_AMP_DUCKDB_THREADS"
)


class NamiAmpError(Exception):
    """Base of all errors that this package raises on purpose; the message is one line for a person, without secrets.

    Args:
        message: what went wrong, and what to do about it; it may quote a driver or a server.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redaction.clean(str(message)))


class Misconfigured(NamiAmpError):
    """A setting or an argument cannot be used; the message says what to write instead."""


class Blocked(NamiAmpError):
    """Work stops until something outside is repaired; nothing is lost."""


class OutOfMemory(Blocked):
    """Neither memory nor the disk that the compute engine spills to is large enough."""


class WarehouseUnavailable(Blocked):
    """The warehouse cannot be read in its present state."""


class StoreUnavailable(Blocked):
    """The state store cannot be read or written in its present state."""


class Unexpected(Blocked):
    """An error that nobody expected, in the work for one partition."""


class Busy(NamiAmpError):
    """Another process holds the lease or the lock; the same may succeed later."""


class LostLease(NamiAmpError):
    """Another process took this partition over; nothing more may be written or posted for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means, in the words of some library, that memory or threads are exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":  # DuckDB's
        return True
    said = str(error).lower()
    words = ("can't start new thread", "cannot allocate memory", "failed to map segment", "without exception set")
    return isinstance(error, RuntimeError | ImportError | OSError | SystemError) and any(word in said for word in words)
