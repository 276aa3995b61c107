"""How long an answer asks to wait."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

MOST_RETRY_AFTER_SECONDS: Final = 3600.0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait by ``Retry-After``, at most an hour; an unreadable value counts as none.

    Args:
        headers: of the answer, names in lower case.
        now: seconds since the epoch, for a date.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if text.isascii() and text.isdigit() else parsedate_to_datetime(text).timestamp() - now
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), MOST_RETRY_AFTER_SECONDS)
