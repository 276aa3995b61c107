"""Errors, named by what happens next.

- NamiAmpError
  - Misconfigured: a person has to change a setting or an argument. Exit status 2, one line.
  - Blocked: this work cannot go on until something outside is repaired; what was done stays done. Exit status 1.
    - OutOfMemory: a segment is too large for the compute engine, at least beside others, or for the process.
    - WarehouseUnavailable: the next run reads again from where this one stopped.
    - StoreUnavailable: nothing was committed; the next run does the same again.
    - Unexpected: a bug met one partition; the others go on, and the next run tries again.
  - Busy: somebody else holds the lease or the lock; the same later.
  - LostLease: somebody else works on this partition now; leave without writing anything more.

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
        message: what went wrong, and what to do about it; what a driver or a server said may stand in it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redaction.clean(str(message)))


class Misconfigured(NamiAmpError):
    """A setting or an argument cannot be used; the message says what to write instead."""


class Blocked(NamiAmpError):
    """Work stops until something outside is repaired; nothing is lost."""


class OutOfMemory(Blocked):
    """Memory does not suffice, and neither does the disk that the compute engine spills to."""


class WarehouseUnavailable(Blocked):
    """The warehouse cannot be read as it stands."""


class StoreUnavailable(Blocked):
    """The state store cannot be read or written as it stands."""


class Unexpected(Blocked):
    """An error that nobody expected, in the work for one partition."""


class Busy(NamiAmpError):
    """Another process holds the lease or the lock; the same may succeed later."""


class LostLease(NamiAmpError):
    """Another process took this partition over; nothing more may be written or posted for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says in some library's words that there is no memory left, or none for a thread."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":  # DuckDB's
        return True
    said = str(error).lower()
    words = ("can't start new thread", "cannot allocate memory", "failed to map segment", "without exception set")
    return isinstance(error, RuntimeError | ImportError | OSError | SystemError) and any(word in said for word in words)
