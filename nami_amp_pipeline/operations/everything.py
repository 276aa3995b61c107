"""How many rows of an app the warehouse has in all; asked for in a thread, as a large table may take long to count."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import NamiAmpError

PATIENCE: Final = 10.0
"""Seconds that whoever asks waits for; the count goes on, and who asks again has it."""

_KEPT: Final = 600.0
"""Seconds for which a count is told again."""

_MOST: Final = 100


@dataclass(frozen=True)
class Everything:
    """What the warehouse has of an app.

    Attributes:
        rows: of all event types; None while they are being counted, and where they cannot be.
        oldest: the oldest ``ingested_at``, in µs since the epoch; None without rows.
        error: why they cannot be counted; empty otherwise.
    """

    rows: int | None = None
    oldest: int | None = None
    error: str = ""


@dataclass
class _Count:
    thread: threading.Thread
    at: float = 0.0
    found: Everything | None = None


_counts: dict[tuple[str, str], _Count] = {}
_lock: Final = threading.Lock()


def everything(context: Context, app_id: str, patience: float = PATIENCE) -> Everything:
    """Counts the rows of an app; one count of an app is under way at a time, however often it is asked for.

    Args:
        context: the process at work.
        app_id: the app.
        patience: seconds to wait for it at most.
    """
    key = (context.warehouse.name, app_id)
    now = context.clock()
    with _lock:
        count = _counts.get(key)
        if count is None or (not count.thread.is_alive() and not 0 <= now - count.at < _KEPT):
            count = _begin(context, key)
    count.thread.join(patience)
    return count.found or Everything()


def _begin(context: Context, key: tuple[str, str]) -> _Count:
    for old in [other for other, count in _counts.items() if not count.thread.is_alive()][: len(_counts) - _MOST + 1]:
        del _counts[old]

    def work() -> None:
        found = _counted(context, key[1])
        count.at, count.found = context.clock() if not found.error else 0.0, found

    count = _Count(threading.Thread(target=work, name=f"count-{key[1]}", daemon=True))
    _counts[key] = count
    count.thread.start()
    return count


def _counted(context: Context, app_id: str) -> Everything:
    from nami_amp_pipeline.storage.duckdb_engine import compute  # here: it brings all of DuckDB

    try:
        with compute(context.settings) as connection:
            rows, oldest = context.warehouse.unread(connection, {app_id: None}).get(app_id, (0, None))
    except NamiAmpError as error:
        return Everything(error=str(error))
    return Everything(rows, oldest)
