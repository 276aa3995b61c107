"""Time as an argument, so that a whole run can be simulated."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], float]
"""Seconds since the epoch, as ``time.time`` gives them."""


def micros(clock: Clock) -> int:
    """Now in whole microseconds since the epoch, the unit of every time in the state store."""
    return int(clock() * 1_000_000)


def to_datetime(us: int) -> datetime:
    """A time of the store (microseconds since the epoch) as an aware UTC datetime."""
    seconds, rest = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def from_datetime(moment: datetime) -> int:
    """An aware datetime as microseconds since the epoch, exactly."""
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def to_text(us: int | None) -> str | None:
    """A time of the store as ISO-8601 text with ``Z``; whole seconds where it has no fraction."""
    if us is None:
        return None
    return to_datetime(us).isoformat().replace("+00:00", "Z")


system_clock: Clock = time.time
