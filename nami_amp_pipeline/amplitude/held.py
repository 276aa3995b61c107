"""The events that wait alone: those of users that Amplitude throttles, in order, without the others noticing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from nami_amp_pipeline.amplitude.pace import Pacer


@dataclass(frozen=True)
class HeldEvent:
    """An event that waits in the store.

    Attributes:
        id: of its row in ``exceptions``.
        identity: whose it is.
        body: its JSON, without the comma.
        unknown_since: since when its outcome is unknown.
    """

    id: int
    identity: str
    body: bytes
    unknown_since: int | None


ReadHeld = Callable[[str, int], Sequence[HeldEvent]]
"""The oldest events of an identity that wait in the store, at most so many."""


@dataclass
class Taken:
    """What the next request of waiting events carries.

    Attributes:
        events: in posting order, by identity.
        emptied: identities of which nothing waits any more.
    """

    events: list[HeldEvent] = field(default_factory=list)
    emptied: list[str] = field(default_factory=list)


class HeldQueue(Collection[str]):
    """Identities whose events wait in the store, each with the time until which it does.

    One request at a time carries the oldest events of those whose time has come.

    Args:
        read: reads from the store.
        pacer: how many events of an identity may go.
        most: events of one request.
    """

    def __init__(self, read: ReadHeld, pacer: Pacer, most: int) -> None:
        self._read = read
        self._pacer = pacer
        self._until: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._most = most
        self._at_once = most
        self.ready_at = 0
        self.failures = 0
        self.busy = False

    def __contains__(self, identity: object) -> bool:
        return identity in self._until

    def __iter__(self) -> Iterator[str]:
        return iter(self._until)

    def __len__(self) -> int:
        return len(self._until)

    def wait(self, identity: str, until: int) -> int:
        """Lets an identity wait, until the later of this time and what it waits for already; returns that."""
        known = self._until.get(identity)
        if known is None or until > known:
            self._until[identity] = until
            heappush(self._heap, (until, identity))
            return until
        return known

    @property
    def is_searching(self) -> bool:
        """Whether requests are small because one was refused without saying why."""
        return self._at_once < self._most

    def next_at(self) -> int | None:
        """When the next request can start, in µs since the epoch."""
        if self.busy:
            return None
        while self._heap and self._until.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return max(self._heap[0][0], self.ready_at) if self._heap else None

    def take(self, now: int, size: int) -> Taken:
        """Chooses the events of the next request; identities without any left are forgotten.

        Args:
            now: in µs since the epoch.
            size: bytes at most, for more than one event.
        """
        taken = Taken()
        again: list[tuple[int, str]] = []
        full = False
        while not full and len(taken.events) < self._at_once:
            at = self.next_at()
            if at is None or at > now:
                break
            entry = heappop(self._heap)
            identity = entry[1]
            room = min(self._pacer.room(identity, now), self._at_once - len(taken.events))
            if room <= 0:
                self._until[identity] = self._pacer.free_at(identity, now)
                heappush(self._heap, (self._until[identity], identity))
                continue
            try:
                events = self._read(identity, room)
            except BaseException:
                for put_back in (*again, entry):
                    heappush(self._heap, put_back)
                raise
            if not events:
                del self._until[identity]
                taken.emptied.append(identity)
                continue
            again.append(entry)
            for event in events:
                size -= len(event.body) + 1
                if size < 0 and taken.events:
                    full = True
                    break
                taken.events.append(event)
        for entry in again:
            heappush(self._heap, entry)
        return taken

    def succeeded(self) -> None:
        """A request was answered well: the next may be larger."""
        self.failures = 0
        self._at_once = min(self._most, self._at_once * 2)

    def refused(self, events: int) -> None:
        """A request was refused without saying why: the next is half of it."""
        self.failures = 0
        self._at_once = max(1, events // 2)
