"""The events of one project that the sandbox took: repeats recognised, order watched, JSON kept as it came."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf
from operator import gt
from typing import Any, Final

import orjson

from .audit import Audit
from .gc_pause import paused_collector
from .profiles import Profiles
from .settings import DEDUPLICATION_SECONDS, Options
from .throttle import Throttle
from .validation import Columns, Event, stored_id

_PARSED_KEPT: Final = 8
_BATCHES_PER_STEP: Final = 50
_SKIP: Final = "$skip_user_properties_sync"


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
    """

    first: int
    count: int
    received_at: float
    path: str
    client_upload_time: str | None
    body: bytes | None
    picks: tuple[int, ...] | None

    def events(self) -> list[Event]:
        """The events, exactly as they came; none when their JSON is not kept any more."""
        if self.body is None:
            return []
        events: list[Event] = orjson.loads(self.body)["events"]
        return events if self.picks is None else [events[index] for index in self.picks]


@dataclass(frozen=True)
class Admission:
    """What became of a request's events.

    Attributes:
        batch: the events taken, None where all were repeats.
        duplicates: events dropped as repeats.
    """

    batch: Batch | None
    duplicates: int


class ProjectStore:
    """One project's events, users and rates. Not thread-safe: the sandbox holds a lock."""

    def __init__(self, project_id: int, name: str, hint: str, digest: str, options: Options, audit: Audit) -> None:
        """Starts empty.

        Args:
            project_id: number of the project.
            name: shown on the page.
            hint: what of its API key may be shown.
            digest: SHA-256 of its API key.
            options: how strict to be.
            audit: where to count.
        """
        self.project_id = project_id
        self.name = name
        self.hint = hint
        self.digest = digest
        self.throttle = Throttle(options)
        self.by_type: Counter[str] = Counter()
        self.accepted = 0
        self.batches: list[Batch] = []
        self._options = options
        self._audit = audit
        self._starts: list[int] = []
        self._kept = 0
        self._oldest_kept = 0
        self._profiles = Profiles(options)
        self._profiled = 0
        self._seen: dict[str, int] = {}
        self._seen_elsewhere: dict[tuple[str, str], int] = {}
        self._seen_event_ids: dict[tuple[str, int, int], int] = {}
        self._refused_prints: dict[str, int] = {}
        self._latest_time: dict[str, int] = {}
        self._parsed: OrderedDict[int, list[Event]] = OrderedDict()

    def admit(
        self,
        events: Sequence[Event],
        columns: Columns,
        body: bytes,
        *,
        path: str,
        received_at: float,
        client_upload_time: str | None,
    ) -> Admission:
        """Takes the events of a request, except repeats.

        Args:
            events: good events.
            columns: their columns.
            body: JSON with these events under ``events``.
            path: the endpoint.
            received_at: seconds since the epoch.
            client_upload_time: as the request had it.
        """
        self._compare_with_refused(events, columns.insert_ids)
        if self._refused_prints:
            for insert_id in columns.insert_ids:
                if insert_id is not None:
                    self._refused_prints.pop(insert_id, None)
        picks = self._pick(events, columns, received_at)
        taken = len(events) if picks is None else len(picks)
        if not taken:
            return Admission(None, len(events))
        self._watch_order(events, columns, picks, int(received_at * 1000))
        self.by_type.update(columns.types if picks is None else [columns.types[index] for index in picks])
        batch = Batch(self.accepted, taken, received_at, path, client_upload_time, body, picks)
        self._append(batch)
        return Admission(batch, len(events) - taken)

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

    @property
    def profiles(self) -> Profiles:
        """The users as of the last `catch_up`."""
        return self._profiles

    def catch_up(self) -> bool:
        """Brings the users some way towards the events taken, a step at a time so that uploads can come in between.

        Returns:
            Whether they are up to date.
        """
        self._profile_until(min(self._profiled + _BATCHES_PER_STEP, len(self.batches)))
        return self._profiled == len(self.batches)

    def newest(self) -> Iterator[tuple[Batch, int, Event]]:
        """The kept events with the batch and the number of each, newest first."""
        for batch in reversed(self.batches[self._oldest_kept :]):
            events = batch.events()
            for offset in range(len(events) - 1, -1, -1):
                yield batch, batch.first + offset, events[offset]

    def _pick(self, events: Sequence[Event], columns: Columns, received_at: float) -> tuple[int, ...] | None:
        """Indexes of the events that are no repeats, None for all; they are from then on recognised."""
        ids = columns.insert_ids
        numbered = "event_id" in columns.names
        if not numbered and None not in ids and self._seen.keys().isdisjoint(ids) and len(set(ids)) == len(ids):
            self._seen.update(zip(ids, range(self.accepted, self.accepted + len(ids)), strict=True))  # type: ignore[arg-type]
            return None
        picks: list[int] = []
        within: dict[str, int] = {}
        for index, event in enumerate(events):
            insert_id = ids[index]
            if insert_id is not None and insert_id in within:
                self._compare(insert_id, events[within[insert_id]], event)
            if not self._is_repeat(event, insert_id, columns, index, events, within, received_at):
                self._recognise(event, insert_id, columns, index, self.accepted + len(picks), within)
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
        self._audit.accepted_more_than_once.note({"project": self.hint, "insert_id": insert_id})
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

    def _is_recent(self, number: int, received_at: float) -> bool:
        if number >= self.accepted:
            return True
        return received_at - self._batch_of(number).received_at < DEDUPLICATION_SECONDS

    def _batch_of(self, number: int) -> Batch:
        return self.batches[bisect_right(self._starts, number) - 1]

    def _stored(self, number: int) -> Event | None:
        """An event by its number, None where its JSON is not kept any more or it is of the request at hand."""
        if number >= self.accepted:
            return None
        place = bisect_right(self._starts, number) - 1
        batch = self.batches[place]
        if batch.body is None:
            return None
        events = self._parsed.get(place)
        if events is None:
            events = self._parsed[place] = batch.events()
            if len(self._parsed) > _PARSED_KEPT:
                self._parsed.popitem(last=False)
        return events[number - batch.first]

    def _compare_with_stored(self, insert_id: str, event: Event) -> None:
        first = self._stored(self._seen[insert_id])
        if first is not None:
            self._compare(insert_id, first, event)

    def _compare(self, insert_id: str, first: Event, again: Event) -> None:
        if orjson.dumps(first) != orjson.dumps(again):
            self._audit.changed_repeats.note({"project": self.hint, "insert_id": insert_id})

    def _compare_with_refused(self, events: Sequence[Any], insert_ids: Sequence[str | None]) -> None:
        prints = self._refused_prints
        if not prints or prints.keys().isdisjoint(insert_ids):
            return
        for event, insert_id in zip(events, insert_ids, strict=True):
            if insert_id is None or insert_id not in prints or insert_id in self._seen:
                continue
            if _print(event) != prints[insert_id]:
                self._audit.changed_repeats.note({"project": self.hint, "insert_id": insert_id})

    def _watch_order(
        self, events: Sequence[Event], columns: Columns, picks: tuple[int, ...] | None, received_ms: int
    ) -> None:
        """Counts the events that come after a later one of the same user; those that skip the profile may."""
        latest = self._latest_time
        identities = columns.identities()
        times = columns.times
        sorted_whole = picks is None and _SKIP not in columns.names and None not in times and times == sorted(times)  # type: ignore[type-var]
        if sorted_whole and not any(map(gt, map(latest.get, identities, repeat(-inf)), times)):  # type: ignore[arg-type]
            latest.update(zip(identities, times, strict=True))  # type: ignore[arg-type]
            return
        for index in range(len(events)) if picks is None else picks:
            if events[index].get(_SKIP):
                continue
            identity = identities[index]
            time = times[index]
            if time is None:
                time = received_ms
            before = latest.get(identity)
            if before is None or time >= before:
                latest[identity] = time
            else:
                self._audit.order_violations.note(
                    {
                        "project": self.hint,
                        "identity": identity,
                        "insert_id": columns.insert_ids[index],
                        "time": time,
                        "after": before,
                    }
                )

    def _append(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._starts.append(batch.first)
        self.accepted += batch.count
        self._kept += batch.count
        while self._kept > self._options.keep_events and self._oldest_kept < len(self.batches) - 1:
            self._profile_until(self._oldest_kept + 1)
            oldest = self.batches[self._oldest_kept]
            oldest.body, oldest.picks = None, None
            self._kept -= oldest.count
            self._parsed.pop(self._oldest_kept, None)
            self._oldest_kept += 1

    def _profile_until(self, batches: int) -> None:
        for batch in self.batches[self._profiled : batches]:
            with paused_collector():
                for event in batch.events():
                    self._profiles.apply(event, batch.received_at)
        self._profiled = max(self._profiled, batches)


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
