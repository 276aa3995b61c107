"""The events of one lane of an outbox, as requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from nami_amp_pipeline.delivery.attempt import Attempt
from nami_amp_pipeline.delivery.bisection import narrowed
from nami_amp_pipeline.delivery.destination import TOO_LARGE, Outcome
from nami_amp_pipeline.delivery.lane import Lane, Plan, plan
from nami_amp_pipeline.delivery.outbox import OutboxBatch, spans_without
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.source import Desk, Refusal, accepted

OUTCOME_UNKNOWN = "outcome_unknown"


@dataclass(frozen=True)
class _UnderWay:
    """The request of the lane that is under way.

    Attributes:
        batch: the record batch of the rows.
        plan: the rows.
        before: the lane's (attempt_end, unknown_since) when the request started.
    """

    batch: OutboxBatch
    plan: Plan
    before: tuple[int, int | None]


class LaneSource:
    """See :class:`~nami_amp_pipeline.delivery.source.Source`.

    Args:
        lane: whose rows.
        file: the outbox.
        desk: what it shares with the other sources of the integration.
    """

    def __init__(self, lane: Lane, file: str, desk: Desk) -> None:
        self.state = lane
        self._file = file
        self._desk = desk
        self._under_way: _UnderWay | None = None

    @property
    def has_pending(self) -> bool:
        """Whether a row is left to be posted."""
        return self.state.next_row < self.state.rows

    @property
    def is_done(self) -> bool:
        """Whether every row has its end state or is held in the store."""
        return not self.has_pending and not self.state.busy

    def next_at(self) -> int | None:
        """See :class:`Source`."""
        return self.state.ready_at if self.has_pending and not self.state.busy else None

    def start(self, now: int) -> Attempt | None:
        """See :class:`Source`; rows that cannot be posted are passed over. It may be asked again at once."""
        lane, desk = self.state, self._desk
        while lane.next_row < lane.rows:
            batch = desk.shelf.batch(self._file, lane.batch_number)
            base = lane.base
            if desk.is_too_old(lane.unknown_since, now):
                self._give_up(batch, now)
                continue
            chosen = plan(
                lane, batch, desk.held, desk.pacer, events=desk.limits.events, size=desk.size.room, now=now
            )  # fmt: skip
            if len(chosen.rows) == 1 and batch.size(chosen.rows[0]) > desk.size.most:
                desk.ends.dead_rows(lane, batch, {chosen.rows[0]: TOO_LARGE}, None, None, now)
                lane.taken.add(base + chosen.rows[0])
                continue
            if not chosen.rows:
                self._hold(batch, chosen.aside, now)
                self._advance(base + chosen.end)
                self._note()
                if chosen.aside:  # recorded before more are held: a user may have a million events
                    return None
                continue
            return self._attempt(batch, chosen, now)
        return None

    def _attempt(self, batch: OutboxBatch, chosen: Plan, now: int) -> Attempt:
        lane, frame = self.state, self._desk.target.frame
        end = lane.base + chosen.end
        self._under_way = _UnderWay(batch, chosen, (lane.attempt_end, lane.unknown_since))
        lane.attempt_end = max(lane.attempt_end if lane.unknown_since is not None else 0, end)
        lane.unknown_since = now if lane.unknown_since is None else lane.unknown_since
        lane.busy = True
        self._note()
        for identity, events in chosen.hot.items():
            self._desk.pacer.take(identity, events)
        body = batch.text(frame.head, chosen.spans, frame.tail)
        return Attempt(body, len(chosen.rows), now, self, (lane.id, lane.next_row, end))

    # -- outcomes --------------------------------------------------------------------------------------------------

    def identities(self, attempt: Attempt) -> Sequence[tuple[str, ...]]:
        """See :class:`Source`."""
        batch, chosen, _ = self._request()
        return batch.identities(chosen.rows)

    def is_progress(self, outcome: Outcome) -> bool:
        """See :class:`Source`; a search comes to its end by itself."""
        return outcome in (Outcome.DELIVERED, Outcome.REFUSED_SOME, Outcome.REFUSED_ONE_OF)

    def settle(self, attempt: Attempt, now: int, *, maybe_stored: bool) -> None:
        """See :class:`Source`; identities with few events are not watched."""
        for identity, events in self._request()[1].hot.items():
            self._desk.pacer.settle(identity, events, now, maybe_stored=maybe_stored)

    def delivered(self, attempt: Attempt, request: RequestRecord, now: int, others: Collection[int] = ()) -> None:
        """See :class:`Source`."""
        lane, ends = self.state, self._desk.ends
        batch, chosen, before = self._request()
        base = lane.base
        end = base + chosen.end
        spans = chosen.spans
        if others:
            not_stored = sorted(chosen.rows[index] for index in others)
            spans = [
                part for start, stop in spans for part in spans_without(start, stop, _within(not_stored, start, stop))
            ]
        ends.delivered_rows(attempt.events - len(others), partial(batch.types_in, spans))
        # Only an earlier attempt can have posted the events that are set aside now.
        lane.attempt_end, lane.unknown_since = before
        self._hold(batch, chosen.aside, now)
        lane.attempt_end = max(lane.attempt_end, end) if lane.unknown_since else end
        search = accepted(lane.search, [base + row for row in chosen.rows] if lane.search else (), self._desk.size)
        self._advance(end)
        row = None if search is None or lane.search is None else search.found
        if search is not None and row is not None and row not in lane.taken:
            ends.dead_rows(lane, batch, {row - base: search.reason}, search.answer, search.request, now)
            lane.taken.add(row)
            lane.search = None
        self._note()

    def not_stored(self, attempt: Attempt) -> None:
        """See :class:`Source`."""
        self.state.attempt_end, self.state.unknown_since = self._request()[2]
        self._note()

    def refused(self, attempt: Attempt, dead: Mapping[int, str], paused: Sequence[int], why: Refusal, now: int) -> None:
        """See :class:`Source`."""
        lane = self.state
        batch, chosen, _ = self._request()
        by_row = {chosen.rows[index]: reason for index, reason in dead.items()}
        said = {chosen.rows[index]: text for index in dead if (text := why.of(index)) is not None}
        self._desk.ends.dead_rows(lane, batch, by_row, why.answer, why.request, now, said)
        lane.taken.update(lane.base + row for row in by_row)
        self._hold(batch, [chosen.rows[index] for index in sorted(paused)], now)
        self._note()

    def suspect(self, attempt: Attempt, reason: str, why: Refusal) -> None:
        """See :class:`Source`."""
        lane = self.state
        rows = [lane.base + row for row in self._request()[1].rows]
        lane.search = narrowed(lane.search, rows, reason, len(attempt.body), why.answer, why.request)

    def where(self, attempt: Attempt) -> tuple[int | None, int]:
        """See :class:`Source`."""
        return self.state.id, self.state.base + self._request()[1].rows[0]

    # -- changes ---------------------------------------------------------------------------------------------------

    def _request(self) -> tuple[OutboxBatch, Plan, tuple[int, int | None]]:
        assert self._under_way is not None, "a lane is told of a request that it never started"
        return self._under_way.batch, self._under_way.plan, self._under_way.before

    def _note(self) -> None:
        self._desk.ends.changes.lanes[self.state.id] = self.state.record

    def _give_up(self, batch: OutboxBatch, now: int) -> None:
        """Repeats are no longer recognised: events with an unknown outcome are not sent again automatically."""
        lane = self.state
        base = lane.base
        end = min(lane.attempt_end, base + batch.rows.num_rows)
        rows = [row - base for row in range(lane.next_row, end) if row not in lane.taken]
        self._desk.ends.dead_rows(lane, batch, dict.fromkeys(rows, OUTCOME_UNKNOWN), None, None, now)
        self._advance(end)
        self._note()

    def _advance(self, row: int) -> None:
        lane = self.state
        number = lane.batch_number
        lane.advance(row)
        if lane.batch_number != number or lane.next_row >= lane.rows:
            self._desk.shelf.drop(self._file, number)

    def _hold(self, batch: OutboxBatch, rows: Sequence[int], now: int) -> None:
        """Holds events in the store, behind the held events of their identity."""
        for identity in self._desk.ends.held_rows(self.state, batch, rows, now):
            self._desk.held.wait(identity, now)
        self.state.taken.update(self.state.base + row for row in rows)


def _within(rows: Sequence[int], start: int, end: int) -> list[int]:
    return [row for row in rows if start <= row < end]
