"""Errors, named by what happens next.

- NamiAmpError
  - Misconfigured: a person has to change a setting or an argument. Exit status 2, one line.
    - Conflict: somebody else changed the same thing since.
    - SharedKey: another integration sends the same events with the same key.
    - Mistakes: a person has to change a file; one line for each mistake.
  - Blocked: this work cannot continue until something outside is repaired; finished work stays. Exit status 1.
    - OutOfMemory: a segment is too large for the compute engine or the process, at least beside other segments.
    - WarehouseUnavailable: the next run reads again from where this run stopped.
    - StoreUnavailable: nothing was committed; the next run does the same again.
    - FilesUnavailable: the object storage cannot be read or written; the next run does the same again.
    - Unexpected: a bug met one partition; the others go on, and the next run tries again.
    - PartsBlocked: some partitions wait, and the others are done.
    - LostFile: a file of the data folder that nothing writes again is gone or damaged; trying again does not help.
  - Busy: another process holds the lease or the lock; try again later.
  - LostLease: another process works on this partition now; stop without writing anything more.

Anything else that is raised is a bug.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

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


class Conflict(Misconfigured):
    """Somebody else changed the same thing since; look at it, then change it."""


class SharedKey(Misconfigured):
    """Another integration of the app has the same API key and some of the same event types."""


class Mistakes(Misconfigured):
    """A file cannot be used, for several reasons.

    Args:
        lines: a line for a person of each.

    Attributes:
        lines: the same, without secrets.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = [redaction.clean(line) for line in lines]


class Blocked(NamiAmpError):
    """Work stops until something outside is repaired; nothing is lost."""


class OutOfMemory(Blocked):
    """Neither memory nor the disk that the compute engine spills to is large enough."""


class WarehouseUnavailable(Blocked):
    """The warehouse cannot be read in its present state."""


class StoreUnavailable(Blocked):
    """The state store cannot be read or written in its present state."""


class FilesUnavailable(Blocked):
    """The object storage cannot be read or written in its present state; no row names what is not there."""


class Unexpected(Blocked):
    """An error that nobody expected, in the work for one partition."""


class PartsBlocked(Blocked):
    """Some apps or integrations wait, and the others are done.

    Args:
        waits: why, by the id of the app or integration.
        done: the results of the others, by the same id.
    """

    def __init__(self, waits: Mapping[Any, Blocked], done: Mapping[Any, Any]) -> None:
        super().__init__("; ".join(dict.fromkeys(map(str, waits.values()))))
        self.waits, self.done = dict(waits), dict(done)


class LostFile(Blocked):
    """A file that nothing writes again is gone or damaged: a person restores it, or gives up what was in it."""


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


def in_words(log: logging.Logger, error: Exception) -> NamiAmpError:
    """An error for people: unchanged if it was raised on purpose, otherwise as a bug; the log has the traceback."""
    if isinstance(error, NamiAmpError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory(OUT_OF_MEMORY)
    log.error("an error that nobody expected", exc_info=error)
    first = (str(error).splitlines() or [""])[0][:200]
    return Unexpected(f"this is a bug, please report it: {type(error).__name__}: {first}")
