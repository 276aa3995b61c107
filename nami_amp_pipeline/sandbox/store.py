"""The events of one project that the sandbox took: repeats recognised, order watched, JSON kept as it came."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import repeat
from math import inf
from operator import gt
from typing import Final

from .audit import Audit
from .batches import Batch, Damage
from .gc_pause import paused_collector
from .profiles import Profiles
from .repeats import Repeats
from .settings import DEDUPLICATION_SECONDS, Options
from .throttle import Throttle
from .validation import Columns, Event

_PARSED_KEPT: Final = 8
_BATCHES_PER_STEP: Final = 50
_SKIP: Final = "$skip_user_properties_sync"


@dataclass(frozen=True)
class Admission:
    """What became of a request's events.

    Attributes:
        batch: the events taken, None where all were repeats.
        duplicates: events dropped as repeats.
    """

    batch: Batch | None
    duplicates: int


@dataclass
class Replay:
    """An export on its way through a project's events.

    Attributes:
        profiles: the users after all events before ``next_number``.
        next_number: number of the first event that is not in the users yet.
        changes: how often stored events had been changed when it began.
        reached: the time of the last batch that is, in seconds since the epoch.
        batches: copies of the batches from there on.
    """

    profiles: Profiles
    next_number: int
    changes: int
    reached: float = -inf
    batches: list[Batch] = field(default_factory=list)


class ProjectStore:
    """One project's events, users and rates. Not thread-safe: the sandbox holds a lock.

    Attributes:
        accepted: events taken; also the number of the next one.
        held: events that Amplitude holds: those taken, less the lost ones, plus second copies.
        by_type: events held by their type.
        repeats: what is recognised as a repeat.
    """

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
        self.held = 0
        self.batches: list[Batch] = []
        self._options = options
        self._audit = audit
        self._starts: list[int] = []
        self._kept = 0
        self._oldest_kept = 0
        self._profiles = Profiles(options)
        self._profiled = 0
        self._before_kept = Profiles(options)
        self._replay: Replay | None = None
        self._changes = 0
        self.repeats = Repeats(hint, options, audit, self.event, self._is_recent)
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
        picks = self.repeats.pick(events, columns, received_at, self.accepted)
        taken = len(events) if picks is None else len(picks)
        if not taken:
            return Admission(None, len(events))
        self._watch_order(events, columns, picks, int(received_at * 1000))
        self.by_type.update(columns.types if picks is None else [columns.types[index] for index in picks])
        batch = Batch(self.accepted, taken, received_at, path, client_upload_time, body, picks)
        self._append(batch)
        return Admission(batch, len(events) - taken)

    def damage(self, batch: Batch, place: int, event: Event, damage: Damage) -> None:
        """Loses, cuts or doubles an event that was taken.

        A lost one is not recognised as a repeat any more, so it can come again. The users keep what they had of an
        event that is damaged after they were caught up with it.

        Args:
            batch: the event's.
            place: the event's among those of the batch.
            event: as it came.
            damage: what is to become of it, besides what became of it before.
        """
        before = batch.damage.get(place, Damage())
        after = batch.damage[place] = before.and_also(damage)
        more = (0 if after.lost else after.copies) - (0 if before.lost else before.copies)
        self.held += more
        self.by_type[event["event_type"]] += more
        if after.lost and not before.lost:
            self.repeats.forget(event, batch.first + place)

    def take_replay(self, first: float) -> Replay:
        """The users as of some moment before ``first``, and the kept batches from there on, for an export.

        Args:
            first: seconds since the epoch.
        """
        replay, self._replay = self._replay, None
        oldest = self.batches[self._oldest_kept].first if self.batches else 0
        if replay is None or replay.next_number < oldest or replay.reached >= first:
            replay = Replay(self._before_kept.copy(), oldest, self._changes)
        begin = bisect_right(self._starts, replay.next_number) - 1 if replay.next_number < self.accepted else None
        # Copies: a batch that is let go of meanwhile keeps its events for the one who reads them.
        replay.batches = [] if begin is None else [copy(batch) for batch in self.batches[begin:]]
        return replay

    def give_replay(self, replay: Replay) -> None:
        """Keeps where an export ended, so that one of the hours after it goes on from there."""
        replay.batches = []
        self._replay = replay if replay.changes == self._changes else None

    def forget_replay(self) -> None:
        """Lets the next export begin anew, as an event that one may have passed was changed."""
        self._replay = None
        self._changes += 1

    def kept_after(self) -> float:
        """The time of the newest event whose JSON is not kept any more, or -inf."""
        return self.batches[self._oldest_kept - 1].received_at if self._oldest_kept else -inf

    def kept(self) -> list[Batch]:
        """The batches whose JSON is kept, the oldest first."""
        return self.batches[self._oldest_kept :]

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

    def _is_recent(self, number: int, received_at: float) -> bool:
        if number >= self.accepted:
            return True
        return received_at - self.batch_of(number).received_at < DEDUPLICATION_SECONDS

    def batch_of(self, number: int) -> Batch:
        """The batch that the event of a number came in."""
        return self.batches[bisect_right(self._starts, number) - 1]

    def event(self, number: int) -> Event | None:
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
        self.held += batch.count
        self._kept += batch.count
        while self._kept > self._options.keep_events and self._oldest_kept < len(self.batches) - 1:
            self._profile_until(self._oldest_kept + 1)
            oldest = self.batches[self._oldest_kept]
            for _, _, event in oldest.held():
                self._before_kept.apply(event, oldest.received_at)
            oldest.body = None
            self._kept -= oldest.count
            self._parsed.pop(self._oldest_kept, None)
            self._oldest_kept += 1

    def _profile_until(self, batches: int) -> None:
        for batch in self.batches[self._profiled : batches]:
            with paused_collector():
                for _, _, event in batch.held():
                    self._profiles.apply(event, batch.received_at)
        self._profiled = max(self._profiled, batches)
