"""Which events are history and must not overwrite a profile, and the flag that marks them.

Both rules are defined here once, for the SQL of stage 3 and for a dead letter that is sent again.
"""

from __future__ import annotations

from typing import Final

SKIP_SYNC: Final = "$skip_user_properties_sync"
FLAG: Final = f',"{SKIP_SYNC}":true'
"""Stands in front of the event's time, behind its user."""

_TIME: Final = ',"time":'

MACROS: Final = (
    "CREATE TEMP MACRO is_history(sent_date, sent_event, created_date, event) AS "
    "(sent_date, sent_event) > (created_date, event)",
    f"CREATE TEMP MACRO skip_sync() AS '{FLAG}'",
)
"""For the SQL of stage 3."""


def is_history(sent: tuple[int, str], event: tuple[int, str]) -> bool:
    """Whether the state of an event is older than the state that its user was sent.

    Args:
        sent: date (µs since the epoch) and id of the event whose state was sent last.
        event: date and id of the event.
    """
    return sent > event


def flagged(body: str) -> str:
    """The event with the flag; texts hold no unescaped quote, so the first match is the event's time."""
    return body.replace(_TIME, f"{FLAG}{_TIME}", 1)
