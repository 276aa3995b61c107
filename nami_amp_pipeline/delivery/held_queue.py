"""The held events: those of throttled users, in order, separate from all other events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from nami_amp_pipeline.delivery.bisection import Bisection
from nami_amp_pipeline.delivery.rate_limit import RateLimiter


@dataclass(frozen=True)
class HeldEvent:
    """A held event in the store.

    Attributes:
        id: of its row in ``exceptions``.
        identity: of its user or device.
        body: its JSON, without the comma; empty if it is lost.
        unknown_since: since when its outcome is unknown.
    """

    id: int
    identity: str
    body: bytes
    unknown_since: int | None


ReadHeld = Callable[[str, int], Sequence[HeldEvent]]
"""Reads the oldest held events of an identity, at most a given number."""


@dataclass
class Taken:
    """What the next request of held events carries.

    Attributes:
        events: in posting order, by identity.
        emptied: identities without held events.
    """

    events: list[HeldEvent] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)


class HeldQueue(Collection[str]):
    """The identities with held events, each with the end of its pause.

    One request at a time carries the oldest events of identities whose pause has ended.

    Args:
        read: reads from the store.
        pacer: how many events of an identity may go.
        most: events of one request.
    """

    def __init__(self, read: ReadHeld, pacer: RateLimiter, most: int) -> None:
        self._read = read
        self._pacer = pacer
        self._until: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._most = most
        self._suspected: dict[int, str] = {}
        self.search: Bisection | None = None
        self.ready_at = 0
        self.failures = 0
        self.doubts = 0
        self.busy = False

    def __contains__(self, identity: object) -> bool:
        return identity in self._until

    def __iter__(self) -> Iterator[str]:
        return iter(self._until)

    def __len__(self) -> int:
        return len(self._until)

    def wait(self, identity: str, until: int) -> int:
        """Pauses an identity until this time or the end of its present pause, whichever is later; returns it."""
        known = self._until.get(identity)
        if known is None or until > known:
            self._until[identity] = until
            heappush(self._heap, (until, identity))
            return until
        return known

    def next_at(self) -> int | None:
        """When the next request can start, in µs since the epoch."""
        if self.busy:
            return None
        while self._heap and self._until.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return max(self._heap[0][0], self.ready_at) if self._heap else None

    def take(self, now: int, size: int) -> Taken:
        """Chooses the events of the next request; identities without held events are dropped.

        Args:
            now: in µs since the epoch.
            size: bytes at most, for more than one event.
        """
        taken = Taken()
        if self.search is not None:
            for identity in dict.fromkeys(self._suspected[number] for number in self.search.suspects):
                if self._until.get(identity, now + 1) <= now:
                    size = self._add(taken, identity, now, size, self.search.half)
            if taken.events:
                return taken
            self.search = None  # its suspects are held
        again: list[tuple[int, str]] = []
        try:
            while size >= 0 and len(taken.events) < self._most:
                at = self.next_at()
                if at is None or at > now:
                    break
                entry = heappop(self._heap)
                again.append(entry)
                size = self._add(taken, entry[1], now, size, self._most)
        finally:
            for entry in again:
                if self._until.get(entry[1]) == entry[0]:
                    heappush(self._heap, entry)
        return taken

    def _add(self, taken: Taken, identity: str, now: int, size: int, most: int) -> int:
        """Adds an identity's events; returns the remaining bytes, negative if there is no more room."""
        if size < 0 or len(taken.events) >= most:
            return size
        room = min(self._pacer.room(identity, now), most - len(taken.events))
        if room <= 0:
            self._until[identity] = self._pacer.free_at(identity, now)
            heappush(self._heap, (self._until[identity], identity))
            return size
        events = self._read(identity, room)
        if not events:
            del self._until[identity]
            taken.emptied.append(identity)
            return size
        for event in events:
            size -= len(event.body) + 1
            if size < 0 and taken.events:
                break
            taken.events.append(event)
        return size

    def suspect(self, search: Bisection, events: Sequence[HeldEvent]) -> None:
        """A request was refused without naming an event: the next requests are parts of it."""
        self.search = search
        self._suspected = {event.id: event.identity for event in events}
