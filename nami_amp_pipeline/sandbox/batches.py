"""The events of one request as they came, and what of them Amplitude holds in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from .profiles import cut_value, fitting
from .validation import OPERATIONS, Event

_PROPERTIES = ("event_properties", "user_properties")


@dataclass(frozen=True)
class Damage:
    """What becomes of an event although it was answered 200.

    Attributes:
        lost: it is not held.
        copies: how many times it is held.
        cuts: property name to the characters that are kept of it; None where the property is not held at all.
    """

    lost: bool = False
    copies: int = 1
    cuts: Mapping[str, int | None] = field(default_factory=dict)

    def and_also(self, other: Damage) -> Damage:
        """Both together."""
        return Damage(self.lost or other.lost, self.copies + other.copies - 1, {**self.cuts, **other.cuts})

    def to_json(self) -> dict[str, Any]:
        """The damage as the journal and the search have it."""
        return {"lost": self.lost, "copies": self.copies, "cuts": dict(self.cuts)}


@dataclass(slots=True)
class Batch:
    """The events that were taken of one request.

    Attributes:
        first: number of its first event in the project.
        count: events taken.
        received_at: seconds since the epoch.
        path: the endpoint.
        client_upload_time: as the request had it.
        body: JSON with the events under ``events``; None when only the counts are kept any more.
        picks: indexes of the events taken, or None for all.
        damage: what was lost, cut or stored twice, by the place among the events taken.
    """

    first: int
    count: int
    received_at: float
    path: str
    client_upload_time: str | None
    body: bytes | None
    picks: tuple[int, ...] | None
    damage: dict[int, Damage] = field(default_factory=dict)

    def events(self) -> list[Event]:
        """The events, exactly as they came; none when their JSON is not kept any more."""
        body = self.body
        if body is None:
            return []
        events: list[Event] = orjson.loads(body)["events"]
        return events if self.picks is None else [events[index] for index in self.picks]

    def held(self) -> Iterator[tuple[int, int, Event]]:
        """What Amplitude holds: place among the events taken, number of the copy from 0, and the event."""
        if not self.damage:
            yield from ((place, 0, event) for place, event in enumerate(self.events()))
            return
        for place, event in enumerate(self.events()):
            damage = self.damage.get(place)
            if damage is None:
                yield place, 0, event
            elif not damage.lost:
                kept = damaged(event, damage)
                yield from ((place, copy, kept) for copy in range(damage.copies))

    def may_hold(self, text: str) -> bool:
        """Whether a text can be in one of the events, without parsing them; False is certain."""
        body = self.body
        if body is None:
            return False
        return b"\\" in body or text.encode("utf-8", "surrogatepass") in body


def damaged(event: Event, damage: Damage) -> Event:
    """An event without what was cut of its properties; the one that was given stays as it is."""
    if not damage.cuts:
        return event
    event = dict(event)
    for name in _PROPERTIES:
        properties = event.get(name)
        if not properties:
            continue
        properties = {
            key: _cut(value, damage.cuts) if key in OPERATIONS and isinstance(value, dict) else value
            for key, value in properties.items()
        }
        event[name] = _cut(properties, damage.cuts)
    return event


def _cut(properties: Mapping[str, Any], cuts: Mapping[str, int | None]) -> dict[str, Any]:
    kept = {}
    for name, value in properties.items():
        if name not in cuts:
            kept[name] = value
            continue
        characters = cuts[name]
        if characters is not None:
            kept[name] = _shortened(value, characters)
    return kept


def _shortened(value: Any, characters: int) -> Any:
    if type(value) is str:
        return value[:characters]
    if type(value) is list:
        return value if len(orjson.dumps(value).decode()) <= characters else fitting(value, characters)
    return cut_value(value)
