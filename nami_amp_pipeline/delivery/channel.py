"""The delivery of one integration as a state machine: no clock, network or store of its own.

A channel says which request may start, and learns the outcome of each. Both become changes for the store
(:class:`~nami_amp_pipeline.delivery.store_changes.StoreChanges`), which the caller writes before it posts anything
more. Rows of a lane before ``next_row`` have their end state or are held in the store; rows that may have been posted
without an answer lie between ``next_row`` and ``attempt_end``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from nami_amp_pipeline.delivery.attempt import Attempt, Delivered, Limits, RequestSize
from nami_amp_pipeline.delivery.destination import FORBIDDEN, TOO_LARGE, Outcome, Target, Verdict
from nami_amp_pipeline.delivery.held_queue import HeldQueue, ReadHeld
from nami_amp_pipeline.delivery.held_source import HeldSource
from nami_amp_pipeline.delivery.lane import Lane
from nami_amp_pipeline.delivery.lane_source import LaneSource
from nami_amp_pipeline.delivery.outbox import OutboxCache
from nami_amp_pipeline.delivery.outcomes import OutcomeRecorder
from nami_amp_pipeline.delivery.rate_limit import ProjectRate
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.source import Desk, Refusal, Source
from nami_amp_pipeline.delivery.store_changes import StoreChanges
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.storage.row_faults import MOST_ODD, ODD_ROW, may_be_a_rows, words_of

FORBIDDEN_IN_A_ROW = 5
"""After this many single events in a row were refused with 403, the sender is refused, not the events."""

DOUBTED_TIMES = 4
"""How often in a row the answer that a small event is too large is not believed."""

_FIRST_LIMIT = 4.0
_BACKOFF_SECONDS = (0.2, 30.0)
_SHORTEST_PAUSE_SECONDS = 1.0
_LATE_MICROS = 5_000_000


class Channel:
    """See the module's docstring.

    Args:
        integration_id: whose channel this is.
        target: where requests go.
        shelf: the outbox files.
        read_held: reads held events from the store.
        limits: of its requests.
        run_id: goes into each record.
        rng: for jitter.
        rate: of the project, shared with the other channels that post to it; one of its own by default.

    Attributes:
        send_until: the monotonic time until which its lease gives the right to send, in seconds.
    """

    def __init__(
        self,
        integration_id: int,
        target: Target,
        shelf: OutboxCache,
        read_held: ReadHeld,
        *,
        limits: Limits,
        run_id: str,
        rng: random.Random,
        rate: ProjectRate | None = None,
    ) -> None:
        self.id = integration_id
        self.target = target
        self.ends = OutcomeRecorder(integration_id, run_id)
        self.outbox_id: int | None = None
        self.halted = False
        self.rate = rate or ProjectRate(target.limits.events_per_second)
        self.in_flight = 0
        self.last_trouble = ""
        self.progress_at: int | None = None
        self.refused_alone: list[tuple[int | None, int]] = []
        self._odd: list[tuple[int | None, int]] = []
        self.send_until = 0.0
        self._rng = rng
        self._limit = min(_FIRST_LIMIT, float(limits.lanes))
        frame = len(target.frame.head) + len(target.frame.tail)
        size = RequestSize(min(limits.size, target.limits.size) - frame, target.limits.size - frame)
        limits = replace(limits, events=min(limits.events, target.limits.events))
        self.held = HeldQueue(read_held, self.rate.pacer, limits.events)
        self._desk = Desk(target, limits, size, shelf, self.rate.pacer, self.held, self.ends)
        self._held_source = HeldSource(self._desk)
        self._lanes: list[LaneSource] = []

    @property
    def changes(self) -> StoreChanges:
        """The changes to record."""
        return self.ends.changes

    @property
    def done(self) -> Delivered:
        """The results of the run."""
        return self.ends.done

    @property
    def waits_for_commit(self) -> bool:
        """Whether held events in the store change: they are read again after the write."""
        return self.changes.touches_held

    # -- what there is to do ---------------------------------------------------------------------------------------

    def load(self, outbox_id: int, segment_id: int, file: str, lanes: Sequence[Lane], hour: int | None = None) -> None:
        """Turns to the next outbox, whose events count in an hour; the previous outbox must be done."""
        self.outbox_id = outbox_id
        self.ends.segment_id, self.ends.hour = segment_id, hour
        self._lanes = [LaneSource(lane, file, self._desk) for lane in lanes]
        self._odd.clear()

    def unload(self) -> None:
        """Puts the outbox away."""
        self.outbox_id = None
        self._lanes = []

    @property
    def outbox_done(self) -> bool:
        """Whether there is an outbox whose events all have their end state or are held in the store."""
        return self.outbox_id is not None and all(lane.is_done for lane in self._lanes)

    @property
    def has_pending(self) -> bool:
        """Whether anything is left to be posted."""
        return bool(self.held) or any(lane.has_pending for lane in self._lanes)

    def _sources(self) -> Iterator[Source]:
        yield self._held_source
        yield from self._lanes

    def next_at(self, now: int) -> int | None:
        """When the next request can start, in µs since the epoch; None if an answer must come first."""
        if self.halted or self.in_flight >= int(self._limit):
            return None
        times = [at for source in self._sources() if (at := source.next_at()) is not None]
        return max(min(times), self.rate.resume_at, now) if times else None

    def start(self, now: int) -> Attempt | None:
        """The next request, to post after the changes are written; None if no request can start now."""
        if self.halted or now < self.rate.resume_at or self.in_flight >= int(self._limit):
            return None
        for source in self._sources():
            at = source.next_at()
            if at is None or at > now or (source is self._held_source and self.waits_for_commit):
                continue
            attempt = source.start(now)
            if attempt is not None:
                self.in_flight += 1
                self.progress_at = now if self.progress_at is None else self.progress_at
                return attempt
        return None

    def take_back(self, attempt: Attempt, now: int) -> None:
        """A request that was begun is not posted after all: the state from before it is restored."""
        self.in_flight -= 1
        attempt.source.state.busy = False
        attempt.source.settle(attempt, now, maybe_stored=False)
        attempt.source.not_stored(attempt)

    # -- outcomes --------------------------------------------------------------------------------------------------

    def finish(self, attempt: Attempt, answer: HttpAnswer | NoAnswer, now: int) -> Verdict:
        """Takes in the outcome of a request."""
        source, state = attempt.source, attempt.source.state
        self.in_flight -= 1
        state.busy = False
        verdict = self._judged(attempt, answer, now)
        request = self.ends.request(attempt, answer, verdict, self.target, now)
        self._adapt(verdict, now)
        if source.is_progress(verdict.outcome):
            self.progress_at = now
        maybe_stored = verdict.outcome is Outcome.DELIVERED or verdict.maybe_stored
        source.settle(attempt, now, maybe_stored=maybe_stored)
        if not maybe_stored:
            source.not_stored(attempt)
        if verdict.outcome is Outcome.DELIVERED:
            state.failures = state.doubts = 0
            self._delivered(attempt, verdict, answer, request, now)
        elif verdict.outcome is Outcome.AGAIN:
            self._again(attempt, verdict, now)
        elif verdict.outcome in (Outcome.REFUSED_SOME, Outcome.REFUSED_ONE_OF):
            state.failures = state.doubts = 0
            self._refused(attempt, verdict, Refusal(self.target.shown(answer), request, self.target.said(verdict)), now)
        return verdict

    def _judged(self, attempt: Attempt, answer: HttpAnswer | NoAnswer, now: int) -> Verdict:
        """What an answer means; where that cannot be computed, one of the events is to blame, and is searched for."""
        try:
            return self._believed(attempt, answer, now)
        except Exception as error:
            if not may_be_a_rows(error):
                raise
            why = f"the answer to an event cannot be computed: {words_of(error)}"
            self.last_trouble = self.target.clean(why)
            self.done.warnings[self.last_trouble] += 1
            return Verdict(Outcome.REFUSED_ONE_OF, ODD_ROW, maybe_stored=True, said={0: why})

    def _believed(self, attempt: Attempt, answer: HttpAnswer | NoAnswer, now: int) -> Verdict:
        destination = self.target.destination
        named = isinstance(answer, HttpAnswer) and destination.names_events(answer)
        identities = attempt.source.identities(attempt) if named else ()
        verdict = destination.judge(answer, identities, now=now / 1e6)
        is_small = attempt.events == 1 and len(attempt.body) * 2 <= self.target.limits.size
        if (verdict.outcome, verdict.reason) != (Outcome.REFUSED_ONE_OF, TOO_LARGE) or not is_small:
            return verdict
        if attempt.source.state.doubts >= DOUBTED_TIMES:
            return verdict
        attempt.source.state.doubts += 1
        return Verdict(Outcome.AGAIN, TOO_LARGE, delay=self._backoff(attempt.source.state.doubts))

    def _adapt(self, verdict: Verdict, now: int) -> None:
        """Applies an answer's meaning for the whole integration."""
        if verdict.outcome is Outcome.DELIVERED:
            self._limit = min(float(self._desk.limits.lanes), self._limit + 1.0)
            self._desk.size.delivered()
            self.refused_alone.clear()
        elif verdict.outcome is Outcome.AGAIN:
            self._limit = max(1.0, self._limit / 2)
            self.last_trouble = verdict.reason
            if verdict.whole_project and verdict.delay:
                self.rate.pause(now + _us(verdict.delay))
                self.pause_with_project(verdict.reason)
        elif verdict.outcome is Outcome.HALT:
            self._halt(self.target.reason(verdict), now)
        for identity, (reason, seconds) in verdict.pauses.items():
            until = now + _us(max(seconds, _SHORTEST_PAUSE_SECONDS))
            self.changes.pause(identity, reason, self.held.wait(identity, until))

    def pause_with_project(self, reason: str) -> None:
        """The project is throttled, as this channel was told, or another one of the project."""
        self.last_trouble = reason
        self.changes.pause("", reason, self.rate.resume_at)

    def _again(self, attempt: Attempt, verdict: Verdict, now: int) -> None:
        state = attempt.source.state
        state.failures += 1
        # At once is too soon: it would ask without end.
        state.ready_at = now + _us(verdict.delay or self._backoff(state.failures))
        if verdict.reason == TOO_LARGE:  # it is believed after some repeats, so the run continues until then
            self.progress_at = state.ready_at + _LATE_MICROS

    def _delivered(
        self, attempt: Attempt, verdict: Verdict, answer: HttpAnswer | NoAnswer, request: RequestRecord, now: int
    ) -> None:
        """All events are stored, but for those that the answer names."""
        source, others = attempt.source, frozenset({*verdict.dead, *verdict.paused})
        if others:
            source.not_stored(attempt)  # of those it is certain, and of the others it is noted next
            why = Refusal(self.target.shown(answer), request, self.target.said(verdict))
            source.refused(attempt, verdict.dead, sorted(verdict.paused), why, now)
        source.delivered(attempt, request, now, others)

    def _refused(self, attempt: Attempt, verdict: Verdict, why: Refusal, now: int) -> None:
        source, state = attempt.source, attempt.source.state
        if verdict.outcome is Outcome.REFUSED_SOME:
            if state.search is not None:
                state.search.refusals = 0  # what is named now may be why earlier requests were refused
            source.refused(attempt, verdict.dead, sorted(verdict.paused), why, now)
        elif attempt.events > 1:
            source.suspect(attempt, verdict.reason, why)
        elif not self._stops_for(verdict.reason, source.where(attempt), now):
            source.refused(attempt, {0: verdict.reason}, (), why, now)
            state.search = None

    def _stops_for(self, reason: str, place: tuple[int | None, int], now: int) -> bool:
        """A single event was refused: it becomes a dead letter, unless too many in a row were refused."""
        if reason == ODD_ROW:
            return self._stops_for_odd(place)
        if reason != FORBIDDEN:
            return False
        self.refused_alone.append(place)
        if len(self.refused_alone) < FORBIDDEN_IN_A_ROW:
            return False
        self.ends.not_dead(self.refused_alone[:-1], FORBIDDEN)
        self.refused_alone.clear()
        self._halt(
            "forbidden: several single events in a row were answered with 403; a firewall or the region blocks this "
            "sender",
            now,
        )
        return True

    def _stops_for_odd(self, place: tuple[int | None, int]) -> bool:
        """So many events of an outbox most likely share one cause, and wait for a version that knows it."""
        self._odd.append(place)
        if len(self._odd) <= MOST_ODD:
            return False
        self.ends.not_dead(self._odd[:-1], ODD_ROW)
        self._odd.clear()
        self.halted = True
        self.done.error = f"this is a bug, please report it: {self.last_trouble}"
        return True

    def _backoff(self, failures: int) -> float:
        first, most = _BACKOFF_SECONDS
        return float(min(most, first * 2 ** min(failures - 1, 20)) * self._rng.uniform(0.5, 1.0))

    def _halt(self, reason: str, now: int) -> None:
        self.halted = True
        self.ends.halted(reason, now)


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
