"""The sources of a request's events: a lane of the outbox, or the held events in the store.

A channel decides what an answer means and which source is next; a source knows its events. Both kinds take the same
five outcomes: delivered, again (nothing to do), refused by name, refused one of them, and not stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nami_amp_pipeline.delivery.attempt import Attempt, Limits, RequestSize
from nami_amp_pipeline.delivery.bisection import Bisection
from nami_amp_pipeline.delivery.destination import TOO_LARGE, Outcome, Target
from nami_amp_pipeline.delivery.held_queue import HeldQueue
from nami_amp_pipeline.delivery.outbox import OutboxCache
from nami_amp_pipeline.delivery.outcomes import OutcomeRecorder
from nami_amp_pipeline.delivery.rate_limit import RateLimiter
from nami_amp_pipeline.delivery.request_record import RequestRecord

_CLOCK_MARGIN = 6 * 3_600_000_000


@dataclass
class Desk:
    """Shared by the sources of one integration."""

    target: Target
    limits: Limits
    size: RequestSize
    shelf: OutboxCache
    pacer: RateLimiter
    held: HeldQueue
    ends: OutcomeRecorder

    def is_too_old(self, unknown_since: int | None, now: int) -> bool:
        """Whether the destination may no longer recognise a repeat of a request of that time, with a margin for clocks.

        A time in the future comes from a clock that was ahead: its age is unknown.
        """
        if unknown_since is None:
            return False
        window = int(self.target.limits.recognises_repeats.total_seconds()) * 1_000_000
        return not -_CLOCK_MARGIN <= now - unknown_since <= window - _CLOCK_MARGIN


class State(Protocol):
    """The state of a source; it has at most one request under way.

    Attributes:
        search: for a refused event that nobody named.
        ready_at: not before, in µs since the epoch.
        failures: consecutive answers without progress.
        doubts: how often in a row an answer was not believed.
        busy: a request is under way.
    """

    search: Bisection | None
    ready_at: int
    failures: int
    doubts: int
    busy: bool


class Source(Protocol):
    """See the module's docstring."""

    @property
    def state(self) -> State:
        """How it stands."""

    def next_at(self) -> int | None:
        """When its next request can start, in µs since the epoch; None if none can."""

    def start(self, now: int) -> Attempt | None:
        """Its next request, noted as possibly posted; None if it has none."""

    def identities(self, attempt: Attempt) -> Sequence[tuple[str, ...]]:
        """Of each event of a request, what it may be throttled by."""

    def is_progress(self, outcome: Outcome) -> bool:
        """Whether an answer is a reason for the run to continue."""

    def settle(self, attempt: Attempt, now: int, *, maybe_stored: bool) -> None:
        """A request has ended; if its events may be stored, they count for their users' rates."""

    def delivered(self, attempt: Attempt, request: RequestRecord, now: int, others: Collection[int] = ()) -> None:
        """All events of a request are stored but for ``others``, by index, which were refused or paused before."""

    def not_stored(self, attempt: Attempt) -> None:
        """None of them is stored, for certain: the state from before the request is restored."""

    def refused(self, attempt: Attempt, dead: Mapping[int, str], paused: Sequence[int], why: Refusal, now: int) -> None:
        """Some events become dead letters, by index in the request, and others are held."""

    def suspect(self, attempt: Attempt, reason: str, why: Refusal) -> None:
        """At least one event of a request of several is refused: the next requests are parts of it."""

    def where(self, attempt: Attempt) -> tuple[int | None, int]:
        """The place of a request's only event: its lane and row, or None and its id."""


@dataclass(frozen=True)
class Refusal:
    """An answer that refused something.

    Attributes:
        answer: its text, safe to show.
        request: the record of its request.
        said: by index in the request, what it said of single events.
    """

    answer: str | None
    request: RequestRecord
    said: Mapping[int, str] = field(default_factory=dict)

    def of(self, index: int) -> str | None:
        """What it said of an event, or of all where it named none."""
        return self.said.get(index, self.answer)


def accepted(search: Bisection | None, events: Sequence[int], size: RequestSize) -> Bisection | None:
    """Takes delivered events out of a search; returns the search."""
    if search is not None:
        search.accepted(set(events))
        if not search.suspects and search.reason == TOO_LARGE:
            size.only_together(search.size)
    return search
