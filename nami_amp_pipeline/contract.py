"""The words of the contract, once: event types, user properties, reserved ids, limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal


@dataclass(frozen=True)
class Category:
    """What the first part of an event type says of all its types, those that nobody can select included.

    Attributes:
        carries_state: whether the payload tells the state of its user, which goes along as user properties.
        carries_device: whether the payload's ``device_id`` is the device that the event is of.
    """

    carries_state: bool = False
    carries_device: bool = False


CATEGORIES: Final[Mapping[str, Category]] = {
    "device": Category(carries_device=True),
    "user": Category(carries_state=True),
}
"""The categories that mean something; a type of any other carries its event properties only."""


@dataclass(frozen=True)
class EventType:
    """An event type that an integration can select.

    Attributes:
        name: Nami's.
        is_revenue: whether an ``amount`` in it is money that was paid.
    """

    name: str
    is_revenue: bool = False

    @property
    def category(self) -> str:
        """The first part of its name."""
        return self.name.partition(".")[0]

    @property
    def subcategory(self) -> str | None:
        """The second part of a name of three parts or more."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 2 else None

    @property
    def carries_state(self) -> bool:
        """See :class:`Category`."""
        return CATEGORIES.get(self.category, Category()).carries_state

    @property
    def carries_device(self) -> bool:
        """See :class:`Category`."""
        return CATEGORIES.get(self.category, Category()).carries_device


EVENT_TYPES: Final[tuple[EventType, ...]] = (
    EventType("device.impression"),
    EventType("device.transaction", is_revenue=True),
    EventType("user.journey.trial.converted"),
    EventType("user.journey.trial.did_not_convert"),
    EventType("user.journey.trial.started"),
    EventType("user.subscription.cancelled"),
    EventType("user.subscription.expired"),
    EventType("user.subscription.in_grace_period"),
    EventType("user.subscription.paused"),
    EventType("user.subscription.purchased"),
    EventType("user.subscription.renewal_in_grace_period"),
    EventType("user.subscription.renewed"),
    EventType("user.subscription.resumed"),
)
"""The event types that an integration can select (Nami's Amplitude integration page). Another is one more line."""

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

ENDPOINTS: Final[Mapping[str, str]] = {
    "us": "https://api2.amplitude.com/2/httpapi",
    "eu": "https://api.eu.amplitude.com/2/httpapi",
}

UserIdKind = Literal["external_id", "nami_user_id"]
AnonymousPolicy = Literal["skip", "nami_user_id", "device_id", "wait_for_login"]
USER_ID_KINDS: Final[tuple[UserIdKind, ...]] = ("external_id", "nami_user_id")
ANONYMOUS_POLICIES: Final[tuple[AnonymousPolicy, ...]] = ("skip", "nami_user_id", "device_id", "wait_for_login")
SandboxPolicy = Literal["send", "skip", "only"]
SANDBOX_POLICIES: Final[tuple[SandboxPolicy, ...]] = ("send", "skip", "only")
RevenueKind = Literal["gross", "net", "none"]
REVENUE_KINDS: Final[tuple[RevenueKind, ...]] = ("gross", "net", "none")

STORE_FEE: Final = 0.30
"""The share of a price that a store keeps, where an integration names no other for its ``event_platform``."""

GROSS_AMOUNT: Final = "namiml_gross_amount"
"""The event property with the whole amount of a transaction whose ``price`` is net of the store's fee."""

CATEGORY: Final = "namiml_event_category"
SUBCATEGORY: Final = "namiml_event_subcategory1"
"""The event properties with the first part of a type, and the second of one of three parts or more."""

NEVER_HIDDEN: Final = (
    "id",
    "event_type",
    "created_date",
    "user_id",
    "external_id",
    CATEGORY,
    SUBCATEGORY,
    GROSS_AMOUNT,
)
"""Fields that can be neither excluded nor hashed: they say which event it is, and whose, or are the pipeline's own."""

APP_ID = re.compile(r"[A-Za-z0-9._-]+")
INTEGRATION_NAME = re.compile(r"[A-Za-z0-9_-]+")


def event_type_names() -> tuple[str, ...]:
    """The names of :data:`EVENT_TYPES`, in that order."""
    return tuple(one.name for one in EVENT_TYPES)


def select_events(patterns: Iterable[str]) -> tuple[EventType, ...]:
    """The event types that a selection covers today, in the contract's order; unknown patterns cover none.

    Args:
        patterns: ``all``, an event type, or a prefix followed by ``.*`` such as ``user.subscription.*``.
    """
    wanted = tuple(patterns)
    return tuple(one for one in EVENT_TYPES if any(_covers(pattern, one.name) for pattern in wanted))


def check_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    """A selection as it is kept: each pattern once, in the order given.

    Raises:
        ValueError: there is none, or a pattern covers none of the event types; the message names it.
    """
    kept = tuple(dict.fromkeys(patterns))
    if not kept:
        raise ValueError("no event type is selected: use 'all', types or prefixes")
    for pattern in kept:
        if not select_events([pattern]):
            raise ValueError(
                f"unknown event type {pattern!r}: use 'all', a prefix such as 'user.subscription.*', "
                f"or any of {', '.join(event_type_names())}"
            )
    return kept


def _covers(pattern: str, name: str) -> bool:
    return pattern in ("all", name) or (pattern.endswith(".*") and name.startswith(pattern[:-1]))
