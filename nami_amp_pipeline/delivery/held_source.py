"""The held events as requests: one at a time, with the oldest events whose pause has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from nami_amp_pipeline.delivery.attempt import Attempt
from nami_amp_pipeline.delivery.bisection import narrowed
from nami_amp_pipeline.delivery.destination import Outcome
from nami_amp_pipeline.delivery.held_queue import HeldEvent
from nami_amp_pipeline.delivery.lane_source import OUTCOME_UNKNOWN
from nami_amp_pipeline.delivery.outbox import identities_of
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.source import Desk, Refusal, accepted
from nami_amp_pipeline.storage.row_faults import ODD_ROW


class HeldSource:
    """See :class:`~nami_amp_pipeline.delivery.source.Source`.

    Args:
        desk: what it shares with the other sources of the integration; its held queue is this source's.
    """

    def __init__(self, desk: Desk) -> None:
        self.state = desk.held
        self._desk = desk
        self._events: Sequence[HeldEvent] = ()

    def next_at(self) -> int | None:
        """See :class:`Source`."""
        return self.state.next_at()

    def start(self, now: int) -> Attempt | None:
        """See :class:`Source`."""
        desk, changes = self._desk, self._desk.ends.changes
        taken = desk.held.take(now, desk.size.room)
        for identity in taken.emptied:
            changes.unpause(identity)
        old = [event.id for event in taken.events if desk.is_too_old(event.unknown_since, now)]
        lost = [event.id for event in taken.events if not event.body]
        if old or lost:
            desk.ends.dead_held([event for event in old if event not in lost], OUTCOME_UNKNOWN, None, None, now)
            desk.ends.dead_held(lost, ODD_ROW, None, None, now)
            return None
        if not taken.events:
            return None
        desk.held.busy = True
        fresh = [event.id for event in taken.events if event.unknown_since is None]
        changes.update_exceptions(fresh, {"unknown_since": now})
        self._events = taken.events
        for identity, events in Counter(event.identity for event in taken.events).items():
            desk.pacer.take(identity, events)
        frame = desk.target.frame
        body = frame.head + b",".join(event.body for event in taken.events) + frame.tail
        return Attempt(body, len(taken.events), now, self, None)

    def identities(self, attempt: Attempt) -> Sequence[tuple[str, ...]]:
        """See :class:`Source`."""
        return [identities_of(event.identity, event.body) for event in self._events]

    def is_progress(self, outcome: Outcome) -> bool:
        """See :class:`Source`.

        A search comes to its end by itself. Other held events are no reason for the run to continue: a user with very
        many would keep it busy for hours.
        """
        return outcome is Outcome.REFUSED_ONE_OF or self.state.search is not None

    def settle(self, attempt: Attempt, now: int, *, maybe_stored: bool) -> None:
        """See :class:`Source`."""
        for identity, events in Counter(event.identity for event in self._events).items():
            self._desk.pacer.settle(identity, events, now, maybe_stored=maybe_stored)

    def delivered(self, attempt: Attempt, request: RequestRecord, now: int, others: Collection[int] = ()) -> None:
        """See :class:`Source`."""
        queue, ends = self.state, self._desk.ends
        ids = [event.id for event in self._events]
        ends.delivered_held([event for index, event in enumerate(ids) if index not in others], request, now)
        search = accepted(queue.search, ids, self._desk.size)
        if search is None:
            return
        if search.found is not None:
            ends.dead_held([search.found], search.reason, search.answer, search.request, now)
        if not search.suspects or search.found is not None:
            queue.search = None

    def not_stored(self, attempt: Attempt) -> None:
        """See :class:`Source`."""
        fresh = [event.id for event in self._events if event.unknown_since is None]
        self._desk.ends.changes.update_exceptions(fresh, {"unknown_since": None})

    def refused(self, attempt: Attempt, dead: Mapping[int, str], paused: Sequence[int], why: Refusal, now: int) -> None:
        """See :class:`Source`; whoever is paused waits in the queue already."""
        for index, reason in dead.items():
            self._desk.ends.dead_held([self._events[index].id], reason, why.of(index), why.request, now)

    def suspect(self, attempt: Attempt, reason: str, why: Refusal) -> None:
        """See :class:`Source`."""
        ids = [event.id for event in self._events]
        search = narrowed(self.state.search, ids, reason, len(attempt.body), why.answer, why.request)
        self.state.suspect(search, self._events)

    def where(self, attempt: Attempt) -> tuple[int | None, int]:
        """See :class:`Source`."""
        return None, self._events[0].id
