"""Time as an argument, so that a whole run can be simulated; and when micro-batches start."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

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

_FIELDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
"""What a cron schedule has: minutes, hours, days of the month, months, days of the week (0 and 7 are Sunday)."""

_PART: Final = re.compile(r"(\*|\d+(?:-\d+)?)(?:/(\d+))?")

_FOREVER: Final = timedelta(days=366)
_SAMPLE: Final = timedelta(days=8)


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError):
        raise ValueError("not a time zone") from None


def cron_fields(cron: str) -> tuple[frozenset[int], ...]:
    """The minutes, hours, days, months and weekdays of a cron schedule of five fields in numbers.

    Raises:
        ValueError: it is none.
    """
    texts = cron.split()
    if len(texts) != len(_FIELDS):
        raise ValueError("not a cron schedule")
    return tuple(_numbers(text, low, high) for text, (low, high) in zip(texts, _FIELDS, strict=True))


def _numbers(text: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError("not a cron schedule")
        numbers, step = match[1], int(match[2] or 1)
        first, _, last = (numbers if numbers != "*" else f"{low}-{high}").partition("-")
        end = int(last or (high if match[2] else first))
        if not (low <= int(first) <= end <= high) or not step:
            raise ValueError("not a cron schedule")
        found |= set(range(int(first), end + 1, step))
    return frozenset(found)


def quiet_minutes(hours: str) -> tuple[int, int]:
    """The first minute of the day of quiet hours such as ``23:00-06:30``, and the first after them.

    Raises:
        ValueError: it is no such text, or they have no length.
    """
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", hours)
    if match is None or match[1] + match[2] == match[3] + match[4]:
        raise ValueError("not quiet hours")
    first, after = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    return first, after


@dataclass(frozen=True)
class Timetable:
    """When the schedule starts micro-batches.

    Attributes:
        minutes: between two starts, counted from each full hour, where there is no ``cron``.
        cron: a schedule of five fields in numbers; empty for none.
        zone: IANA name of the time zone of ``cron`` and ``quiet``.
        quiet: hours without a start, such as ``23:00-06:00``; empty for none.
    """

    minutes: int = 5
    cron: str = ""
    zone: str = "UTC"
    quiet: str = ""

    @property
    def schedule(self) -> str:
        """As cron has it."""
        return self.cron or f"*/{self.minutes} * * * *"

    @property
    def called(self) -> str:
        """For people, such as ``every 5 minutes, not from 23:00-06:00 (Europe/Berlin)``."""
        said = f"at '{self.cron}' (cron)" if self.cron else f"every {self.minutes} minutes" if self.minutes > 1 else ""
        said = said or "every minute"
        if self.quiet:
            said += f", not from {self.quiet.replace('-', ' to ')}"
        return said + (f" ({self.zone})" if self.cron or self.quiet else "")

    def is_quiet(self, us: int) -> bool:
        """Whether a time, in µs since the epoch, is within the quiet hours."""
        if not self.quiet:
            return False
        there = to_datetime(us).astimezone(zone_of(self.zone))
        first, after = quiet_minutes(self.quiet)
        minute = there.hour * 60 + there.minute
        return first <= minute < after if first < after else minute >= first or minute < after

    def next_start(self, us: int) -> int | None:
        """The first start after a time, both in µs since the epoch; None if there is none within a year."""
        return _next_start(self, us // 60_000_000)

    @property
    def late_after_seconds(self) -> int:
        """How old an event may be before a micro-batch should have posted it: three starts."""
        return _late_after(self)


@lru_cache(maxsize=256)
def _next_start(table: Timetable, minute: int) -> int | None:
    minutes, hours, days, months, weekdays = cron_fields(table.schedule)
    any_day, any_weekday = (text == "*" for text in (table.schedule.split()[at] for at in (2, 4)))
    zone = zone_of(table.zone)
    at, last = minute + 1, minute + int(_FOREVER.total_seconds()) // 60
    while at <= last:
        there = to_datetime(at * 60_000_000).astimezone(zone)
        on_day, on_weekday = there.day in days, bool({there.weekday() + 1, (there.weekday() + 1) % 7} & weekdays)
        is_day = on_day and on_weekday if any_day or any_weekday else on_day or on_weekday
        if not is_day or there.month not in months or there.hour not in hours:
            at += 60 - there.minute
        elif there.minute not in minutes or table.is_quiet(at * 60_000_000):
            at += 1
        else:
            return at * 60_000_000
    return None


@lru_cache(maxsize=16)
def _late_after(table: Timetable) -> int:
    if not table.cron and not table.quiet:
        return 3 * 60 * table.minutes
    starts = [0]
    end = int(_SAMPLE.total_seconds()) * 1_000_000
    while (following := table.next_start(starts[-1])) is not None and following < end:
        starts.append(following)
    gaps = sorted((after - before) // 1_000_000 for before, after in pairwise(starts[1:]))
    return gaps[-1] + 2 * gaps[0] if gaps else int(_FOREVER.total_seconds())
