"""Which field of an event Amplitude named when it rejected the event, and what stands in that field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

_HOW: Final = {
    "events_with_missing_fields": "is missing",
    "events_with_invalid_fields": "is invalid",
    "events_with_invalid_id_lengths": "has a length that Amplitude does not take",
}
_MOST_CHARACTERS: Final = 300


@dataclass(frozen=True)
class NamedField:
    """A field that Amplitude named.

    Attributes:
        name: of the Amplitude event.
        how: what is wrong, as the rest of a sentence.
        value: as JSON text, cut at 300 characters; None if the event does not have it, or is not there to look.
    """

    name: str
    how: str
    value: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.how}" + (f": {self.value}" if self.value is not None else "")

    def to_json(self) -> dict[str, Any]:
        """An object of ``dead-letters --json``."""
        return {"field": self.name, "problem": self.how, "value": self.value}


def named_fields(answer: str | None, body: str | None) -> list[NamedField]:
    """The fields that Amplitude named of one event.

    Args:
        answer: what Amplitude said of the event. One that was stored by an older version is that of a whole request: it
            counts where it can be about one event only.
        body: the Amplitude event as JSON, if that is known.
    """
    said, event = _object(answer), _object(body and body.removeprefix(","))
    found = []
    for key, how in _HOW.items():
        lists = said.get(key)
        names = lists if isinstance(lists, list) else _of_one_event(lists)
        found += [NamedField(name, how, _value(event, name)) for name in names if isinstance(name, str)]
    missing = said.get("missing_field")
    if isinstance(missing, str) and not found:
        found.append(NamedField(missing, _HOW["events_with_missing_fields"], _value(event, missing)))
    return found


def error_of(answer: str | None) -> str | None:
    """What Amplitude, or another destination, said in words, if it did."""
    said = _object(answer)
    found = (said.get(name) for name in ("error", "reason"))  # of Amplitude; of the results of single events
    return next((text for text in found if isinstance(text, str) and text), None)


def _of_one_event(lists: Any) -> list[str]:
    if not isinstance(lists, dict):
        return []
    indexes = {index for some in lists.values() if isinstance(some, list) for index in some}
    return list(lists) if len(indexes) == 1 else []


def _value(event: dict[str, Any], name: str) -> str | None:
    if name not in event:
        return None
    text = orjson.dumps(event[name]).decode()
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = orjson.loads(text or "")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
