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
    def field(self) -> str:
        """The payload field that it comes from."""
        return GROUPS[self.group].removesuffix("[]")

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
        f"| `{prop.name}` | `{prop.path}` | {rules[prop.kind, prop.unless_active]} | {prop.means} |"
        for prop in PROPERTIES
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
    return tuple(event_type.name for event_type in EVENT_TYPES)


def select_events(patterns: Iterable[str]) -> tuple[EventType, ...]:
    """The event types that a selection covers today, in the contract's order; unknown patterns cover none.

    Args:
        patterns: ``all``, an event type, or a prefix followed by ``.*`` such as ``user.subscription.*``.
    """
    wanted = tuple(patterns)
    return tuple(
        event_type for event_type in EVENT_TYPES if any(_covers(pattern, event_type.name) for pattern in wanted)
    )


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
            meant = did_you_mean(pattern, event_type_names())
            raise ValueError(
                f"unknown event type {pattern!r}{f'{meant} Use' if meant else ': use'} "
                f"'all', a prefix such as 'user.subscription.*', or any of {', '.join(event_type_names())}"
            )
    return kept


def _covers(pattern: str, name: str) -> bool:
    return pattern in ("all", name) or (pattern.endswith(".*") and name.startswith(pattern[:-1]))


def unreadable_text(app_id: str, reason: str, rows: int, example: str) -> str:
    """Rows that cannot be captured, in one line: whose, how many, why, and one of them."""
    whose = f" of app {app_id}" if app_id else ""
    why = UNREADABLE.get(reason, reason)
    if rows == 1:
        return f"1 row{whose} in the warehouse cannot be delivered: it {why.replace('have', 'has', 1)} ({example})"
    return f"{rows:,} rows{whose} in the warehouse cannot be delivered: they {why} (such as {example})"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that somebody may have meant who wrote another; None if none is near."""
    from difflib import get_close_matches  # here: only what is written wrong needs it

    folded = {name.lower(): name for name in known}
    found = get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question to put behind a sentence about an unknown word; empty if no known word is near."""
    near = nearest(word, known)
    return f": did you mean {near}?" if near else ""
