"""What a page says after something was done; the address names it, so that nobody can put words into a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NOTICES: Final[Mapping[str, str]] = {
    "added": "Integration added. Its first events are sent with the next run.",
    "added-off": "Integration added, switched off. Nothing is sent until you switch it on.",
    "saved": "Saved. It takes effect with the next run.",
    "unchanged": "Nothing was different, so nothing was changed.",
    "on": "Switched on. It goes on where it stopped.",
    "off": "Switched off. Events go on being kept; nothing is sent until you switch it on again.",
    "removed": "Integration removed. What it sent stays in Amplitude.",
    "sent-again": "Sent again with the next run: {n}. What Amplitude refuses once more comes back here.",
    "dismissed": "Dismissed: {n}. Nobody is asked about them any more.",
    "undismissed": "Back on the list: {n}.",
    "plan-asked": "Asked for. Dagster's daemon starts the dry run within a minute; nothing is sent by it.",
    "backfill-started": "Asked for. Dagster's daemon starts it within a minute.",
    "backfill-paused": "Paused. Requests under way are ended and recorded.",
    "backfill-cancelled": "Cancelled. What was posted stays in Amplitude; the rest is not sent.",
    "comparison-asked": "Asked for. Dagster's daemon starts the comparison within a minute; nothing is sent by it.",
    "signed-out": "You are signed out.",
}
"""By name; ``{n}`` stands for the number in the address."""


def notice(name: str | None, count: str | None = None) -> str:
    """The notice that an address asks for; empty for none, or one that is unknown."""
    text = NOTICES.get(name or "", "")
    if "{n}" not in text:
        return text
    number = count or ""
    return text.replace("{n}", f"{int(number):,}") if number.isdecimal() and len(number) < 12 else ""
