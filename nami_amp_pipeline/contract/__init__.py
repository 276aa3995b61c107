"""The words of the contract, once: event types, user properties, reserved ids, limits."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from nami_amp_pipeline.contract.user_properties import ENRICHED as ENRICHED
from nami_amp_pipeline.contract.user_properties import GROUPS as GROUPS
from nami_amp_pipeline.contract.user_properties import Enrichment as Enrichment
from nami_amp_pipeline.contract.user_properties import Property as Property
from nami_amp_pipeline.contract.user_properties import beside


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
        means: what happened, as a sentence for people.
    """

    name: str
    is_revenue: bool = False
    means: str = ""

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


_EVENT_TYPES: Final[tuple[EventType, ...]] = (
    EventType("device.impression", means="A device showed a paywall."),
    EventType("device.transaction", is_revenue=True, means="A purchase was made on a device, with its price."),
    EventType("user.journey.trial.converted", means="A trial became a paid subscription."),
    EventType("user.journey.trial.did_not_convert", means="A trial ended without a paid subscription."),
    EventType("user.journey.trial.started", means="A trial began."),
    EventType(
        "user.subscription.cancelled", means="The user switched the renewal off; access goes on until the period ends."
    ),
    EventType("user.subscription.expired", means="The subscription ended, and access with it."),
    EventType(
        "user.subscription.in_grace_period", means="A payment failed; the store tries again, and access goes on."
    ),
    EventType("user.subscription.paused", means="The user paused the subscription."),
    EventType("user.subscription.purchased", means="The user bought a subscription."),
    EventType(
        "user.subscription.renewal_in_grace_period", means="The store recovered the payment within the grace period."
    ),
    EventType("user.subscription.renewed", means="The subscription was renewed for another period."),
    EventType("user.subscription.resumed", means="A paused subscription goes on."),
)
"""The event types that an integration can select (Nami's Amplitude integration page). Another is one more line."""

_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")

_PROPERTIES: Final[tuple[Property, ...]] = (
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
    rules = {"texts": "array", "flag": "boolean", "text": "text", "number": "number"}
    also = {True: "; true only if no entitlement is active", False: ""}
    lines = [
        f"| `{prop.name}` | `{prop.source}` | {rules[prop.kind]}{also[prop.unless_active]} | {prop.means} |"
        for prop in _now().PROPERTIES
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
    return tuple(event_type.name for event_type in _now().EVENT_TYPES)


def carries_state(event_type: str) -> bool:
    """Whether an event of a type, known or not, carries the state of its user."""
    category = CATEGORIES.get(event_type.partition(".")[0])
    return category is not None and category.carries_state and "." in event_type


def select_events(patterns: Iterable[str]) -> tuple[EventType, ...]:
    """The event types that a selection covers today, in the contract's order; unknown patterns cover none.

    Args:
        patterns: ``all``, an event type, or a prefix followed by ``.*`` such as ``user.subscription.*``.
    """
    wanted = tuple(patterns)
    return tuple(
        event_type for event_type in _now().EVENT_TYPES if any(_covers(pattern, event_type.name) for pattern in wanted)
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
            meant = did_you_mean(pattern, (*event_type_names(), *_prefixes()))
            raise ValueError(
                f"unknown event type {pattern!r}{f'{meant} Use' if meant else ': use'} "
                f"'all', a prefix such as 'user.subscription.*', or any of {', '.join(event_type_names())}"
            )
    return kept


def _prefixes() -> list[str]:
    """All selections by prefix that cover anything."""
    parts = [name.split(".") for name in event_type_names()]
    return sorted({".".join((*words[:end], "*")) for words in parts for end in range(1, len(words))})


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


EXTENSIONS: Final = {
    "properties": "nami_amp_pipeline.properties",
    "enrichments": "nami_amp_pipeline.enrichments",
    "event_types": "nami_amp_pipeline.event_types",
}
"""Groups of entry points by which other packages declare more. An entry point names a declaration, or several."""

Declared = TypeVar("Declared", Property, EventType, Enrichment)


def extended(
    ours: tuple[Declared, ...], points: Iterable[EntryPoint], kind: type[Declared], taken: Iterable[str] = ()
) -> tuple[tuple[Declared, ...], list[str]]:
    """Ours with those of other packages, in the order of their entry points' names.

    Args:
        ours: declared here.
        points: the entry points of their group.
        kind: what they are to name.
        taken: names that are given already, besides those of ours.

    Returns:
        All of them, and a line for each that cannot be used: whoever sends events must not go on without it.
    """
    found, unusable = list(ours), []
    known = {name for declared in ours for name in _names(declared)} | set(taken)
    for point in sorted(points, key=lambda each: each.name):
        try:
            value = point.load()
        except Exception as error:  # noqa: BLE001
            unusable.append(f"{point.value} cannot be loaded: {type(error).__name__}: {error}")
            continue
        for declared in value if isinstance(value, (tuple, list)) else (value,):
            if not isinstance(declared, kind):
                unusable.append(f"{point.value} is no {kind.__name__}")
            elif isinstance(declared, EventType) and not _TYPE.fullmatch(declared.name):
                unusable.append(f"{declared.name!r} is no event type: parts in lower case, with a dot between them")
            elif isinstance(declared, Property) and declared.group == ENRICHED:
                unusable.append(f"{point.value} is of no group of the payload: declare an Enrichment")
            elif clash := _clash(declared, known):
                unusable.append(f"{point.value} declares {clash}")
            else:
                known.update(_names(declared))
                found.append(declared)
    return tuple(found), unusable


def _clash(declared: Property | EventType | Enrichment, known: set[str]) -> str | None:
    """What a declaration cannot be beside, as the end of a sentence."""
    for name in _names(declared):
        other = (name if name in known else None) if isinstance(declared, EventType) else beside(name, known)
        if other is not None:
            return f"{name}, which there is" if other == name else f"{name}, which cannot be beside {other}"
    return None


def _names(declared: Property | EventType | Enrichment) -> tuple[str, ...]:
    return tuple(declared.properties) if isinstance(declared, Enrichment) else (declared.name,)


if TYPE_CHECKING:
    PROPERTIES: tuple[Property, ...]
    """All user properties; those that enrichments give come last."""
    ENRICHMENTS: tuple[Enrichment, ...]
    EVENT_TYPES: tuple[EventType, ...]
    UNUSABLE: tuple[str, ...]
    """Why declarations of other packages cannot be used; :meth:`Settings.load` raises it."""

_DECLARED: Final = ("PROPERTIES", "ENRICHMENTS", "EVENT_TYPES", "UNUSABLE")


def __getattr__(name: str) -> Any:
    """``PROPERTIES``, ``ENRICHMENTS``, ``EVENT_TYPES`` and ``UNUSABLE``, once somebody asks for one of them.

    Not before: a module with declarations imports this one, and may not have come to its declarations yet.
    """
    if name not in _DECLARED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    points = entry_points()  # at once: it looks at every package that is installed
    properties, no_properties = extended(_PROPERTIES, points.select(group=EXTENSIONS["properties"]), Property)
    names = [prop.name for prop in properties]
    enrichments, no_enrichments = extended((), points.select(group=EXTENSIONS["enrichments"]), Enrichment, names)
    event_types, no_event_types = extended(_EVENT_TYPES, points.select(group=EXTENSIONS["event_types"]), EventType)
    globals().update(
        PROPERTIES=(*properties, *(prop for enrichment in enrichments for prop in enrichment.declared)),
        ENRICHMENTS=enrichments,
        EVENT_TYPES=event_types,
        UNUSABLE=(*no_properties, *no_enrichments, *no_event_types),
    )
    return globals()[name]


def add_enrichments(enrichments: Iterable[Enrichment]) -> None:
    """Declares more, for this process; one that there is already stays as it is.

    Raises:
        ValueError: a property of one of them cannot be beside another.
    """
    now = _now()
    for enrichment in enrichments:
        if enrichment in now.ENRICHMENTS:
            continue
        if clash := _clash(enrichment, {prop.name for prop in now.PROPERTIES}):
            raise ValueError(f"it declares {clash}")
        now.ENRICHMENTS += (enrichment,)
        now.PROPERTIES += enrichment.declared


def _now() -> Any:
    """This module as others see it, with what is declared by now."""
    return sys.modules[__name__]
