"""Faults on request: rules that make the sandbox answer as Amplitude and the network do on a bad day."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, get_args
from zlib import crc32

import orjson

from .settings import key_hint
from .validation import stored_id

FaultKind = Literal[
    "500",
    "502",
    "503",
    "504",
    "html_400",
    "html_502",
    "403",
    "413",
    "project_429",
    "redirect",
    "invalid_key",
    "reset_before_response",
    "closed_without_answer",
    "stored_then_500",
    "stored_then_502",
    "stored_then_504",
    "empty_body",
    "truncated_body",
    "stall",
    "trickle",
    "slow",
    "throttle_user",
    "quota_user",
    "silence_device",
    "poison",
]
KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)

_AFTER: Final = frozenset(
    {
        "stored_then_500",
        "stored_then_502",
        "stored_then_504",
        "empty_body",
        "truncated_body",
        "stall",
        "trickle",
        "slow",
    }
)
_EITHER: Final = frozenset({"reset_before_response", "closed_without_answer"})
_EVENTS: Final = frozenset({"throttle_user", "quota_user", "silence_device", "poison"})

Stage = Literal["before", "events", "after"]
"""Before the request is checked, when its events are, or after they were taken."""


class FaultError(ValueError):
    """A rule that cannot be: its message says why, in words for whoever sent it."""


@dataclass
class Fault:
    """One rule. It applies to a request that passes all its filters, and to its events that pass the event filters.

    Attributes:
        kind: what happens.
        probability: of happening to a request that matches, 0 to 1.
        times: how many more requests it happens to; None for no end.
        api_key: filter: the request's key.
        path: filter: ``/2/httpapi`` or ``/batch``.
        min_events: filter: the request has at least so many events.
        user_id: event filter.
        device_id: event filter.
        insert_id: event filter.
        text: event filter: the event's compact JSON contains it.
        share: event filter: this part of all events, 0 to 1, chosen by ``insert_id`` and ``seed``, always the same.
        seed: for ``probability`` and ``share``; None draws from the sandbox's generator.
        seconds: how long, for ``slow``, ``stall`` and ``trickle``.
        stored: whether the events are taken, for ``reset_before_response`` and ``closed_without_answer``.
        status: of ``empty_body``.
        retry_after: the header of ``project_429``, in seconds.
        location: where ``redirect`` points.
        indexes: which of the refused events a ``poison`` answer names: the first, all or none.
        field_name: the field that a ``poison`` answer blames.
        enabled: a rule that is off stays, and does nothing.
        id: given by the sandbox.
        fired: how often it happened.
    """

    kind: FaultKind
    probability: float = 1.0
    times: int | None = None
    api_key: str | None = None
    path: str | None = None
    min_events: int = 0
    user_id: str | None = None
    device_id: str | None = None
    insert_id: str | None = None
    text: str | None = None
    share: float | None = None
    seed: int | None = None
    seconds: float = 1.0
    stored: bool = False
    status: int = 200
    retry_after: int | None = None
    location: str = "https://example.invalid/"
    indexes: Literal["first", "all", "none"] = "all"
    field_name: str = "event_properties"
    enabled: bool = True
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
        if "\r" in self.location or "\n" in self.location or not self.location.isascii():
            raise FaultError("location must be an ASCII address")
        if self.kind in _EVENTS and not self.filters_events():
            raise FaultError(f"{self.kind} needs an event filter: user_id, device_id, insert_id, text or share")
        if self.seed is not None:
            self._rng = random.Random(self.seed)  # noqa: S311 - chooses faults, nothing secret

    @property
    def stage(self) -> Stage:
        """When in the handling of a request the rule comes in."""
        if self.kind in _EVENTS:
            return "events"
        return "after" if self.kind in _AFTER or (self.kind in _EITHER and self.stored) else "before"

    def filters_events(self) -> bool:
        """Whether the rule is about certain events only."""
        return any(value is not None for value in (self.user_id, self.device_id, self.insert_id, self.text, self.share))

    def matches(self, request: RequestFacts) -> list[int] | None:
        """Indexes of the events that the rule is about, or None where it is not about the request."""
        if (self.path is not None and self.path != request.path) or len(request.events) < self.min_events:
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
        if self.insert_id is not None and event.get("insert_id") != self.insert_id:
            return False
        if self.share is not None:
            drawn = crc32(f"{self.seed}|{event.get('insert_id')}".encode("utf-8", "surrogatepass")) / 2**32
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
    """

    path: str
    api_key: str | None
    events: Sequence[Any]


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

    def delay(self, request: RequestFacts) -> float:
        """Seconds that the ``slow`` rules add to a request."""
        return sum(
            rule.seconds
            for rule in self._rules
            if rule.kind == "slow" and rule.matches(request) is not None and rule.happens(self._rng)
        )


_NUMBERS: Final = {"probability": float, "share": float, "seconds": float}
_INTEGERS: Final = frozenset({"times", "seed", "min_events", "status", "retry_after"})
_TEXTS: Final = frozenset({"api_key", "path", "user_id", "device_id", "insert_id", "text", "location", "field_name"})
_OPTIONAL: Final = frozenset(
    {"times", "api_key", "path", "user_id", "device_id", "insert_id", "text", "share", "seed", "retry_after"}
)
_SETTABLE: Final = frozenset({"kind", "indexes", "enabled", "stored"} | set(_NUMBERS) | _INTEGERS | _TEXTS)


def _check_types(rule: Fault) -> None:
    for name in sorted(_SETTABLE - {"kind", "indexes"}):
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
