"""The delivery of one integration as a state machine: no clock, network or store of its own.

A channel says which request may start, and is told what came of each. Both become changes for the store
(:class:`~nami_amp_pipeline.delivery.store_changes.StoreChanges`), which the caller writes before it posts anything
more. Rows of a lane before ``next_row`` have their end state or wait in the store; what may have been posted without an
answer lies between ``next_row`` and ``attempt_end``.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from nami_amp_pipeline import contract
from nami_amp_pipeline.amplitude.answers import Outcome, Verdict, judge
from nami_amp_pipeline.amplitude.rate_limit import RateLimiter
from nami_amp_pipeline.amplitude.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.delivery.attempt import Attempt, Delivered, HeldAttempt, LaneAttempt, Limits, Target
from nami_amp_pipeline.delivery.bisection import Bisection, narrowed
from nami_amp_pipeline.delivery.held_queue import HeldQueue, ReadHeld
from nami_amp_pipeline.delivery.lane import Lane, plan
from nami_amp_pipeline.delivery.outbox import OutboxBatch, OutboxCache, identities_of
from nami_amp_pipeline.delivery.outcomes import OutcomeRecorder
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.store_changes import StoreChanges

FORBIDDEN_IN_A_ROW = 5
"""So many single events refused with 403 one after the other are not about the events."""

UNKNOWN_MICROS = int(contract.DEDUPLICATION_WINDOW.total_seconds() - 6 * 3600) * 1_000_000
"""How long an event whose outcome is unknown may be sent again; the margin is for clocks that are set."""

_FIRST_LIMIT = 4.0
_BACKOFF_SECONDS = (0.2, 30.0)
_SHORTEST_PAUSE_SECONDS = 1.0
_SUCCESSES_TO_GROW = 64


class Channel:
    """See the module's docstring.

    Args:
        integration_id: whose channel this is.
        target: where requests go.
        shelf: the outbox files.
        read_held: reads waiting events from the store.
        limits: what may be under way.
        run_id: goes into each record.
        rng: for jitter.
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
    ) -> None:
        self.id = integration_id
        self.target = target
        self.ends = OutcomeRecorder(integration_id, run_id)
        self.lanes: list[Lane] = []
        self.outbox_id: int | None = None
        self.halted = False
        self.resume_at = 0
        self.in_flight = 0
        self.last_trouble = ""
        self.progress_at: int | None = None
        self.waits_for_commit = False
        self.refused_alone: list[tuple[int | None, int]] = []
        self._shelf = shelf
        self._limits = limits
        self._rng = rng
        self._pacer = RateLimiter(target.events_per_second)
        self.held = HeldQueue(read_held, self._pacer, limits.events)
        self._file = ""
        self._limit = min(_FIRST_LIMIT, float(limits.lanes))
        frame = len(target.head) + len(target.tail)
        self._size = limits.size - frame
        self._most_bytes = target.most_bytes - frame
        self._smaller: int | None = None  # bytes that got through after larger requests were refused for their size
        self._successes = 0

    @property
    def changes(self) -> StoreChanges:
        """What is to be recorded."""
        return self.ends.changes

    @property
    def done(self) -> Delivered:
        """What the run did."""
        return self.ends.done

    # -- what there is to do ---------------------------------------------------------------------------------------

    def load(self, outbox_id: int, segment_id: int, file: str, lanes: Sequence[Lane]) -> None:
        """Turns to the next outbox; the one before must be done."""
        self.outbox_id = outbox_id
        self.ends.segment_id = segment_id
        self._file = file
        self.lanes = list(lanes)

    def unload(self) -> None:
        """Puts the outbox away."""
        self.outbox_id = None
        self.lanes = []

    @property
    def outbox_done(self) -> bool:
        """Whether there is an outbox of which every event has its end state or waits in the store."""
        return self.outbox_id is not None and all(lane.next_row >= lane.rows and not lane.busy for lane in self.lanes)

    def next_at(self, now: int) -> int | None:
        """When the next request can start, in µs since the epoch; None if none can before an answer comes."""
        if self.halted or self.in_flight >= int(self._limit):
            return None
        times = [lane.ready_at for lane in self.lanes if lane.next_row < lane.rows and not lane.busy]
        held_at = self.held.next_at()
        if held_at is not None:
            times.append(held_at)
        return max(min(times), self.resume_at, now) if times else None

    @property
    def has_pending(self) -> bool:
        """Whether anything is left to be posted."""
        return bool(self.held) or any(lane.next_row < lane.rows for lane in self.lanes)

    def start(self, now: int) -> Attempt | None:
        """The next request to post, once the changes are written; None if none can start now."""
        if self.halted or now < self.resume_at or self.in_flight >= int(self._limit):
            return None
        attempt: Attempt | None = None
        held_at = self.held.next_at()
        if held_at is not None and held_at <= now and not self.waits_for_commit:
            attempt = self._start_held(now)
        for lane in self.lanes:
            if attempt is not None:
                break
            if not lane.busy and lane.ready_at <= now and lane.next_row < lane.rows:
                attempt = self._start_lane(lane, now)
        if attempt is not None:
            self.in_flight += 1
            if self.progress_at is None:
                self.progress_at = now
        return attempt

    def _start_lane(self, lane: Lane, now: int) -> LaneAttempt | None:
        while lane.next_row < lane.rows:
            batch = self._shelf.batch(self._file, lane.batch_number)
            base = lane.base
            if _is_too_old(lane.unknown_since, now):
                self._give_up(lane, batch, now)
                continue
            events = self._limits.events
            chosen = plan(lane, batch, self.held, self._pacer, events=events, size=self._room, now=now)
            if len(chosen.rows) == 1 and batch.size(chosen.rows[0]) > self._most_bytes:
                self.ends.dead_rows(lane, batch, {chosen.rows[0]: "too_large"}, None, None, now)
                lane.taken.add(base + chosen.rows[0])
                continue
            if not chosen.rows:
                self._hold(lane, batch, chosen.aside, now)
                self._advance(lane, base + chosen.end)
                self.changes.lanes[lane.id] = lane.record
                continue
            before = (lane.attempt_end, lane.unknown_since)
            lane.attempt_end = max(lane.attempt_end if lane.unknown_since is not None else 0, base + chosen.end)
            lane.unknown_since = now if lane.unknown_since is None else lane.unknown_since
            lane.busy = True
            self.changes.lanes[lane.id] = lane.record
            body = batch.text(self.target.head, chosen.runs, self.target.tail)
            return LaneAttempt(body, len(chosen.rows), now, lane, batch, chosen, before)
        return None

    @property
    def _room(self) -> int:
        """Bytes that the events of a request may take."""
        return self._size if self._smaller is None else min(self._size, self._smaller)

    def _start_held(self, now: int) -> HeldAttempt | None:
        taken = self.held.take(now, self._room)
        for identity in taken.emptied:
            self.changes.unpause(identity)
        old = [event.id for event in taken.events if _is_too_old(event.unknown_since, now)]
        if old:
            self.ends.dead_held(old, "outcome_unknown", None, None, now)
            self.waits_for_commit = True
        if old or not taken.events:
            return None
        self.held.busy = True
        fresh = [event.id for event in taken.events if event.unknown_since is None]
        self.changes.update_exceptions(fresh, {"unknown_since": now})
        body = self.target.head + b",".join(event.body for event in taken.events) + self.target.tail
        return HeldAttempt(body, len(taken.events), now, taken.events)

    # -- what came of it -------------------------------------------------------------------------------------------

    def finish(self, attempt: Attempt, answer: HttpAnswer | NoAnswer, now: int) -> Verdict:
        """Takes in what came of a request."""
        self.in_flight -= 1
        verdict = judge(answer, self._identities(attempt, answer), now=now / 1e6)
        shown = self.target.shown(answer)
        request = self.ends.request(attempt, answer, verdict, self.target, now)
        if verdict.outcome is Outcome.DELIVERED:
            self._limit = min(float(self._limits.lanes), self._limit + 1.0)
            self._successes += 1
            self.refused_alone.clear()
            if self._smaller is not None and self._successes % _SUCCESSES_TO_GROW == 0:
                self._smaller += self._smaller // 4
        elif verdict.outcome is Outcome.AGAIN:
            self._limit = max(1.0, self._limit / 2)
            self.last_trouble = verdict.reason
            if verdict.whole_project and verdict.delay:
                self.resume_at = max(self.resume_at, now + _us(verdict.delay))
                self.changes.pause("", verdict.reason, self.resume_at)
        elif verdict.outcome is Outcome.HALT:
            self._halt(self.target.without_key(verdict.reason), now)
        if verdict.pauses:
            self._pause(verdict, now)
        if isinstance(attempt, LaneAttempt):
            attempt.lane.busy = False
            self._finish_lane(attempt, attempt.lane, verdict, shown, request, now)
        else:
            self.held.busy = False
            self._finish_held(attempt, verdict, shown, request, now)
        return verdict

    def _identities(self, attempt: Attempt, answer: HttpAnswer | NoAnswer) -> Sequence[tuple[str, ...]]:
        if isinstance(answer, NoAnswer) or answer.status not in (400, 429):
            return ()
        if isinstance(attempt, LaneAttempt):
            return attempt.batch.identities(attempt.plan.rows)
        return [identities_of(event.identity, event.body) for event in attempt.held]

    def _finish_lane(
        self,
        attempt: LaneAttempt,
        lane: Lane,
        verdict: Verdict,
        shown: str | None,
        request: RequestRecord,
        now: int,
    ) -> None:
        batch, base, chosen = attempt.batch, lane.base, attempt.plan
        if verdict.outcome is Outcome.DELIVERED or verdict.maybe_stored:
            for identity, events in chosen.hot.items():
                self._pacer.note(identity, events, now)
        if verdict.outcome is Outcome.DELIVERED:
            lane.failures = 0
            self.progress_at = now
            self.ends.delivered_rows(attempt.events)
            # Of the events set aside now, only an attempt before this one can have posted any.
            lane.attempt_end, lane.unknown_since = attempt.before
            self._hold(lane, batch, chosen.aside, now)
            lane.attempt_end = max(lane.attempt_end, base + chosen.end) if lane.unknown_since else base + chosen.end
            search = self._accepted(lane.search, {base + row for row in chosen.rows} if lane.search else ())
            self._advance(lane, base + chosen.end)
            row = None if search is None or lane.search is None else search.found
            if search is not None and row is not None and row not in lane.taken:
                self.ends.dead_rows(lane, batch, {row - base: search.reason}, search.answer, search.request, now)
                lane.taken.add(row)
                lane.search = None
            self.changes.lanes[lane.id] = lane.record
            return
        if not verdict.maybe_stored:
            lane.attempt_end, lane.unknown_since = attempt.before
        if verdict.outcome is Outcome.AGAIN:
            lane.failures += 1
            wait = verdict.delay or self._backoff(lane.failures)  # at once is too soon: it would ask without end
            lane.ready_at = now + _us(wait)
        elif verdict.outcome is Outcome.REFUSED_SOME:
            lane.failures = 0
            if lane.search is not None:
                lane.search.refusals = 0  # what is named now may be why earlier requests were refused
            dead = {chosen.rows[index]: reason for index, reason in verdict.dead.items()}
            self.ends.dead_rows(lane, batch, dead, shown, request, now)
            lane.taken.update(base + row for row in dead)
            self._hold(lane, batch, [chosen.rows[index] for index in sorted(verdict.paused)], now)
            self.progress_at = now
        elif verdict.outcome is Outcome.REFUSED_ONE_OF:
            lane.failures = 0
            self.progress_at = now  # the search comes to its end by itself
            if attempt.events > 1:
                rows = [base + row for row in chosen.rows]
                lane.search = narrowed(lane.search, rows, verdict.reason, len(attempt.body), shown, request)
            elif not self._stops_for(verdict.reason, (lane.id, base + chosen.rows[0]), now):
                lane.search = None
                self.ends.dead_rows(lane, batch, {chosen.rows[0]: verdict.reason}, shown, request, now)
                lane.taken.add(base + chosen.rows[0])
        self.changes.lanes[lane.id] = lane.record

    def _accepted(self, search: Bisection | None, events: Collection[int]) -> Bisection | None:
        """Takes delivered events out of a search; returns the search."""
        if search is not None:
            search.accepted(events)
            if not search.suspects and search.reason == "too_large":
                # Each event was taken by itself: what was refused was the size of the whole.
                self._smaller = max(search.size // 2, 1)
        return search

    def _finish_held(
        self, attempt: HeldAttempt, verdict: Verdict, shown: str | None, request: RequestRecord, now: int
    ) -> None:
        self.waits_for_commit = True
        ids = [event.id for event in attempt.held]
        if verdict.outcome is Outcome.DELIVERED or verdict.maybe_stored:
            for event in attempt.held:
                self._pacer.note(event.identity, 1, now)
        if verdict.outcome is Outcome.REFUSED_ONE_OF or self.held.search is not None:
            # The search for a refused event comes to its end by itself. Other events that waited are no reason for the
            # run to go on: those of a user with very many would keep it for hours.
            self.progress_at = now
        if verdict.outcome is Outcome.DELIVERED:
            self.held.failures = 0
            self.ends.delivered_held(ids, request, now)
            search = self._accepted(self.held.search, set(ids))
            if search is not None and search.found is not None:
                self.ends.dead_held([search.found], search.reason, search.answer, search.request, now)
            if search is not None and (not search.suspects or search.found is not None):
                self.held.search = None
            return
        if not verdict.maybe_stored:
            fresh = [event.id for event in attempt.held if event.unknown_since is None]
            self.changes.update_exceptions(fresh, {"unknown_since": None})
        if verdict.outcome is Outcome.AGAIN:
            self.held.failures += 1
            wait = verdict.delay or self._backoff(self.held.failures)
            self.held.ready_at = now + _us(wait)
        elif verdict.outcome is Outcome.REFUSED_SOME:
            if self.held.search is not None:
                self.held.search.refusals = 0
            for index, reason in verdict.dead.items():
                self.ends.dead_held([ids[index]], reason, shown, request, now)
        elif verdict.outcome is Outcome.REFUSED_ONE_OF:
            self.held.failures = 0
            if len(ids) > 1:
                search = narrowed(self.held.search, ids, verdict.reason, len(attempt.body), shown, request)
                self.held.suspect(search, attempt.held)
            elif not self._stops_for(verdict.reason, (None, ids[0]), now):
                self.ends.dead_held(ids, verdict.reason, shown, request, now)
                self.held.search = None

    def _stops_for(self, reason: str, place: tuple[int | None, int], now: int) -> bool:
        """One event alone was refused: it is a dead letter, unless too many were in a row."""
        if reason != "forbidden":
            return False
        self.refused_alone.append(place)
        if len(self.refused_alone) < FORBIDDEN_IN_A_ROW:
            return False
        self.ends.not_dead(self.refused_alone[:-1])
        self.refused_alone.clear()
        self.waits_for_commit = True
        self._halt(
            "forbidden: Amplitude refused several single events in a row with 403; its firewall or the region refuses "
            "this sender",
            now,
        )
        return True

    def _backoff(self, failures: int) -> float:
        first, most = _BACKOFF_SECONDS
        return float(min(most, first * 2 ** min(failures - 1, 20)) * self._rng.uniform(0.5, 1.0))

    def _halt(self, reason: str, now: int) -> None:
        self.halted = True
        self.ends.halted(reason, now)

    # -- changes for the store -------------------------------------------------------------------------------------

    def _give_up(self, lane: Lane, batch: OutboxBatch, now: int) -> None:
        """Amplitude no longer recognises a repeat: nothing whose outcome is unknown goes again by itself."""
        base = lane.base
        end = min(lane.attempt_end, base + batch.rows.num_rows)
        rows = [row - base for row in range(lane.next_row, end) if row not in lane.taken]
        self.ends.dead_rows(lane, batch, dict.fromkeys(rows, "outcome_unknown"), None, None, now)
        self._advance(lane, end)
        self.changes.lanes[lane.id] = lane.record

    def _advance(self, lane: Lane, row: int) -> None:
        number = lane.batch_number
        lane.advance(row)
        if lane.batch_number != number or lane.next_row >= lane.rows:
            self._shelf.drop(self._file, number)

    def _hold(self, lane: Lane, batch: OutboxBatch, rows: Sequence[int], now: int) -> None:
        """Lets events wait in the store, behind those of their identity that wait there already."""
        for identity in self.ends.held_rows(lane, batch, rows, now):
            self.held.wait(identity, now)
            self.waits_for_commit = True
        lane.taken.update(lane.base + row for row in rows)

    def _pause(self, verdict: Verdict, now: int) -> None:
        for identity, (reason, seconds) in verdict.pauses.items():
            until = now + _us(max(seconds, _SHORTEST_PAUSE_SECONDS))
            self.changes.pause(identity, reason, self.held.wait(identity, until))


def _is_too_old(unknown_since: int | None, now: int) -> bool:
    return unknown_since is not None and now - unknown_since > UNKNOWN_MICROS


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
