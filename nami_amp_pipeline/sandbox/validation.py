"""Whether Amplitude would take a request's events: a quick look at all of them, and a full one that names the faults.

The quick look settles a well-formed request with a few passes over columns of values; anything that it cannot vouch for
goes through the full one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any, Final, cast

from .settings import MAX_TEXT, Options

Event = dict[str, Any]

RESERVED_IDS: Final = frozenset(
    {
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
    }
)
"""Ids that are refused in any case of letters (https://amplitude.com/docs/apis/analytics/http-v2)."""

RESERVED_EVENT_TYPES: Final = frozenset(
    {
        "[Amplitude] Start Session",
        "[Amplitude] End Session",
        "[Amplitude] Revenue",
        "[Amplitude] Revenue (Verified)",
        "[Amplitude] Revenue (Unverified)",
        "[Amplitude] Merged User",
    }
)

OPERATIONS: Final = (
    "$clearAll",
    "$unset",
    "$set",
    "$setOnce",
    "$add",
    "$append",
    "$prepend",
    "$preInsert",
    "$postInsert",
    "$remove",
)
"""User property operations in the order in which Amplitude applies them."""

MAX_DEPTH: Final = 40

_TEXT_FIELDS = (
    "event_type user_id device_id insert_id app_version version_name platform os_name os_version device_brand "
    "device_manufacturer device_model carrier country region city dma language productId revenueType currency idfa "
    "idfv adid android_id android_app_set_id ip user_agent library partner_id"
)
_INTEGER_FIELDS: Final = frozenset({"time", "quantity", "event_id", "session_id"})
_ABSENT: Final = type(None)
_FIELD_TYPES: Final[dict[str, frozenset[type]]] = {
    **dict.fromkeys(_TEXT_FIELDS.split(), frozenset({str, _ABSENT})),
    **dict.fromkeys(_INTEGER_FIELDS, frozenset({int, _ABSENT})),
    **dict.fromkeys(("price", "revenue", "location_lat", "location_lng"), frozenset({int, float, _ABSENT})),
    **dict.fromkeys(
        ("event_properties", "user_properties", "groups", "group_properties", "plan", "ingestion_metadata"),
        frozenset({dict, _ABSENT}),
    ),
    "$skip_user_properties_sync": frozenset({bool, _ABSENT}),
}
_CONTAINERS: Final = frozenset({dict, list})
_PROPERTY_FIELDS: Final = ("event_properties", "user_properties", "groups", "group_properties")
_INT64: Final = 2**63
_SHAPES_KEPT: Final = 10_000
_IDS_KEPT: Final = 1_000_000


@dataclass
class Columns:
    """The values of a request's events that the sandbox works with, one list per field, in the events' order.

    Attributes:
        users: user ids as Amplitude would store them: trimmed and cut.
        devices: device ids, likewise.
        names: every field that an event has.
    """

    types: list[str]
    users: list[str | None]
    devices: list[str | None]
    insert_ids: list[str | None]
    times: list[int | None]
    names: set[str]

    def identities(self) -> list[str]:
        """Who each event is of: its user, or its device where it has no user."""
        if None not in self.users:
            return self.users  # type: ignore[return-value]
        return [user or f"device {device}" for user, device in zip(self.users, self.devices, strict=True)]


@dataclass
class Findings:
    """What is wrong with a request's events.

    Attributes:
        missing: field to the indexes of the events that lack it.
        invalid: field to the indexes of the events where its value is of no use.
        id_lengths: ``user_id`` or ``device_id`` to the indexes where it is too short or no text.
        reserved: indexes of events with an id that Amplitude reserves; no answer names them.
        not_objects: indexes of events that are no JSON object.
    """

    missing: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    invalid: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    id_lengths: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    reserved: list[int] = field(default_factory=list)
    not_objects: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.invalid or self.id_lengths or self.reserved or self.not_objects)


class Validator:
    """Checks events; remembers the shapes and ids that it has found good."""

    def __init__(self, options: Options) -> None:
        """Keeps the options that decide what is refused."""
        self._options = options
        self._property_keys: set[tuple[str, ...]] = set()
        self._ids: dict[int, set[str]] = defaultdict(set)

    def quick(self, events: Sequence[Any], min_id_length: int) -> Columns | None:
        """The columns of events that are certainly good, or None where only the full check can tell."""
        if set(map(type, events)) != {dict}:
            return None
        shapes = set(map(tuple, events))
        names = set().union(*shapes)
        everywhere = names.intersection(*shapes)
        fields: dict[str, list[Any]] = {}
        for name in names & _FIELD_TYPES.keys():
            if name in everywhere:
                values = list(map(itemgetter(name), events))
            else:
                values = [event.get(name) for event in events]
            if not _FIELD_TYPES[name].issuperset(map(type, values)):
                return None
            fields[name] = values
        absent = [None] * len(events)
        columns = Columns(
            types=fields.get("event_type", absent),
            users=fields.get("user_id", absent),
            devices=fields.get("device_id", absent),
            insert_ids=fields.get("insert_id", absent),
            times=fields.get("time", absent),
            names=names,
        )
        for event_type in set(columns.types):
            if not event_type or event_type in RESERVED_EVENT_TYPES or not event_type.strip():
                return None
        if not (self._ids_good(columns.users, min_id_length) and self._ids_good(columns.devices, min_id_length)):
            return None
        if (None in columns.users or None in columns.devices) and not all(map(_either, columns.users, columns.devices)):
            return None
        return columns if self._values_good(fields) else None

    def full(self, events: list[Any], min_id_length: int) -> tuple[Findings, Columns | None, bool]:
        """Every fault of the events.

        Args:
            events: changed in place where ``short_id`` is ``strip``.
            min_id_length: characters that an id must have.

        Returns:
            The faults; the columns, where there are none; whether an id was stripped from an event.
        """
        findings = Findings()
        stripped = False
        for index, event in enumerate(events):
            if type(event) is not dict:
                findings.not_objects.append(index)
                continue
            self._check_event_type(event, index, findings)
            short = self._check_ids(event, index, min_id_length, findings)
            if short:
                events[index] = event = {name: value for name, value in event.items() if name not in short}
                stripped = True
            if event.get("user_id") is None and event.get("device_id") is None:
                findings.missing["user_id"].append(index)
            self._check_fields(event, index, findings)
        return findings, None if findings else normal_columns(events), stripped

    def _ids_good(self, ids: Iterable[str | None], min_id_length: int) -> bool:
        good = self._ids[min_id_length]
        fresh = set(ids) - good
        fresh.discard(None)
        for value in fresh:
            if value is None or not min_id_length <= len(value) <= MAX_TEXT or value.strip() != value:
                return False
            if value.lower() in RESERVED_IDS:
                return False
        if len(good) > _IDS_KEPT:
            good.clear()
        good |= fresh  # type: ignore[arg-type]
        return True

    def _values_good(self, fields: dict[str, list[Any]]) -> bool:
        """Whether integers are in range and properties flat, of plain keys: anything deeper is for the full check."""
        for name in _INTEGER_FIELDS & fields.keys():
            numbers = [number for number in fields[name] if number is not None]
            if numbers and (min(numbers) < -_INT64 or max(numbers) >= _INT64):
                return False
        if "groups" in fields or "group_properties" in fields:
            return False
        user_properties = list(filter(None, fields.get("user_properties", ())))
        keys = set(map(tuple, user_properties))
        for names in keys - self._property_keys:
            if any(name.startswith("$") for name in names):
                return False
        if len(self._property_keys) > _SHAPES_KEPT:
            self._property_keys.clear()
        self._property_keys |= keys
        event_properties = filter(None, fields.get("event_properties", ()))
        values = chain.from_iterable(map(dict.values, chain(user_properties, event_properties)))
        nested = [value for value in values if type(value) in _CONTAINERS]
        return _CONTAINERS.isdisjoint(map(type, chain.from_iterable(nested))) and dict not in set(map(type, nested))

    def _check_event_type(self, event: Event, index: int, findings: Findings) -> None:
        event_type = event.get("event_type")
        if event_type is None or (type(event_type) is str and not event_type.strip()):
            findings.missing["event_type"].append(index)
        elif type(event_type) is not str or event_type in RESERVED_EVENT_TYPES:
            findings.invalid["event_type"].append(index)

    def _check_ids(self, event: Event, index: int, min_id_length: int, findings: Findings) -> list[str]:
        """Notes the faults of an event's ids; returns the ids that are to be stripped."""
        short = []
        for name in ("user_id", "device_id"):
            value = event.get(name)
            if value is None:
                continue
            if type(value) is not str:
                findings.id_lengths[name].append(index)
            elif value.strip().lower() in RESERVED_IDS:
                if index not in findings.reserved:
                    findings.reserved.append(index)
            elif len(value) < min_id_length:
                if self._options.short_id == "strip":
                    short.append(name)
                else:
                    findings.id_lengths[name].append(index)
        return short

    def _check_fields(self, event: Event, index: int, findings: Findings) -> None:
        for name, value in event.items():
            if name in ("event_type", "user_id", "device_id"):
                continue
            allowed = _FIELD_TYPES.get(name)
            wrong = (
                (allowed is not None and type(value) not in allowed)
                or (type(value) is int and allowed is not None and not -_INT64 <= value < _INT64)
                or (name in _PROPERTY_FIELDS and depth(value) > MAX_DEPTH)
                or (name == "user_properties" and value and not self._operations_good(value))
            )
            if wrong:
                findings.invalid[name].append(index)

    def _operations_good(self, properties: Event) -> bool:
        used = [name for name in properties if name in OPERATIONS]
        if not used:
            return True
        if len(used) != len(properties) and self._options.mixed_properties == "reject":
            return False
        for name in used:
            value = properties[name]
            if name == "$clearAll":
                continue
            if type(value) is not dict:
                return False
            if name == "$add" and not all(type(number) in (int, float) for number in value.values()):
                return False
        return True


def depth(value: object) -> int:
    """How many objects and arrays are nested in a value, counting itself; 0 for a scalar. Never recursive."""
    level: list[object] = [value]
    found = 0
    while True:
        inside: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inside.append(item.values())
            elif isinstance(item, list):
                inside.append(item)
        if not inside:
            return found
        found += 1
        level = [member for members in inside for member in cast("Iterable[object]", members)]


def stored_id(value: str | None) -> str | None:
    """A user or device id as Amplitude keeps it: trimmed, and cut after 1,024 characters."""
    return None if value is None else value.strip()[:MAX_TEXT]


def _either(user: str | None, device: str | None) -> bool:
    return user is not None or device is not None


def normal_columns(events: Sequence[Event]) -> Columns:
    """The columns of good events."""
    return Columns(
        types=[event["event_type"] for event in events],
        users=[stored_id(event.get("user_id")) for event in events],
        devices=[stored_id(event.get("device_id")) for event in events],
        insert_ids=[event.get("insert_id") for event in events],
        times=[event.get("time") for event in events],
        names=set().union(*events),
    )
