"""A slow, plain reading of what must come out of a history: no SQL, no sharing of code with the pipeline.

It keeps everything it has read, and for each question looks through all of it. Use `run` on a history (a list of ticks,
each a list of warehouse rows as dicts) and compare. Where a rule could be read in two ways, the reading taken here is
in the docstring of the function that holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Row = Mapping[str, Any]
Order = tuple[datetime, str]
"""A place in a user's life: created_date, then the event's id by code point."""

SELECTABLE: Final = (
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

RESERVED: Final = frozenset(
    (
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
)

NOT_PROPERTIES: Final = frozenset(("id", "event_type", "created_date", "user_id", "device_id", "external_id"))
GROUPS: Final[Mapping[str, type]] = {"active_entitlements": list, "devices": list, "customer_journey_state": dict}
JOURNEY: Final = ("in_grace_period", "in_trial_period", "in_intro_offer_period")
ARRAY_CHARACTERS: Final = 1024
LONGEST_ID: Final = 1024
"""Bytes of an id in UTF-8."""
SPACE: Final = " \t\n\r\v\f"
"""What is trimmed from both ends of an id."""


@dataclass(frozen=True)
class Settings:
    """What an integration is set to.

    Attributes:
        user_id: `external_id` or `nami_user_id`.
        anonymous: `skip`, `nami_user_id`, `device_id` or `wait_for_login`.
        events: `all`, or patterns: an event type, or a prefix followed by `.*`.
        rename: From Nami's event type to the name to use in Amplitude.
        start_from: Rows loaded before this are not delivered, yet tell about their users. None: from the beginning.
        hold: How long `wait_for_login` waits.
        sandbox: `send`, `skip` or `only`.
        exclude: Payload fields that never leave; the user properties that one becomes go along with it.
        revenue: `gross` or `none`.
    """

    user_id: str = "external_id"
    anonymous: str = "skip"
    events: str | tuple[str, ...] = "all"
    rename: Mapping[str, str] = field(default_factory=dict)
    start_from: datetime | None = None
    hold: timedelta = timedelta(days=30)
    sandbox: str = "send"
    exclude: tuple[str, ...] = ()
    revenue: str = "gross"

    def selects(self, event_type: str) -> bool:
        """Whether events of this type are delivered; a type that cannot be selected never is."""
        patterns = (self.events,) if isinstance(self.events, str) else self.events
        return event_type in SELECTABLE and any(
            pattern in ("all", event_type) or (pattern.endswith(".*") and event_type.startswith(pattern[:-1]))
            for pattern in patterns
        )


@dataclass(frozen=True)
class Snapshot:
    """A user's state: Amplitude user properties by name, and the names of those arrays that had to be cut."""

    properties: dict[str, Any]
    cut: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What must come of a history, for one integration; event ids throughout.

    Attributes:
        captured: Every distinct event selected.
        delivered: The Amplitude events, tick after tick, in each by (created_date, id).
        skipped: Reason by event id.
        dead_letters: Reason by event id.
        pending: Ids of events still held.
        current: Snapshot by Nami user id, of every user with a `user.*` event that has a JSON object for a payload.
        external_ids: External ID (trimmed, perhaps reserved) by Nami user id, where known.
        cuts: For each delivered event with a cut array, the names of those.
    """

    captured: set[str] = field(default_factory=set)
    delivered: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    dead_letters: dict[str, str] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    current: dict[str, Snapshot] = field(default_factory=dict)
    external_ids: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """A row that has been read, its payload if that is a JSON object, and why it cannot be sent if it cannot.

    What cannot be sent has no payload here, and tells nothing about its user.
    """

    id: str
    event_type: str
    user_id: str
    created: datetime
    ingested: datetime
    payload: dict[str, Any] | None
    problem: str | None = None

    @property
    def order(self) -> Order:
        return self.created, self.id

    @property
    def about_user(self) -> bool:
        return self.event_type.startswith("user.")


@dataclass(frozen=True)
class Prepared:
    """An event on its way, with what was known of its user when it was read."""

    event: Event
    snapshot: Snapshot
    read_at: datetime


def run(
    ticks: Sequence[Sequence[Row]],
    settings: Settings,
    *,
    app_id: str | None = None,
    times: Sequence[datetime] | None = None,
    ahead: Sequence[Sequence[Row]] | None = None,
) -> Outcome:
    """What an integration makes of a history.

    Args:
        ticks: What each tick newly read; of one app, unless `app_id` says which one counts. In a tick, rows are taken
            by `ingested_at`, rows that tie as they stand; the first row of an id wins over those of later ticks too.
        settings: The integration, which is there from the first tick on.
        app_id: Rows of other apps are left aside.
        times: When each tick ran, for the end of `wait_for_login`; without it nobody waits too long.
        ahead: Rows of later ticks that have been read already when a tick is decided on; they tell External IDs only,
            of users with rows in the tick: those of others are asked for when theirs are decided on.
    """
    outcome = Outcome()
    read: dict[str, Event] = {}
    held: list[Prepared] = []
    newest_sent: dict[str, Order] = {}
    for number, tick in enumerate(ticks):
        now = times[number] if times else datetime.min.replace(tzinfo=UTC)
        new = []
        for row in sorted(filter(is_readable, tick), key=lambda row: timestamp(row["ingested_at"])):
            if app_id in (None, row["app_id"]) and row["id"] not in read:
                event = parse(row)
                read[event.id] = event
                new.append(event)

        waiting = held
        for event in new:
            if not settings.selects(event.event_type):
                continue
            if settings.start_from is not None and event.ingested < settings.start_from:
                continue
            outcome.captured.add(event.id)
            if event.problem is not None:
                outcome.dead_letters[event.id] = event.problem
            elif event.payload is not None and (unwanted := unwanted_environment(event.payload, settings)):
                outcome.skipped[event.id] = unwanted
            else:
                waiting.append(Prepared(event, snapshot(read.values(), event), now))

        told = list(read.values())
        if ahead:
            here = {event.user_id for event in new}
            told += [event for event in map(parse, ahead[number]) if event.user_id in here]
        held = []
        sent_now: dict[str, Order] = {}
        for item in sorted(waiting, key=lambda item: item.event.order):
            event = item.event
            user, reason = identify(told, event, settings)
            if reason == "wait_for_login":
                if times and now - item.read_at >= settings.hold:
                    outcome.skipped[event.id] = "no_external_id"
                else:
                    held.append(item)
            elif reason == "no_external_id":
                outcome.skipped[event.id] = reason
            elif reason:
                outcome.dead_letters[event.id] = reason
            else:
                stale = user is not None and user in newest_sent and event.order < newest_sent[user]
                outcome.delivered.append(amplitude_event(item, user, settings, stale=stale and event.about_user))
                if event.about_user and item.snapshot.cut:
                    outcome.cuts[event.id] = item.snapshot.cut
                if event.about_user and user is not None:
                    sent_now[user] = max(event.order, sent_now.get(user, event.order))
        for user, order in sent_now.items():
            newest_sent[user] = max(order, newest_sent.get(user, order))

    outcome.pending = {item.event.id for item in held}
    for user_id in {event.user_id for event in read.values()}:
        mine = [event for event in read.values() if event.user_id == user_id and event.payload is not None]
        told = [event for event in mine if event.about_user]
        if told:
            outcome.current[user_id] = snapshot(told, max(told, key=lambda event: event.order))
        external = external_id(mine, user_id)
        if external is not None:
            outcome.external_ids[user_id] = external
    return outcome


def parse(row: Row) -> Event:
    """A warehouse row as an event; the columns count, not the payload's copies of them."""
    payload, problem = json_object(row["payload"]), None
    user_id, created = row["user_id"] or "", moment(row["created_date"])
    if row["payload"] is not None and len(row["payload"].encode()) > 1_000_000:
        problem = "too_large"
    elif len(user_id.encode()) > LONGEST_ID:
        problem = "long_user_id"
    elif not user_id:
        problem = "no_user_id"
    elif created is None:
        problem = "bad_date"
    elif payload is None:
        problem = "malformed_payload"
    return Event(
        row["id"],
        row["event_type"] or "",
        user_id,
        created or timestamp(row["ingested_at"]),
        timestamp(row["ingested_at"]),
        payload if problem is None else None,
        problem,
    )


def is_readable(row: Row) -> bool:
    """Whether a row names itself, its app and a time at which it was loaded."""
    ident = row["id"] or ""
    return 0 < len(ident.encode()) <= LONGEST_ID and bool(row["app_id"]) and moment(row["ingested_at"]) is not None


def moment(value: object) -> datetime | None:
    """A time in UTC, or None for what no calendar has: infinity, or a year before 1 or after 9999."""
    try:
        return timestamp(value)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):
        return None


def timestamp(value: str | datetime) -> datetime:
    """A time in UTC, from a datetime with a zone or from ISO 8601 text."""
    time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return time.astimezone(UTC)


def json_object(text: str | None) -> dict[str, Any] | None:
    """The JSON object in `text`, or None.

    Strict JSON: NaN and trailing commas make it no JSON at all. Half a surrogate pair, which no UTF-8 text can carry,
    is read as U+FFFD. Of a key that is there twice, the last counts.
    """
    try:
        value = json.loads(text or "", parse_constant=_refuse)
    except ValueError:
        return None
    return whole(value) if isinstance(value, dict) else None


def whole(value: Any) -> Any:
    """A JSON value without halves of surrogate pairs."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {whole(key): whole(item) for key, item in value.items()}
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; Python's True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def can_be_sent(value: Any) -> bool:
    """Whether a JSON value is a number that a double can hold at least roughly."""
    return is_number(value) and -(2**1024) < value < 2**1024


def id_text(value: Any) -> str | None:
    """An id as text: a string as it is, a number as JSON writes it; anything else is no id."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if is_number(value) else None


def objects(value: Any) -> list[dict[str, Any]]:
    """The elements of a JSON array that are objects."""
    return [element for element in value if isinstance(element, dict)]


def group(events: Sequence[Event], name: str) -> Any:
    """The newest value of a payload's group, None if never seen; null or the wrong type is as good as absent."""
    having = [event for event in events if event.payload and isinstance(event.payload.get(name), GROUPS[name])]
    newest = max(having, key=lambda event: event.order, default=None)
    return None if newest is None or newest.payload is None else newest.payload[name]


def snapshot(read: Any, at: Event) -> Snapshot:
    """The state of `at`'s user as of `at`, by all `user.*` events read so far, `at` among them.

    Each group is that of the newest event, not newer than `at`, that has it. Former subscriber takes an entitlement for
    active as soon as the array has an object in it, whatever its ids are.
    """
    known = [event for event in read if event.about_user and event.user_id == at.user_id and event.order <= at.order]
    properties: dict[str, Any] = {}
    cut = []
    entitlements = group(known, "active_entitlements")
    devices = group(known, "devices")
    journey = group(known, "customer_journey_state")
    arrays: dict[str, list[Any]] = {}
    if entitlements is not None:
        arrays["namiml_active_entitlements"] = [it.get("entitlement_ref_id") for it in objects(entitlements)]
        arrays["namiml_active_skus"] = [it.get("sku_ref_id") for it in objects(entitlements)]
    if devices is not None:
        platforms = [it.get("platform") for it in objects(devices)]
        arrays["namiml_device_ids"] = [it.get("id") for it in objects(devices)]
        arrays["namiml_device_platforms"] = [it.get("id") for it in objects(platforms)]
    for name, values in arrays.items():
        texts = sorted({text for value in values if (text := id_text(value)) is not None})
        properties[name] = fitting(texts)
        if len(properties[name]) < len(texts):
            cut.append(name)
    if journey is not None:
        former = journey.get("former_subscriber")
        if isinstance(former, bool):
            properties["namiml_former_subscriber"] = former and not objects(entitlements or [])
        for flag in JOURNEY:
            if isinstance(journey.get(flag), bool):
                properties[f"namiml_{flag}"] = journey[flag]
    return Snapshot(properties, tuple(cut))


def fitting(texts: list[str]) -> list[str]:
    """The longest prefix whose compact JSON text is not longer than Amplitude keeps."""
    kept = list(texts)
    while len(json.dumps(kept, ensure_ascii=False, separators=(",", ":"))) > ARRAY_CHARACTERS:
        kept.pop()
    return kept


def external_id(read: Any, user_id: str) -> str | None:
    """A user's External ID, trimmed: that of their newest event that has one, of any type.

    An event has one if its `external_ids` is an array with an object whose key is `external_id` and whose value is a
    string that is not blank, or a number; the first such object counts.
    """
    found: list[tuple[Order, str]] = []
    for event in read:
        if event.user_id != user_id or event.payload is None or not isinstance(event.payload.get("external_ids"), list):
            continue
        for entry in objects(event.payload["external_ids"]):
            text = id_text(entry.get("value"))
            if entry.get("key") == "external_id" and text is not None and text.strip(SPACE):
                found.append((event.order, text))
                break
    return max(found)[1].strip(SPACE) if found else None


def identify(read: Any, event: Event, settings: Settings) -> tuple[str | None, str | None]:
    """The Amplitude user id of an event, or the reason why it cannot go; neither if its device alone is enough.

    Returns:
        The user id and None; or None and `reserved_user_id`, `no_external_id` or `wait_for_login`; or None and None.
    """
    user: str | None = event.user_id.strip(SPACE)
    if settings.user_id == "external_id":
        external = external_id(read, event.user_id)
        if external is not None:
            user = external
        elif settings.anonymous == "device_id" and (text := device_text(event)) and is_reserved(text):
            return None, "reserved_device_id"
        elif settings.anonymous == "device_id":
            device = device_id(event) if "device_id" not in settings.exclude else None
            if device is not None and len(device.encode()) > LONGEST_ID:
                return None, "long_user_id"
            return None, None if device is not None else "no_external_id"
        elif settings.anonymous == "wait_for_login":
            return None, "wait_for_login"
        elif settings.anonymous == "skip":
            return None, "no_external_id"
    if user is not None and user.lower() in RESERVED:
        return None, "reserved_user_id"
    if user is not None and len(user.encode()) > LONGEST_ID:
        return None, "long_user_id"
    return user, None


def unwanted_environment(payload: Mapping[str, Any], settings: Settings) -> str | None:
    """The environment of a purchase, in any case, if events of it are skipped."""
    said = payload.get("purchase_env")
    environment = said.strip(SPACE).lower() if isinstance(said, str) else None
    unwanted = {"skip": "sandbox", "only": "production"}.get(settings.sandbox)
    return unwanted if unwanted is not None and environment == unwanted else None


HIDDEN_WITH: Final[Mapping[str, tuple[str, ...]]] = {
    "active_entitlements": ("namiml_active_entitlements", "namiml_active_skus"),
    "devices": ("namiml_device_ids", "namiml_device_platforms"),
    "customer_journey_state": ("namiml_former_subscriber", *(f"namiml_{flag}" for flag in JOURNEY)),
}


def shown(item: Prepared, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The payload and the user properties, as far as they may leave."""
    hidden = {name for group in settings.exclude for name in HIDDEN_WITH.get(group, ())} | set(settings.exclude)
    payload = {name: value for name, value in (item.event.payload or {}).items() if name not in hidden}
    properties = {name: value for name, value in item.snapshot.properties.items() if name not in hidden}
    return payload, properties


def is_reserved(ident: str) -> bool:
    """Whether Amplitude refuses an id, in any case, with space around it or not."""
    return ident.strip(SPACE).lower() in RESERVED


def device_id(event: Event) -> str | None:
    """The device that an event is sent with: a reserved one is left out beside a user."""
    text = device_text(event)
    return None if text is None or is_reserved(text) else text


def device_text(event: Event) -> str | None:
    """The device of a `device.*` event, as the payload says it; a blank one is none."""
    if event.payload is None or not event.event_type.startswith("device."):
        return None
    text = id_text(event.payload.get("device_id"))
    return text if text is not None and text.strip(SPACE) else None


def amplitude_event(item: Prepared, user: str | None, settings: Settings, *, stale: bool) -> dict[str, Any]:
    """What is posted of an event."""
    event = item.event
    payload, user_properties = shown(item, settings)
    result: dict[str, Any] = {
        "event_type": settings.rename.get(event.event_type, event.event_type),
        "time": (event.created - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1),
        "insert_id": event.id,
        "event_properties": event_properties(event, payload),
    }
    if user is not None:
        result["user_id"] = user
    device = device_id(event)
    if device is not None and "device_id" not in settings.exclude:
        result["device_id"] = device
    if event.about_user:
        result["user_properties"] = user_properties
    if stale:
        result["$skip_user_properties_sync"] = True
    if event.event_type == "device.transaction" and settings.revenue != "none":
        env = {"purchase_env": (event.payload or {}).get("purchase_env")}  # decides, whether it leaves or not
        result.update(revenue(payload | env))
    return result


def event_properties(event: Event, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Every string, number and boolean at the payload's top level but six, unchanged; and the parts of the type."""
    properties = {
        key: value
        for key, value in payload.items()
        if key not in NOT_PROPERTIES and (isinstance(value, str | bool) or can_be_sent(value))
    }
    parts = event.event_type.split(".")
    properties["namiml_event_category"] = parts[0]
    if len(parts) >= 3:
        properties["namiml_event_subcategory1"] = parts[1]
    return properties


def revenue(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The revenue fields of a transaction: none without a number for an amount, none in the sandbox.

    The quantity is an integer of at most 15 digits, perhaps written with a decimal point and zeros, or as a string;
    anything else counts as 1. A SKU or currency that is not a string is left out.
    """
    amount, env = payload.get("amount"), payload.get("purchase_env")
    if not can_be_sent(amount) or (isinstance(env, str) and env.strip(SPACE).lower() == "sandbox"):
        return {}
    quantity = payload.get("quantity")
    if isinstance(quantity, str | float) and re.fullmatch(r"-?[0-9]{1,15}([.]0+)?", str(quantity)):
        quantity = int(str(quantity).partition(".")[0])
    if not isinstance(quantity, int) or isinstance(quantity, bool) or not -(10**15) < quantity < 10**15:
        quantity = 1
    result = {"price": amount, "quantity": quantity, "revenueType": "purchase"}
    if isinstance(payload.get("sku"), str):
        result["productId"] = payload["sku"]
    if isinstance(payload.get("currency"), str):
        result["currency"] = payload["currency"]
    return result
