"""The words of the contract, once: event types, user properties, reserved ids, limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Final, Literal

EVENT_TYPES: Final = (
    "device.impression",
    "device.transaction",
    "user.journey.trial.converted",
    "user.journey.trial.did_not_convert",
    "user.journey.trial.started",
    "user.subscription.cancelled",
    "user.subscription.expired",
    "user.subscription.in_grace_period",
    "user.subscription.paused",
    "user.subscription.purchased",
    "user.subscription.renewal_in_grace_period",
    "user.subscription.renewed",
    "user.subscription.resumed",
)
"""The event types that an integration can select (Nami's Amplitude integration page)."""

USER_PROPERTIES: Final = (
    "namiml_active_entitlements",
    "namiml_active_skus",
    "namiml_device_ids",
    "namiml_device_platforms",
    "namiml_former_subscriber",
    "namiml_in_grace_period",
    "namiml_in_trial_period",
    "namiml_in_intro_offer_period",
)
"""The user properties of a snapshot, in the order in which they are sent."""

RESERVED_IDS: Final = (
    "",
    "-1",
    "0",
    "00000000-0000-0000-0000-000000000000",
    "anonymous",
    "lmy47d",
    "n/a",
    "na",
    "nil",
    "none",
    "null",
    "undefined",
    "unknown",
    "{}",
)
"""Ids that Amplitude refuses, in any case (https://amplitude.com/docs/apis/analytics/http-v2)."""

ARRAY_CHARACTERS: Final = 1024
"""Amplitude truncates an array property over this many characters of its JSON text."""

DEDUPLICATION_WINDOW: Final = timedelta(days=7)
"""How long Amplitude recognises a repeated ``insert_id``."""

MAX_REQUEST_EVENTS: Final = 2_000
MAX_REQUEST_BYTES: Final = 1_000_000
MAX_BATCH_REQUEST_BYTES: Final = 20_000_000

MAX_ID_BYTES: Final = 1_024
"""No event id, user id or device id is longer: Amplitude cuts longer ones, and no index holds them."""

FIRST_MOMENT: Final = "0001-01-01 00:00:00+00"
LAST_MOMENT: Final = "9999-12-31 23:59:59.999999+00"
"""The times that a row can have; what is before or after, or infinite, is no time of an event."""

UNREADABLE: Final[Mapping[str, str]] = {
    "no_app_id": "have no app_id",
    "no_ingested_at": "have no ingested_at",
    "bad_ingested_at": "have an ingested_at that is infinite, or not of the years 1 to 9999",
    "no_id": "have no id",
    "long_id": f"have an id of more than {MAX_ID_BYTES:,} bytes",
    "odd_row": "have a value that cannot be read",
}
"""Why a row of the warehouse cannot be captured, as a part of a sentence."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "us": "https://api2.amplitude.com/2/httpapi",
    "eu": "https://api.eu.amplitude.com/2/httpapi",
}

UserIdKind = Literal["external_id", "nami_user_id"]
AnonymousPolicy = Literal["skip", "nami_user_id", "device_id", "wait_for_login"]
USER_ID_KINDS: Final[tuple[UserIdKind, ...]] = ("external_id", "nami_user_id")
ANONYMOUS_POLICIES: Final[tuple[AnonymousPolicy, ...]] = ("skip", "nami_user_id", "device_id", "wait_for_login")

APP_ID = re.compile(r"[A-Za-z0-9._-]+")
INTEGRATION_NAME = re.compile(r"[A-Za-z0-9_-]+")


def select_events(patterns: Iterable[str]) -> tuple[str, ...]:
    """The event types that a selection names, in the contract's order.

    Args:
        patterns: ``all``, an event type, or a prefix followed by ``.*`` such as ``user.subscription.*``.

    Raises:
        ValueError: a pattern selects none of the event types; the message names it.
    """
    selected: set[str] = set()
    for pattern in patterns:
        if pattern == "all":
            matched = set(EVENT_TYPES)
        elif pattern in EVENT_TYPES:
            matched = {pattern}
        elif pattern.endswith(".*") and not set("*?[") & set(pattern[:-1]):
            matched = {event_type for event_type in EVENT_TYPES if fnmatchcase(event_type, pattern)}
        else:
            matched = set()
        if not matched:
            raise ValueError(
                f"unknown event type {pattern!r}: use 'all', a prefix such as 'user.subscription.*', "
                f"or any of {', '.join(EVENT_TYPES)}"
            )
        selected |= matched
    return tuple(event_type for event_type in EVENT_TYPES if event_type in selected)


def unreadable_text(app_id: str, reason: str, rows: int, example: str) -> str:
    """Rows that cannot be captured, in one line: whose, how many, why, and one of them."""
    whose = f" of app {app_id}" if app_id else ""
    why = UNREADABLE.get(reason, reason)
    if rows == 1:
        return f"1 row{whose} in the warehouse cannot be delivered: it {why.replace('have', 'has', 1)} ({example})"
    return f"{rows:,} rows{whose} in the warehouse cannot be delivered: they {why} (such as {example})"
