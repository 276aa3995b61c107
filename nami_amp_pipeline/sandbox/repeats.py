"""Which events came before: repeats by ``insert_id`` or by ``event_id``, and whether a repeat has other content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from .audit import Audit
from .settings import Options
from .validation import Columns, Event, stored_id

_SKIP: Final = "$skip_user_properties_sync"


class Repeats:
    """What a project recognises of the events that it took."""

    def __init__(
        self,
        hint: str,
        options: Options,
        audit: Audit,
        stored: Callable[[int], Event | None],
        is_recent: Callable[[int, float], bool],
    ) -> None:
        """Recognises nothing yet.

        Args:
            hint: what of the project's API key may be shown.
            options: what makes a repeat.
            audit: where to count.
            stored: gives an event by its number, None where its JSON is not kept.
            is_recent: whether the event of a number came so short before a time that its repeats are recognised.
        """
        self._hint = hint
        self._options = options
        self._audit = audit
        self._stored = stored
        self._is_recent = is_recent
        self._seen: dict[str, int] = {}
        self._seen_elsewhere: dict[tuple[str, str], int] = {}
        self._seen_event_ids: dict[tuple[str, int, int], int] = {}
        self._refused_prints: dict[str, int] = {}

    def pick(
        self, events: Sequence[Event], columns: Columns, received_at: float, next_number: int
    ) -> tuple[int, ...] | None:
        """Indexes of the events that are no repeats, None for all; they are from then on recognised.

        Args:
            events: good events.
            columns: their columns.
            received_at: seconds since the epoch.
            next_number: number that the first event taken will have.
        """
        self._compare_with_refused(events, columns.insert_ids)
        if self._refused_prints:
            for insert_id in columns.insert_ids:
                if insert_id is not None:
                    self._refused_prints.pop(insert_id, None)
        ids = columns.insert_ids
        numbered = "event_id" in columns.names
        if not numbered and None not in ids and self._seen.keys().isdisjoint(ids) and len(set(ids)) == len(ids):
            self._seen.update(zip(ids, range(next_number, next_number + len(ids)), strict=True))  # type: ignore[arg-type]
            return None
        picks: list[int] = []
        within: dict[str, int] = {}
        for index, event in enumerate(events):
            insert_id = ids[index]
            if insert_id is not None and insert_id in within:
                self._compare(insert_id, events[within[insert_id]], event)
            if not self._is_repeat(event, insert_id, columns, index, events, within, received_at):
                self._recognise(event, insert_id, columns, index, next_number + len(picks), within)
                picks.append(index)
        return None if len(picks) == len(events) else tuple(picks)

    def _is_repeat(
        self,
        event: Event,
        insert_id: str | None,
        columns: Columns,
        index: int,
        events: Sequence[Event],
        within: dict[str, int],
        received_at: float,
    ) -> bool:
        event_id, device, time = event.get("event_id"), columns.devices[index], columns.times[index]
        if event_id is not None and device is not None and time is not None:
            known = self._seen_event_ids.get((device, event_id, time))
            if known is not None and self._is_recent(known, received_at):
                return True
        if insert_id is None or insert_id not in self._seen:
            return False
        if insert_id not in within:
            self._compare_with_stored(insert_id, event)
        owner = _owner(columns.users[index], device)
        if self._options.dedup == "device":
            number = self._seen_elsewhere.get((insert_id, owner))
            if number is None:
                first = events[within[insert_id]] if insert_id in within else self._stored(self._seen[insert_id])
                same = first is None or owner == _owner(
                    stored_id(first.get("user_id")), stored_id(first.get("device_id"))
                )
                number = self._seen[insert_id] if same else None
        else:
            number = self._seen[insert_id]
        if number is not None and self._is_recent(number, received_at):
            return True
        self._audit.accepted_more_than_once.note({"project": self._hint, "insert_id": insert_id})
        return False

    def _recognise(
        self,
        event: Event,
        insert_id: str | None,
        columns: Columns,
        index: int,
        number: int,
        within: dict[str, int],
    ) -> None:
        event_id, device, time = event.get("event_id"), columns.devices[index], columns.times[index]
        if event_id is not None and device is not None and time is not None:
            self._seen_event_ids[device, event_id, time] = number
        if insert_id is None:
            return
        if insert_id in self._seen:
            # A second owner, or the first one again after the window: this key wins over the first from now on.
            self._seen_elsewhere[insert_id, _owner(columns.users[index], device)] = number
            if self._options.dedup == "insert_id":
                self._seen[insert_id] = number
        else:
            self._seen[insert_id] = number
            within[insert_id] = index

    def note_refused(self, events: Sequence[Any]) -> None:
        """Remembers the content of events that were received but not taken, to compare when they come again."""
        self._compare_with_refused(events, [_insert_id(event) for event in events])
        for event in events:
            insert_id = _insert_id(event)
            if insert_id is None:
                continue
            if insert_id in self._seen:
                self._compare_with_stored(insert_id, event)
            self._refused_prints.setdefault(insert_id, _print(event))

    def numbered(self, insert_id: str) -> list[int]:
        """Numbers of the events with an ``insert_id`` that would be recognised as repeats."""
        found = [self._seen[insert_id]] if insert_id in self._seen else []
        return found + [number for (known, _), number in self._seen_elsewhere.items() if known == insert_id]

    def forget(self, event: Event, number: int) -> None:
        """Recognises an event's repeats no more; what comes again is compared with it."""
        event_id, device, time = event.get("event_id"), stored_id(event.get("device_id")), event.get("time")
        if device is not None and self._seen_event_ids.get((device, event_id, time)) == number:  # type: ignore[arg-type]
            del self._seen_event_ids[device, event_id, time]  # type: ignore[arg-type]
        insert_id = _insert_id(event)
        if insert_id is None:
            return
        owner = _owner(stored_id(event.get("user_id")), device)
        if self._seen_elsewhere.get((insert_id, owner)) == number:
            del self._seen_elsewhere[insert_id, owner]
        elif self._seen.get(insert_id) == number:
            del self._seen[insert_id]
            other = next((key for key in self._seen_elsewhere if key[0] == insert_id), None)
            if other is not None:
                self._seen[insert_id] = self._seen_elsewhere.pop(other)
                return
        if insert_id not in self._seen:
            self._refused_prints.setdefault(insert_id, _print(event))

    def _compare_with_stored(self, insert_id: str, event: Event) -> None:
        first = self._stored(self._seen[insert_id])
        if first is not None:
            self._compare(insert_id, first, event)

    def _compare(self, insert_id: str, first: Event, again: Event) -> None:
        if orjson.dumps(first) != orjson.dumps(again):
            self._audit.changed_repeats.note({"project": self._hint, "insert_id": insert_id})

    def _compare_with_refused(self, events: Sequence[Any], insert_ids: Sequence[str | None]) -> None:
        prints = self._refused_prints
        if not prints or prints.keys().isdisjoint(insert_ids):
            return
        for event, insert_id in zip(events, insert_ids, strict=True):
            if insert_id is None or insert_id not in prints or insert_id in self._seen:
                continue
            if _print(event) != prints[insert_id]:
                self._audit.changed_repeats.note({"project": self._hint, "insert_id": insert_id})


def _owner(user: str | None, device: str | None) -> str:
    """The device of an event; where it has none, Amplitude derives one from the user."""
    return device if device is not None else f"user {user}"


def _print(event: Any) -> int:
    """Tells refused events apart; one that was never stored may come back as history, once newer state was sent."""
    if isinstance(event, dict) and _SKIP in event:
        event = {name: value for name, value in event.items() if name != _SKIP}
    return hash(orjson.dumps(event))


def _insert_id(event: object) -> str | None:
    value = event.get("insert_id") if isinstance(event, dict) else None
    return value if isinstance(value, str) else None
