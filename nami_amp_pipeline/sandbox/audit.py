"""What a delivery client did, as seen from outside: repeats, order, and requests in flight at the same time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

_EXAMPLES: Final = 20


@dataclass
class Finding:
    """Something counted, with its first few examples.

    Attributes:
        count: how often.
        examples: the first of them.
    """

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def note(self, example: dict[str, Any], times: int = 1) -> None:
        """Counts, and keeps the example while there are few."""
        self.count += times
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class Audit:
    """The counts of a sandbox since it was started or cleared.

    Attributes:
        requests_by_status: answers of the upload endpoints by their HTTP status, or by what became of the connection.
        requests: requests to the upload endpoints.
        events_received: events of the requests whose JSON could be read.
        accepted: events taken.
        duplicates: events dropped as repeats.
        lost: events that were accepted, and lost by a fault.
        stored_twice: events that were accepted, and doubled by a fault.
        properties_cut: properties of accepted events that a fault cut.
        accepted_more_than_once: an ``insert_id`` that was taken again because the repeat was not recognised.
        concurrent_same_user: two requests in flight at once with events of the same user (or device without user).
        order_violations: an event taken after one of the same user with a later ``time``.
        changed_repeats: an ``insert_id`` received again with other content, whether or not it was taken before.
    """

    requests_by_status: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    bytes_received: int = 0
    events_received: int = 0
    accepted: int = 0
    duplicates: int = 0
    lost: int = 0
    stored_twice: int = 0
    properties_cut: int = 0
    accepted_more_than_once: Finding = field(default_factory=Finding)
    concurrent_same_user: Finding = field(default_factory=Finding)
    order_violations: Finding = field(default_factory=Finding)
    changed_repeats: Finding = field(default_factory=Finding)

    def to_json(self) -> dict[str, Any]:
        """The audit as the endpoint answers it."""
        findings = {
            "accepted_more_than_once": self.accepted_more_than_once,
            "concurrent_same_user": self.concurrent_same_user,
            "order_violations": self.order_violations,
            "changed_repeats": self.changed_repeats,
        }
        return {
            "requests": self.requests,
            "requests_by_status": dict(sorted(self.requests_by_status.items())),
            "bytes_received": self.bytes_received,
            "events_received": self.events_received,
            "accepted": self.accepted,
            "duplicates": self.duplicates,
            "lost": self.lost,
            "stored_twice": self.stored_twice,
            "properties_cut": self.properties_cut,
            **{name: finding.count for name, finding in findings.items()},
            "examples": {name: finding.examples for name, finding in findings.items() if finding.examples},
        }


def _always() -> bool:
    return True


@dataclass(eq=False)
class Flight:
    """One request from its first byte until its answer leaves.

    Attributes:
        arrived: its place among all arrivals and departures.
        alive: whether the client still waits for the answer.
        project: whose events it carries, once known.
        identities: the users and devices of its events, once known.
    """

    arrived: int
    alive: Callable[[], bool] = _always
    project: str = ""
    identities: Collection[str] = ()


class Flights:
    """The requests in flight, to notice two with the same user."""

    def __init__(self) -> None:
        """Starts with none."""
        self._tick = 0
        self._open: dict[int, Flight] = {}
        self._landed: deque[tuple[int, Flight]] = deque()

    def arrive(self, alive: Callable[[], bool] | None = None) -> Flight:
        """A request begins to come in.

        Args:
            alive: tells whether its client still waits; a client that gave up is no longer in flight.
        """
        self._tick += 1
        flight = Flight(self._tick, alive or _always)
        self._open[flight.arrived] = flight
        return flight

    def identify(self, flight: Flight, project: str, identities: Collection[str]) -> list[str]:
        """Says whose events a request carries.

        Returns:
            The users and devices that another request carries which is, or was since this one began to come in, in
            flight; sorted.
        """
        flight.project, flight.identities = project, identities
        others = [other for other in self._open.values() if other is not flight and other.alive()]
        others += [other for departed, other in self._landed if departed > flight.arrived]
        rivals = [other for other in others if other.project == project and other.identities]
        if not rivals:
            return []
        own = frozenset(identities)
        shared: set[str] = set()
        for other in rivals:
            shared |= own.intersection(other.identities)
        return sorted(shared)

    def depart(self, flight: Flight) -> None:
        """The answer of a request leaves, or its connection ends."""
        if self._open.pop(flight.arrived, None) is None:
            return
        self._tick += 1
        if not self._open:
            self._landed.clear()
            return
        self._landed.append((self._tick, flight))
        first = next(iter(self._open))
        while self._landed and self._landed[0][0] < first:
            self._landed.popleft()
