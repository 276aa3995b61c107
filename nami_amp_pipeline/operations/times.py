"""Times as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.stages.window import Window

_UNITS: Mapping[str, int] = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def parse_time(text: str, what: str, now: float | None = None) -> int:
    """A time as people write it, as µs since the epoch.

    Args:
        text: an ISO-8601 time with zone, a day (its midnight in UTC), ``now``, ``today``, ``yesterday``, or how long
            ago: ``90s``, ``30min``, ``1h``, ``2d``, ``1w``.
        what: the option, for the message.
        now: in seconds since the epoch; this machine's clock by default.

    Raises:
        Misconfigured: it is none, or has no zone.
    """
    here = datetime.now(UTC) if now is None else datetime.fromtimestamp(now, UTC)
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": here, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if text.strip().lower() in named:
        return from_datetime(named[text.strip().lower()])
    ago = re.fullmatch(r"(\d{1,6})\s*(s|min|m|h|d|w)", text.strip().lower())
    if ago:
        return from_datetime(here - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]]))
    is_day = re.fullmatch(r"\d{4}-\d{2}-\d{2}", text.strip())
    try:
        moment = datetime.fromisoformat(f"{text.strip()}T00:00:00Z" if is_day else text)
    except ValueError:
        raise Misconfigured(
            f"{what} {text!r} is not a time: write 2026-09-01T00:00:00Z, 2026-09-01, 1h, 2d, today or yesterday"
        ) from None
    if moment.tzinfo is None:
        raise Misconfigured(f"{what} {text!r} has no time zone: write {text}Z for UTC, or an offset such as +02:00")
    return from_datetime(moment)


def parse_window(since: str, until: str, by: str = "created_date") -> Window:
    """The window between two times as people write them; see :func:`parse_time`.

    Args:
        since: its first instant, the value of ``--from``.
        until: the first instant after it, the value of ``--to``.
        by: which time of a row counts.

    Raises:
        Misconfigured: one of them is no time, or the window ends before it begins.
    """
    first, end = parse_time(since, "--from"), parse_time(until, "--to")
    return Window(first, end, "ingested_at" if by == "ingested_at" else "created_date")
