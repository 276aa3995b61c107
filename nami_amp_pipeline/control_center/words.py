"""Numbers and times as the pages write them."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import datetime
from typing import Final

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import from_datetime, to_datetime
from nami_amp_pipeline.operations import reasons

MOST_SHOWN: Final = 32_000
"""Characters of one text on a page; a download has all of it."""

_STEPS: Final = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def number(count: int) -> str:
    """``12,400``."""
    return f"{count:,}"


def share(part: float) -> str:
    """``0.09 %``; of less than 0.01 %, that it is less."""
    return "less than 0.01 %" if 0 < part < 0.0001 else f"{part * 100:,.2f} %"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """``1 event``, ``12,400 events``; the plural is given where it is irregular."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def duration(seconds: float) -> str:
    """``40 seconds``, ``3 hours``: one unit, rounded down."""
    for size, unit in _STEPS:
        if seconds >= size:
            return counted(int(seconds // size), unit)
    return "0 seconds"


def pretty(text: str) -> str:
    """A JSON text with line ends, cut at a length that a page can hold; any other text as it is."""
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}\n… ({len(text):,} characters in all)"


_PLAIN: Final = (
    ("dead letters", "refused events"),
    ("dead letter", "refused event"),
    ("rejected", "refused"),
    ("rejects", "refuses"),
    ("queued", "waiting"),
    ("held", "waiting"),
    ("micro-batch", "run"),
    ("halted", "stopped"),
)
"""Words of the command line and its documentation, and what pages say instead."""

_ANY: Final = re.compile(rf"\b({'|'.join(re.escape(word) for word, _ in _PLAIN)})\b", re.IGNORECASE)


_INSTANT: Final = re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?Z")


def plain(text: str) -> str:
    """A text that the command line says too in the words of the pages, where dead letters are refused events."""
    by_word = dict(_PLAIN)
    said = _ANY.sub(lambda match: by_word[match[0].lower()], text)
    return _INSTANT.sub(lambda match: spelled(datetime.fromisoformat(match[0])), said)


def parts(event_type: str | None) -> list[str]:
    """The parts of an event type, between which a narrow page may break it: each ends with its dots or underscores."""
    return re.findall(r"[^._]+[._]*|[._]+", event_type or "")


def meanings() -> dict[str, str]:
    """What each user property means, by its name, without the marks of Markdown."""
    return {prop.name: prop.means.replace("`", "") for prop in contract.PROPERTIES}


def means(code: str) -> str:
    """A reason in the words of the pages."""
    return plain(reasons.means(code))


def sentence(text: str) -> str:
    """The text with a capital first letter; the others stay."""
    return text[:1].upper() + text[1:]


def moment(us: int | datetime | None) -> datetime | None:
    """A time of the store as a UTC datetime; one that is a datetime already stays."""
    return to_datetime(us) if isinstance(us, int) else us


def spelled(us: int | datetime | None) -> str:
    """``3 Nov 2026, 12:04 UTC``; empty for None."""
    at = moment(us)
    return "" if at is None else f"{at.day} {at:%b %Y, %H:%M} UTC"


def machine(us: int | datetime | None) -> str:
    """For the attribute ``datetime``."""
    at = moment(us)
    return "" if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")


def relative(us: int | datetime | None, now: int) -> str:
    """``2 minutes ago``, ``in 3 hours``, ``now``; empty for None."""
    at = moment(us)
    if at is None:
        return ""
    seconds = (now - from_datetime(at)) / 1e6
    if abs(seconds) < 1:
        return "now"
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"
