"""The words of the contract, once: event types, user properties, reserved ids, limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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

STATE_CATEGORY: Final = "user"
"""First part of the types of those events that carry their user's state: entitlements, devices, journey."""

DEVICE_CATEGORY: Final = "device"
"""First part of the types of those events that come from one device, and name it."""

GROUPS: Final[Mapping[str, str]] = {
    "entitlements": "active_entitlements[]",
    "devices": "devices[]",
    "journey": "customer_journey_state",
}
"""The groups of a user's state and where a payload has them; ``[]`` is an array of objects. A group counts as a whole:
all its properties are from the newest event that has it. They are sent in this order."""


@dataclass(frozen=True)
class Property:
    """A user property of a snapshot.

    SQL, schemas, previews, pages and docs are made of this declaration. Data files and stored snapshots from before a
    property was added lack it: it is null until an event brings its group again.

    Attributes:
        name: in Amplitude.
        group: of :data:`GROUPS`.
        path: where a payload has it; begins with the group's own path.
        kind: ``texts``, an array of ids as texts; or ``flag``, a boolean.
        means: a few words for people.
        unless_active: of a flag: false while any entitlement is active.

    Raises:
        ValueError: the declaration is none.
    """

    name: str
    group: str
    path: str
    kind: Literal["texts", "flag"]
    means: str
    unless_active: bool = False

    def __post_init__(self) -> None:
        is_sound = (
            self.group in GROUPS
            and self.path.startswith(f"{GROUPS[self.group]}.")
            and all(map(_NAME.fullmatch, (self.name, *self.steps)))
            and (self.kind == "texts") == GROUPS[self.group].endswith("[]")
            and not (self.unless_active and self.kind != "flag")
        )
        if not is_sound:
            raise ValueError(f"{self.name} is no property of {self.group}: {self.path}, {self.kind}")

    @property
    def steps(self) -> list[str]:
        """The fields from the group's object to the value."""
        return self.path.removeprefix(f"{GROUPS[self.group]}.").split(".")

    @property
    def carried(self) -> str:
        """What the value is called before ``unless_active`` is applied; otherwise the name."""
        return self.name.removeprefix("namiml_") if self.unless_active else self.name


_NAME = re.compile(r"[a-z][a-z0-9_]*")

PROPERTIES: tuple[Property, ...] = (
    Property(
        "namiml_active_entitlements", "entitlements", "active_entitlements[].entitlement_ref_id", "texts",
        "reference ids of the active entitlements",
    ),
    Property(
        "namiml_active_skus", "entitlements", "active_entitlements[].sku_ref_id", "texts",
        "reference ids of their SKUs",
    ),
    Property("namiml_device_ids", "devices", "devices[].id", "texts", "the user's devices"),
    Property(
        "namiml_device_platforms", "devices", "devices[].platform.id", "texts",
        "the `app_platform_id` of each of those devices",
    ),
    Property(
        "namiml_former_subscriber", "journey", "customer_journey_state.former_subscriber", "flag",
        "was a subscriber, and no entitlement is active", unless_active=True,
    ),
    Property(
        "namiml_in_grace_period", "journey", "customer_journey_state.in_grace_period", "flag",
        "is in a grace period",
    ),
    Property(
        "namiml_in_trial_period", "journey", "customer_journey_state.in_trial_period", "flag",
        "is in a trial",
    ),
    Property(
        "namiml_in_intro_offer_period", "journey", "customer_journey_state.in_intro_offer_period", "flag",
        "is in an introductory offer",
    ),
)  # fmt: skip
"""The user properties of a snapshot."""


def properties_table() -> str:
    """The user properties for docs/contract.md, as a Markdown table."""
    rules = {
        ("texts", False): "array",
        ("flag", False): "boolean",
        ("flag", True): "boolean; true only if no entitlement is active",
    }
    lines = [
        f"| `{one.name}` | `{one.path}` | {rules[one.kind, one.unless_active]} | {one.means} |" for one in PROPERTIES
    ]
    return "\n".join(["| property | from | rule | meaning |", "|---|---|---|---|", *lines])


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
