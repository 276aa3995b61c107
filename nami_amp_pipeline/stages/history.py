"""Which events are history and must not overwrite a profile, the flag that marks them, and what they go without.

All rules are defined here once, for the SQL of stage 3 and for a dead letter that is sent again.
"""

from __future__ import annotations

import json
from typing import Final

import orjson

from nami_amp_pipeline import contract

SKIP_SYNC: Final = "$skip_user_properties_sync"
FLAG: Final = f',"{SKIP_SYNC}":true'
"""Stands in front of the event's time, behind its user."""

_TIME: Final = ',"time":'
_HEAD: Final = ',{"event_type":'

_PROPERTIES: Final = ',"user_properties":'
"""Texts hold no unescaped quote, and event properties no object: behind it stands the user's state, and only there."""


def current_names() -> list[str]:
    """The properties whose values are those of now: an event that is history goes without them."""
    return [name for each in contract.ENRICHMENTS if each.timing == "current" for name in each.properties]


def macros() -> list[str]:
    """The rules for the SQL of stage 3."""
    return [
        "CREATE TEMP MACRO is_history(sent_date, sent_event, created_date, event) AS "
        "(sent_date, sent_event) > (created_date, event)",
        f"CREATE TEMP MACRO skip_sync() AS '{FLAG}'",
        f"CREATE TEMP MACRO sent_rest(is_history, rest) AS {_sent_rest()}",
    ]


def _sent_rest() -> str:
    """SQL of the end of an event, ``rest``: of history without current values.

    It ends with the user properties, where it has any, and a brace.
    """
    if not (names := current_names()):
        return "rest"
    nothing = orjson.dumps(dict.fromkeys(names)).decode()
    at = f"strpos(rest, '{_PROPERTIES}{{')"
    start = f"({at} + {len(_PROPERTIES)})"
    kept = f"json_merge_patch(rest[{start}:-2], '{nothing}')::VARCHAR"
    return f"CASE WHEN is_history AND {at} > 0 THEN rest[:{start} - 1] || {kept} || '}}' ELSE rest END"


def is_history(sent: tuple[int, str], event: tuple[int, str]) -> bool:
    """Whether the state of an event is older than the state that its user was sent.

    Args:
        sent: date (µs since the epoch) and id of the event whose state was sent last.
        event: date and id of the event.
    """
    return sent > event


def can_be_flagged(body: str) -> bool:
    """Whether a body is of the form that stage 3 writes; what a destination made of it has no place for the flag."""
    return body.startswith(_HEAD) and _TIME in body


def flagged(body: str) -> str:
    """The event with the flag, and without current values.

    Texts hold no unescaped quote, so the first match is the event's time.
    """
    body = body.replace(_TIME, f"{FLAG}{_TIME}", 1)
    head, found, rest = body.partition(f"{_PROPERTIES}{{")
    if not found or not (names := current_names()):
        return body
    properties, end = json.JSONDecoder().raw_decode(f"{{{rest}")
    kept = {name: value for name, value in properties.items() if name not in names}
    if len(kept) == len(properties):
        return body
    return f"{head}{_PROPERTIES}{orjson.dumps(kept).decode()}{rest[end - 1 :]}"
