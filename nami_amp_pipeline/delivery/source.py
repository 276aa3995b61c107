"""Where the events of a request come from: a lane of the outbox, or those that wait in the store.

A channel decides what an answer means and who goes when; a source knows its events. Both kinds take the same five
outcomes: delivered, again (nothing to do), refused by name, refused one of them, and not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """What the sources of one integration share."""

    target: Target
    limits: Limits
    size: RequestSize
    shelf: OutboxCache
    pacer: RateLimiter
    held: HeldQueue
    ends: OutcomeRecorder

    def is_too_old(self, unknown_since: int | None, now: int) -> bool:
        """Whether the destination may no longer recognise a repeat of what was posted then; a margin is for clocks.

        A time in the future was noted by a clock that was ahead: nobody knows how long ago that was.
        """
        if unknown_since is None:
            return False
        window = int(self.target.limits.recognises_repeats.total_seconds()) * 1_000_000
        return not -_CLOCK_MARGIN <= now - unknown_since <= window - _CLOCK_MARGIN


class State(Protocol):
    """How a source stands; it has one request under way at most.

    Attributes:
        search: for a refused event that nobody named.
        ready_at: not before, in µs since the epoch.
        failures: answers in a row that brought nothing.
        doubts: how often an answer in a row was not believed.
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
        """Its next request, noted as one that may have been posted; None if it has none."""

    def identities(self, attempt: Attempt) -> Sequence[tuple[str, ...]]:
        """Of each event of a request, what it may be throttled by."""

    def is_progress(self, outcome: Outcome) -> bool:
        """Whether an answer is a reason for the run to go on."""

    def note_pace(self, attempt: Attempt, now: int) -> None:
        """The events of a request may be stored: they count for their users' rates."""

    def delivered(self, attempt: Attempt, request: RequestRecord, now: int) -> None:
        """All events of a request are stored."""

    def not_stored(self, attempt: Attempt) -> None:
        """None of them is, for certain: what is known of them is what was known before the request."""

    def refused(self, attempt: Attempt, dead: Mapping[int, str], paused: Sequence[int], why: Refusal, now: int) -> None:
        """Some events become dead letters, by index in the request, and others wait."""

    def suspect(self, attempt: Attempt, reason: str, why: Refusal) -> None:
        """One event at least of a request of several is refused: the next ones are parts of it."""

    def where(self, attempt: Attempt) -> tuple[int | None, int]:
        """Where the only event of a request stands: its lane and row, or None and its id."""


@dataclass(frozen=True)
class Refusal:
    """An answer that refused something.

    Attributes:
        answer: what it said, as it may be shown.
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
