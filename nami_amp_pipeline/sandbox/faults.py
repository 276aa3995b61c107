"""Faults on request: rules that make the sandbox answer as Amplitude and the network do on a bad day."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal
from zlib import crc32

import orjson

from .fault_kinds import AFTER, EITHER, KINDS, LOSSES, OF_EVENTS, FaultError, FaultKind, Stage
from .settings import EXPORT_PATH, MAX_TEXT, key_hint
from .validation import stored_id


@dataclass
class Fault:
    """One rule. It applies to a request that passes all its filters, and to its events that pass the event filters.

    Attributes:
        kind: what happens.
        probability: of happening to a request that matches, 0 to 1.
        times: how many more requests it happens to; None for no end. Of the kinds that lose, cut or double: how many
            more events.
        api_key: filter: the request's key.
        path: filter: ``/2/httpapi``, ``/batch`` or ``/api/2/export``. A rule without it is about uploads.
        min_events: filter: the request has at least so many events.
        min_hours: filter: the export is of at least so many hours.
        user_id: event filter.
        device_id: event filter.
        insert_id: event filter.
        text: event filter: the event's compact JSON contains it.
        event_type: event filter.
        share: event filter: this part of all events, 0 to 1, chosen by ``insert_id`` and ``seed``, always the same.
        share_by: ``user`` chooses a part of all users instead (of devices, for events without user).
        seed: for ``probability`` and ``share``; None draws from the sandbox's generator.
        seconds: how long, for ``slow``, ``stall`` and ``trickle``.
        stored: whether the events are taken, for ``reset_before_response`` and ``closed_without_answer``.
        status: of ``empty_body``.
        retry_after: the header of ``project_429``, in seconds.
        location: where ``redirect`` points.
        indexes: which of the refused events a ``poison`` answer names: the first, all or none.
        field_name: the field that a ``poison`` answer blames.
        property_name: the event or user property that ``cut_property`` cuts.
        characters: what ``cut_property`` keeps of it (of an array, of its JSON); None keeps nothing.
        enabled: a rule that is off stays, and does nothing.
        scene: the scene that the rule belongs to.
        id: given by the sandbox.
        fired: how often it happened.
    """

    kind: FaultKind
    probability: float = 1.0
    times: int | None = None
    api_key: str | None = None
    path: str | None = None
    min_events: int = 0
    min_hours: int = 0
    user_id: str | None = None
    device_id: str | None = None
    insert_id: str | None = None
    text: str | None = None
    event_type: str | None = None
    share: float | None = None
    share_by: Literal["insert_id", "user"] = "insert_id"
    seed: int | None = None
    seconds: float = 1.0
    stored: bool = False
    status: int = 200
    retry_after: int | None = None
    location: str = "https://example.invalid/"
    indexes: Literal["first", "all", "none"] = "all"
    field_name: str = "event_properties"
    property_name: str | None = None
    characters: int | None = MAX_TEXT
    enabled: bool = True
    scene: str = ""
    id: int = 0
    fired: int = 0
    _rng: random.Random | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Checks the rule.

        Raises:
            FaultError: a value is not possible.
        """
        if self.kind not in KINDS:
            raise FaultError(f"unknown kind {self.kind!r}: use one of {', '.join(KINDS)}")
        _check_types(self)
        for name in ("probability", "share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise FaultError(f"{name} must be from 0 to 1")
        if self.times is not None and self.times < 0:
            raise FaultError("times must not be negative")
        if not 0 <= self.seconds <= 3600:
            raise FaultError("seconds must be from 0 to 3600")
        if not 200 <= self.status <= 599:
            raise FaultError("status must be from 200 to 599")
        if self.indexes not in ("first", "all", "none"):
            raise FaultError("indexes must be first, all or none")
        if self.share_by not in ("insert_id", "user"):
            raise FaultError("share_by must be insert_id or user")
        if self.characters is not None and self.characters < 0:
            raise FaultError("characters must not be negative; null keeps nothing of the property")
        if self.kind == "cut_property" and not self.property_name:
            raise FaultError("cut_property needs a property_name")
        if "\r" in self.location or "\n" in self.location or not self.location.isascii():
            raise FaultError("location must be an ASCII address")
        if self.kind in OF_EVENTS and not self.filters_events():
            raise FaultError(
                f"{self.kind} needs an event filter: user_id, device_id, insert_id, event_type, text or share"
            )
        if self.seed is not None:
            self._rng = random.Random(self.seed)  # noqa: S311 - chooses faults, nothing secret

    @property
    def stage(self) -> Stage:
        """When in the handling of a request the rule comes in."""
        if self.kind in OF_EVENTS:
            return "events"
        if self.kind in LOSSES:
            return "store"
        return "after" if self.kind in AFTER or (self.kind in EITHER and self.stored) else "before"

    def filters_events(self) -> bool:
        """Whether the rule is about certain events only."""
        filters = (self.user_id, self.device_id, self.insert_id, self.event_type, self.text, self.share)
        return any(value is not None for value in filters)

    def matches(self, request: RequestFacts) -> list[int] | None:
        """Indexes of the events that the rule is about, or None where it is not about the request."""
        is_about_exports = self.path == EXPORT_PATH or self.kind == "export_too_large"
        if is_about_exports != (request.path == EXPORT_PATH) or request.hours < self.min_hours:
            return None
        if self.path not in (None, request.path) or len(request.events) < self.min_events:
            return None
        if self.api_key is not None and self.api_key != request.api_key:
            return None
        if not self.filters_events():
            return list(range(len(request.events)))
        found = [index for index, event in enumerate(request.events) if self._matches_event(event)]
        return found or None

    def _matches_event(self, event: Any) -> bool:
        if not isinstance(event, dict):
            return False
        for name in ("user_id", "device_id"):
            wanted, value = getattr(self, name), event.get(name)
            if wanted is not None and (not isinstance(value, str) or stored_id(value) != wanted):
                return False
        for name in ("insert_id", "event_type"):
            wanted = getattr(self, name)
            if wanted is not None and event.get(name) != wanted:
                return False
        if self.share is not None:
            by = event.get("insert_id")
            if self.share_by == "user":
                by = next((event[name] for name in ("user_id", "device_id") if isinstance(event.get(name), str)), None)
            drawn = crc32(f"{self.seed}|{by}".encode("utf-8", "surrogatepass")) / 2**32
            if drawn >= self.share:
                return False
        return self.text is None or self.text in orjson.dumps(event).decode()

    def happens(self, rng: random.Random) -> bool:
        """Draws whether the rule happens to a request that it matches, and counts it if so."""
        if not self.enabled or self.times == 0:
            return False
        if self.probability < 1 and (self._rng or rng).random() >= self.probability:
            return False
        self.fired += 1
        if self.times is not None:
            self.times -= 1
        return True

    def to_json(self) -> dict[str, Any]:
        """The rule with the values that differ from the defaults; of an API key, only its end."""
        shown: dict[str, Any] = {"id": self.id, "kind": self.kind, "enabled": self.enabled, "fired": self.fired}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in shown and each.init and not each.name.startswith("_") and value != each.default:
                shown[each.name] = value
        if self.api_key is not None:
            shown["api_key"] = key_hint(self.api_key)
        return shown


@dataclass(frozen=True)
class RequestFacts:
    """What rules look at.

    Attributes:
        path: the endpoint.
        api_key: as sent; None where it is no text.
        events: as sent, of any type.
        hours: of an export.
    """

    path: str
    api_key: str | None
    events: Sequence[Any]
    hours: int = 0


class Faults:
    """The rules in force, in the order in which they were added."""

    def __init__(self, rng: random.Random) -> None:
        """Starts with none.

        Args:
            rng: decides about rules without a seed of their own.
        """
        self._rng = rng
        self._rules: list[Fault] = []
        self._next_id = 1

    def add(self, *rules: Fault) -> None:
        """Adds rules and gives each its id."""
        for rule in rules:
            rule.id = self._next_id
            self._next_id += 1
            self._rules.append(rule)

    def remove(self, rule_id: int | None = None) -> None:
        """Removes one rule, or all of them."""
        self._rules = [] if rule_id is None else [rule for rule in self._rules if rule.id != rule_id]

    def end_scene(self, name: str | None = None) -> None:
        """Removes the rules of one scene, or of all of them."""
        self._rules = [rule for rule in self._rules if not rule.scene or name not in (None, rule.scene)]

    def switch(self, rule_id: int, enabled: bool) -> bool:
        """Turns a rule on or off; False where there is no such rule."""
        for rule in self._rules:
            if rule.id == rule_id:
                rule.enabled = enabled
                return True
        return False

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._rules))

    def __len__(self) -> int:
        return len(self._rules)

    def first(self, stage: Stage, request: RequestFacts) -> tuple[Fault, list[int]] | None:
        """The first rule of a stage, other than ``slow``, that happens to a request, with the events it is about."""
        for rule in self._rules:
            if rule.stage != stage or rule.kind == "slow":
                continue
            indexes = rule.matches(request)
            if indexes is not None and rule.happens(self._rng):
                return rule, indexes
        return None

    def losses(self, request: RequestFacts) -> Iterator[tuple[Fault, int]]:
        """The events that are lost, cut or doubled, each with the rule that says so; one may come more than once."""
        for rule in self._rules:
            if rule.stage == "store":
                for index in rule.matches(request) or ():
                    if rule.happens(self._rng):
                        yield rule, index

    def draw(self, rule: Fault) -> bool:
        """Draws whether a rule happens, and counts it if so."""
        return rule.happens(self._rng)

    def delay(self, request: RequestFacts) -> float:
        """Seconds that the ``slow`` rules add to a request."""
        return sum(
            rule.seconds
            for rule in self._rules
            if rule.kind == "slow" and rule.matches(request) is not None and rule.happens(self._rng)
        )


_NUMBERS: Final = {"probability": float, "share": float, "seconds": float}
_INTEGERS: Final = frozenset({"times", "seed", "min_events", "min_hours", "status", "retry_after", "characters"})
_FILTERS: Final = frozenset({"user_id", "device_id", "insert_id", "event_type", "text"})
_TEXTS: Final = _FILTERS | {"api_key", "path", "location", "field_name", "property_name"}
_OPTIONAL: Final = _INTEGERS - {"min_events", "min_hours", "status"} | _TEXTS - {"location", "field_name"} | {"share"}
_CHOICES: Final = frozenset({"kind", "indexes", "share_by"})
_SETTABLE: Final = _CHOICES | {"enabled", "stored"} | set(_NUMBERS) | _INTEGERS | _TEXTS


def _check_types(rule: Fault) -> None:
    for name in sorted(_SETTABLE - _CHOICES):
        value = getattr(rule, name)
        if value is None and name in _OPTIONAL:
            continue
        wanted: tuple[type, ...] = (bool,)
        if name in _NUMBERS:
            wanted = (int, float)
        elif name in _INTEGERS:
            wanted = (int,)
        elif name in _TEXTS:
            wanted = (str,)
        if type(value) not in wanted:
            raise FaultError(f"{name} must be {' or '.join(kind.__name__ for kind in wanted)}")


def fault_from_json(content: object) -> Fault:
    """A rule from what the faults endpoint receives.

    Raises:
        FaultError: it is no rule; the message says why.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("kind"), str):
        raise FaultError(f"a rule is an object with a kind, one of {', '.join(KINDS)}")
    unknown = sorted(set(content) - _SETTABLE)
    if unknown:
        raise FaultError(f"unknown: {', '.join(unknown)}; a rule has {', '.join(sorted(_SETTABLE))}")
    return Fault(**content)
