"""The delivery of one integration as a state machine: no clock, network or store of its own.

A channel says which requests may start, and is told what came of each; both as changes for the store (:data:`Change`)
that the caller commits before it does anything else. Rows of a lane before ``next_row`` have their end state. What may
have been posted without an answer lies between ``next_row`` and ``attempt_end``.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.amplitude.answers import Outcome, Verdict, judge
from nami_amp_pipeline.amplitude.outbox import LANE_BATCH_ROWS, OutboxBatch, OutboxFile, runs_without
from nami_amp_pipeline.amplitude.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import halt
from nami_amp_pipeline.state.store import Store, Transaction

FORBIDDEN_IN_A_ROW = 5
"""So many single events refused with 403 one after the other are not about the events."""

_UNKNOWN_FOR = int(contract.DEDUPLICATION_WINDOW.total_seconds() - 3600) * 1_000_000
_FIRST_LIMIT = 4.0
_HELD_EVENTS = 300
_EVENTS_PER_SECOND = 30.0
_BACKOFF_SECONDS = (0.2, 30.0)

Change = Callable[[Transaction], None]


@dataclass
class Lane:
    """How far a lane is; see ``state.tables.lanes``.

    Attributes:
        first_batch: its first record batch in the outbox.
        taken: rows at or after ``next_row`` that have their end state, or wait elsewhere.
        suspect_end: a refused event lies before this row.
        suspect_reason: why.
        ready_at: not before, in µs since the epoch.
        failures: answers in a row that brought nothing.
        busy: a request is under way.
    """

    id: int
    first_batch: int
    rows: int
    next_row: int
    attempt_end: int
    unknown_since: int | None
    taken: set[int] = field(default_factory=set)
    suspect_end: int | None = None
    suspect_reason: str = ""
    ready_at: int = 0
    failures: int = 0
    busy: bool = False


@dataclass
class Held:
    """The events of one identity that wait in the store, oldest first.

    Attributes:
        until: not before, in µs since the epoch.
        at_once: events of the next request at most.
    """

    until: int
    at_once: int = _HELD_EVENTS
    failures: int = 0
    busy: bool = False


@dataclass
class Attempt:
    """A request to start.

    Attributes:
        channel: whose it is.
        body: the JSON, byte for byte.
        events: how many.
        lane: None for held events.
        rows: of the lane, that are in the body.
        end: the row behind the last one looked at.
        aside: rows before ``end`` that wait because their identity waits.
        identity: of held events.
        held: their rows in the store.
        unknown_before: since when an earlier attempt's outcome is unknown.
        started_at: in µs since the epoch.
    """

    channel: Channel
    body: bytes
    events: int
    started_at: int
    lane: Lane | None = None
    rows: Sequence[int] = ()
    end: int = 0
    aside: Sequence[int] = ()
    identity: str = ""
    held: Sequence[Any] = ()
    unknown_before: int | None = None


@dataclass
class Delivered:
    """What one run delivered for one integration.

    Attributes:
        delivered: events that Amplitude acknowledged.
        dead: dead letters, by reason.
        requests: by what came of them.
        bytes: of all request bodies.
        error: why the run ended with events pending, or None.
    """

    delivered: int = 0
    dead: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: int = 0
    error: str | None = None


class Channel:
    """See the module's docstring.

    Args:
        store: for reading held events and for the kind of its statements; the caller commits.
        integration_id: whose channel this is.
        endpoint: where to post.
        api_key: goes into each body.
        batch_events: events of a request at most.
        batch_bytes: bytes of a request at most.
        max_lanes: requests under way at most.
        run_id: goes into each record.
        rng: for jitter.
    """

    def __init__(
        self,
        store: Store,
        integration_id: int,
        endpoint: str,
        api_key: Secret,
        *,
        batch_events: int,
        batch_bytes: int,
        max_lanes: int,
        run_id: str,
        rng: random.Random,
    ) -> None:
        self.store = store
        self.id = integration_id
        self.endpoint = endpoint
        self._api_key = api_key
        self._head = b'{"api_key":' + orjson.dumps(api_key.reveal()) + b',"events":['
        self._tail = b'],"options":{"min_id_length":1}}'
        self._batch_events = batch_events
        self._batch_bytes = batch_bytes - len(self._head) - len(self._tail)
        self._most_bytes = (
            contract.MAX_BATCH_REQUEST_BYTES if endpoint.endswith("/batch") else contract.MAX_REQUEST_BYTES
        ) - len(self._head) - len(self._tail)  # fmt: skip
        self._max_lanes = max_lanes
        self._run_id = run_id
        self._rng = rng
        self.lanes: list[Lane] = []
        self.held: dict[str, Held] = {}
        self.outbox_id: int | None = None
        self._segment_id = 0
        self._file: OutboxFile | None = None
        self.done = Delivered()
        self.in_flight = 0
        self.halted = False
        self.resume_at = 0
        self._limit = min(_FIRST_LIMIT, float(max_lanes))
        self._forbidden: list[tuple[int, int]] = []
        self.last_trouble = ""
        self.held_changed = False
        self.progress_at = 0

    # -- what there is to do ---------------------------------------------------------------------------------------

    def load(self, outbox_id: int, segment_id: int, file: OutboxFile, lanes: Sequence[Lane]) -> None:
        """Turns to the next outbox; the one before must be done."""
        self.outbox_id = outbox_id
        self._segment_id = segment_id
        self._file = file
        self.lanes = list(lanes)

    @property
    def outbox_done(self) -> bool:
        """Whether every event of the outbox has its end state or waits in the store."""
        return all(lane.next_row >= lane.rows and not lane.busy for lane in self.lanes)

    def wake_at(self, now: int) -> int | None:
        """When something can start next, in µs since the epoch; None if nothing is left."""
        if self.halted:
            return None
        times = [lane.ready_at for lane in self.lanes if lane.next_row < lane.rows and not lane.busy]
        times += [held.until for held in self.held.values() if not held.busy]
        if not times:
            return None
        return max(min(times), self.resume_at, now)

    def start(self, now: int, room: int, changes: list[Change]) -> Iterator[Attempt]:
        """The requests that may start now.

        Args:
            now: in µs since the epoch.
            room: how many at most.
            changes: what to commit before the first of them is posted is added here.
        """
        if self.halted or now < self.resume_at:
            return
        for identity, held in list(self.held.items()):
            if room <= 0 or self.in_flight >= int(self._limit):
                return
            if held.busy or held.until > now:
                continue
            attempt = self._start_held(identity, held, now, changes)
            if attempt is not None:
                room -= 1
                self.in_flight += 1
                yield attempt
        for lane in self.lanes:
            if room <= 0 or self.in_flight >= int(self._limit):
                return
            if lane.busy or lane.ready_at > now or lane.next_row >= lane.rows:
                continue
            attempt = self._start_lane(lane, now, changes)
            if attempt is not None:
                room -= 1
                self.in_flight += 1
                yield attempt

    def _batch_of(self, lane: Lane) -> tuple[OutboxBatch, int]:
        """The record batch that holds a lane's next row, and the lane's row that it begins with."""
        assert self._file is not None
        number = lane.next_row // LANE_BATCH_ROWS
        return self._file.batch(lane.first_batch + number), number * LANE_BATCH_ROWS

    def _start_lane(self, lane: Lane, now: int, changes: list[Change]) -> Attempt | None:
        while lane.next_row < lane.rows:
            batch, base = self._batch_of(lane)
            if self._is_too_old(lane.unknown_since, now):
                self._give_up(lane, batch, base, changes, now)
                continue
            start = lane.next_row - base
            end = batch.end_within(start, self._batch_events, self._batch_bytes)
            if lane.suspect_end is not None:
                end = min(end, max(start + 1, lane.suspect_end - base))
            aside = batch.among(start, end, list(self.held)) if self.held else []
            aside = [row for row in aside if base + row not in lane.taken]
            skipped = sorted({*aside, *(row - base for row in lane.taken if start <= row - base < end)})
            rows = [row for run in runs_without(start, end, skipped) for row in range(*run)]
            if lane.suspect_end is not None and len(rows) > 1:
                rows = rows[: len(rows) // 2]
                end = rows[-1] + 1
                aside = [row for row in aside if row < end]
                skipped = [row for row in skipped if row < end]
            if len(rows) == 1 and batch.size(rows[0]) > self._most_bytes:
                self._add_dead(changes, lane, batch, base, {rows[0]: "too_large"}, None, now)
                lane.taken.add(base + rows[0])
                continue
            if not rows:
                self._advance(lane, base + end, changes)
                self._hold(lane, batch, base, aside, changes, now)
                continue
            unknown_before = lane.unknown_since
            lane.attempt_end = max(lane.attempt_end if unknown_before is not None else 0, base + end)
            lane.unknown_since = now if unknown_before is None else unknown_before
            lane.busy = True
            changes.append(self._save(lane))
            text = batch.text(runs_without(start, end, skipped))
            return Attempt(
                self, self._head + text + self._tail, len(rows), now, lane, rows, base + end, aside,
                unknown_before=unknown_before,
            )  # fmt: skip
        return None

    def _start_held(self, identity: str, held: Held, now: int, changes: list[Change]) -> Attempt | None:
        table = tables.exceptions
        query = (
            sa.select(table)
            .where(table.c.integration_id == self.id, table.c.state == "held", table.c.identity == identity)
            .order_by(table.c.created_date, sa.collate(table.c.event_id, "C" if not self.store.is_sqlite else "BINARY"))
            .limit(held.at_once)
        )
        with self.store.begin() as tx:
            rows = tx.execute(query).all()
        if not rows:
            del self.held[identity]
            changes.append(self._unpause(identity))
            return None
        old = [row for row in rows if self._is_too_old(row.unknown_since, now)]
        if old:
            changes.append(self._bury([row.id for row in old], "outcome_unknown", None, now))
            self._count_dead(changes, {"outcome_unknown": len(old)})
            return None
        size, fitting = 0, 0
        for row in rows:
            size += len(row.body.encode())
            if size > self._batch_bytes and fitting:
                break
            fitting += 1
        rows = rows[:fitting]
        held.busy = True
        ids = [row.id for row in rows]
        fresh = [row.id for row in rows if row.unknown_since is None]
        if fresh:
            changes.append(
                lambda tx: _execute(tx, sa.update(table).where(table.c.id.in_(fresh)).values(unknown_since=now))
            )
        text = "".join(row.body for row in rows).encode()[1:]
        return Attempt(self, self._head + text + self._tail, len(rows), now, identity=identity, held=rows)

    @staticmethod
    def _is_too_old(unknown_since: int | None, now: int) -> bool:
        return unknown_since is not None and now - unknown_since > _UNKNOWN_FOR

    # -- what came of it -------------------------------------------------------------------------------------------

    def finish(self, attempt: Attempt, answer: HttpAnswer | NoAnswer, now: int, changes: list[Change]) -> None:
        """Takes in what came of a request; what to commit is added to ``changes``."""
        self.in_flight -= 1
        if attempt.lane is not None:
            attempt.lane.busy = False
        elif attempt.identity in self.held:
            self.held[attempt.identity].busy = False
        verdict = judge(answer, self._identities(attempt, answer), now=now / 1e6)
        self.done.requests[verdict.reason if verdict.outcome is not Outcome.DELIVERED else "delivered"] += 1
        self.done.bytes += len(attempt.body)
        self._record(attempt, answer, verdict, now, changes)
        if verdict.outcome is Outcome.DELIVERED:
            self._limit = min(float(self._max_lanes), self._limit + 1.0)
            self._forbidden.clear()
        elif verdict.outcome is Outcome.AGAIN:
            self._limit = max(1.0, self._limit / 2)
            self.last_trouble = verdict.reason
            if verdict.whole_project:
                self.resume_at = max(self.resume_at, now + _us(verdict.delay or 0.0))
        elif verdict.outcome is Outcome.HALT:
            self._halt(verdict.reason, now, changes)
        if attempt.lane is not None:
            self._finish_lane(attempt, attempt.lane, verdict, answer, now, changes)
        else:
            self._finish_held(attempt, verdict, answer, now, changes)

    def _identities(self, attempt: Attempt, answer: HttpAnswer | NoAnswer) -> list[tuple[str, ...]]:
        if isinstance(answer, NoAnswer) or answer.status not in (400, 429):
            return [("",)] * attempt.events
        if attempt.lane is None:
            return [(attempt.identity,)] * attempt.events
        batch, _ = self._batch_of(attempt.lane)
        return batch.identities(attempt.rows)

    def _finish_lane(
        self,
        attempt: Attempt,
        lane: Lane,
        verdict: Verdict,
        answer: HttpAnswer | NoAnswer,
        now: int,
        changes: list[Change],
    ) -> None:
        batch, base = self._batch_of(lane)
        if verdict.outcome is Outcome.DELIVERED:
            lane.failures = 0
            self.progress_at = now
            self.done.delivered += attempt.events
            events = attempt.events
            changes.append(lambda tx: self.store.count(tx, self.id, "delivered", events))
            self._advance(lane, attempt.end, changes)
            self._hold(lane, batch, base, attempt.aside, changes, now)
            return
        if not verdict.maybe_stored:
            lane.unknown_since = attempt.unknown_before
            if lane.unknown_since is None:
                lane.attempt_end = lane.next_row
        if verdict.outcome is Outcome.AGAIN:
            lane.failures += 1
            wait = verdict.delay if verdict.delay is not None else self._backoff(lane.failures)
            lane.ready_at = now + _us(wait)
        elif verdict.outcome is Outcome.REFUSED_SOME:
            lane.failures = 0
            dead = {attempt.rows[index]: reason for index, reason in verdict.dead.items()}
            self._add_dead(changes, lane, batch, base, dead, _answer_text(answer, self._api_key), now)
            lane.taken.update(base + row for row in dead)
            self._pause(verdict, now, changes)
            waiting = [attempt.rows[index] for index in sorted(verdict.paused) if index not in verdict.dead]
            self._hold(lane, batch, base, waiting, changes, now)
        elif verdict.outcome is Outcome.REFUSED_ONE_OF:
            lane.failures = 0
            if attempt.events == 1:
                self._refuse_single(attempt, lane, batch, base, verdict, answer, now, changes)
            else:
                lane.suspect_end = attempt.end
                lane.suspect_reason = verdict.reason
        changes.append(self._save(lane))

    def _refuse_single(
        self,
        attempt: Attempt,
        lane: Lane,
        batch: OutboxBatch,
        base: int,
        verdict: Verdict,
        answer: HttpAnswer | NoAnswer,
        now: int,
        changes: list[Change],
    ) -> None:
        """One event alone was refused: it is a dead letter, unless too many are in a row."""
        row = attempt.rows[0]
        lane.suspect_end = None
        if verdict.reason == "forbidden":
            self._forbidden.append((lane.id, base + row))
            if len(self._forbidden) >= FORBIDDEN_IN_A_ROW:
                self._take_back(self._forbidden[:-1], changes)
                self._forbidden.clear()
                self._halt(
                    "forbidden: Amplitude refused several single events in a row with 403; its firewall or the region "
                    "refuses this sender",
                    now,
                    changes,
                )
                return
        self._add_dead(changes, lane, batch, base, {row: verdict.reason}, _answer_text(answer, self._api_key), now)
        lane.taken.add(base + row)

    def _finish_held(
        self, attempt: Attempt, verdict: Verdict, answer: HttpAnswer | NoAnswer, now: int, changes: list[Change]
    ) -> None:
        table = tables.exceptions
        self.held_changed = True
        held = self.held[attempt.identity]
        ids = [row.id for row in attempt.held]
        if verdict.outcome is Outcome.DELIVERED:
            events = len(ids)
            held.failures = 0
            held.until = now + _us(events / _EVENTS_PER_SECOND if events >= held.at_once else 0.0)
            held.at_once = min(_HELD_EVENTS, held.at_once * 2)
            self.done.delivered += events
            # Kept, without the body: it tells that the row of the lane has its end state, and when.
            changes.append(
                lambda tx: _execute(
                    tx,
                    sa.update(table)
                    .where(table.c.id.in_(ids))
                    .values(state="delivered", body=None, at=now, run_id=self._run_id),
                )
            )
            changes.append(lambda tx: self.store.count(tx, self.id, "delivered", events))
            return
        if not verdict.maybe_stored:
            fresh = [row.id for row in attempt.held if row.unknown_since is None]
            if fresh:
                changes.append(
                    lambda tx: _execute(tx, sa.update(table).where(table.c.id.in_(fresh)).values(unknown_since=None))
                )
        text = _answer_text(answer, self._api_key)
        if verdict.outcome is Outcome.AGAIN:
            held.failures += 1
            held.until = now + _us(verdict.delay if verdict.delay is not None else self._backoff(held.failures))
        elif verdict.outcome is Outcome.REFUSED_SOME:
            for index, reason in verdict.dead.items():
                changes.append(self._bury([ids[index]], reason, text, now))
            self._count_dead(changes, _by_value(verdict.dead))
            if verdict.pauses:
                held.at_once = max(1, held.at_once // 2)
            self._pause(verdict, now, changes)
        elif verdict.outcome is Outcome.REFUSED_ONE_OF:
            if len(ids) == 1:
                changes.append(self._bury(ids, verdict.reason, text, now))
                self._count_dead(changes, {verdict.reason: 1})
            else:
                held.at_once = max(1, len(ids) // 2)

    def _backoff(self, failures: int) -> float:
        first, most = _BACKOFF_SECONDS
        return float(min(most, first * 2 ** min(failures - 1, 20)) * self._rng.uniform(0.5, 1.0))

    def _halt(self, reason: str, now: int, changes: list[Change]) -> None:
        self.halted = True
        self.done.error = reason
        changes.append(lambda tx: halt(tx, self.id, reason, now))

    # -- changes for the store -------------------------------------------------------------------------------------

    def _advance(self, lane: Lane, row: int, changes: list[Change]) -> None:
        lane.next_row = row
        lane.taken = {taken for taken in lane.taken if taken >= row}
        if lane.suspect_end is not None and row >= lane.suspect_end:
            lane.suspect_end = None
        if row >= lane.attempt_end:
            lane.attempt_end = row
            lane.unknown_since = None
        changes.append(self._save(lane))

    def _save(self, lane: Lane) -> Change:
        values = {"next_row": lane.next_row, "attempt_end": lane.attempt_end, "unknown_since": lane.unknown_since}
        statement = sa.update(tables.lanes).where(tables.lanes.c.id == lane.id).values(**values)
        return lambda tx: _execute(tx, statement)

    def _give_up(self, lane: Lane, batch: OutboxBatch, base: int, changes: list[Change], now: int) -> None:
        """Amplitude no longer recognises a repeat: nothing whose outcome is unknown goes again by itself."""
        end = min(lane.attempt_end, base + batch.rows.num_rows)
        rows = [row - base for row in range(lane.next_row, end) if row not in lane.taken]
        self._add_dead(changes, lane, batch, base, dict.fromkeys(rows, "outcome_unknown"), None, now)
        self._advance(lane, end, changes)

    def _record(
        self, attempt: Attempt, answer: HttpAnswer | NoAnswer, verdict: Verdict, now: int, changes: list[Change]
    ) -> None:
        delivered = verdict.outcome is Outcome.DELIVERED
        values = {
            "integration_id": self.id,
            "lane_id": attempt.lane.id if attempt.lane is not None else None,
            "first_row": attempt.lane.next_row if attempt.lane is not None else None,
            "end_row": attempt.end if attempt.lane is not None else None,
            "events": attempt.events,
            "bytes": len(attempt.body),
            "status": answer.status if isinstance(answer, HttpAnswer) else 0,
            "outcome": "delivered" if delivered else verdict.reason,
            "answer": _answer_text(answer, self._api_key),
            "sent_at": attempt.started_at,
            "answered_at": now,
            "run_id": self._run_id,
        }
        changes.append(lambda tx: _execute(tx, sa.insert(tables.requests).values(**values)))

    def _add_dead(
        self,
        changes: list[Change],
        lane: Lane,
        batch: OutboxBatch,
        base: int,
        dead: dict[int, str],
        answer: str | None,
        now: int,
    ) -> None:
        if not dead:
            return
        rows = self._exceptions(lane, batch, base, sorted(dead), "dead", now)
        for row, number in zip(rows, sorted(dead), strict=True):
            row |= {"reason": dead[number], "answer": answer}
        changes.append(lambda tx: _execute(tx, sa.insert(tables.exceptions), rows))
        self._count_dead(changes, _by_value(dead))

    def _count_dead(self, changes: list[Change], by_reason: dict[str, int]) -> None:
        for reason, events in by_reason.items():
            self.done.dead[reason] += events
        changes.append(lambda tx: self.store.count(tx, self.id, "dead", by_reason))

    def _hold(
        self, lane: Lane, batch: OutboxBatch, base: int, rows: Sequence[int], changes: list[Change], now: int
    ) -> None:
        """Lets events wait in the store, behind those of their identity that wait there already."""
        if not rows:
            return
        held = self._exceptions(lane, batch, base, rows, "held", now)
        lane.taken.update(base + row for row in rows if base + row >= lane.next_row)
        for row in held:
            row["reason"] = "throttled"
            self.held.setdefault(row["identity"], Held(now))
        self.held_changed = True
        changes.append(lambda tx: _execute(tx, sa.insert(tables.exceptions), held))

    def _exceptions(
        self, lane: Lane, batch: OutboxBatch, base: int, rows: Sequence[int], state: str, now: int
    ) -> list[dict[str, Any]]:
        columns = batch.rows.select(["id", "event_type", "user_id", "identity", "created_date"]).take(
            pa.array(rows, pa.int64())
        )
        bodies = batch.bodies(rows)
        return [
            {
                "integration_id": self.id,
                "state": state,
                "reason": "",
                "event_id": event["id"],
                "event_type": event["event_type"],
                "user_id": event["user_id"],
                "identity": event["identity"],
                "created_date": created,
                "payload": None,
                "body": "," + body.decode(),
                "answer": None,
                "lane_id": lane.id,
                "lane_row": base + row,
                "segment_id": self._segment_id,
                "request_id": None,
                "run_id": self._run_id,
                "at": now,
                "unknown_since": lane.unknown_since,
            }
            for row, event, created, body in zip(
                rows,
                columns.select(["id", "event_type", "user_id", "identity"]).to_pylist(),
                columns["created_date"].cast(pa.int64()).to_pylist(),
                bodies,
                strict=True,
            )
        ]

    def _pause(self, verdict: Verdict, now: int, changes: list[Change]) -> None:
        rows = []
        for identity, (reason, seconds) in verdict.pauses.items():
            until = now + _us(seconds)
            held = self.held.setdefault(identity, Held(until))
            held.until = max(held.until, until)
            rows.append({"integration_id": self.id, "identity": identity, "reason": reason, "until": held.until})
        if rows:
            changes.append(
                lambda tx: self.store.upsert(
                    tx, tables.pauses, rows, ["integration_id", "identity"], update=["reason", "until"]
                )
            )

    def _unpause(self, identity: str) -> Change:
        table = tables.pauses
        statement = sa.delete(table).where(table.c.integration_id == self.id, table.c.identity == identity)
        return lambda tx: _execute(tx, statement)

    def _bury(self, ids: Sequence[int], reason: str, answer: str | None, now: int) -> Change:
        table = tables.exceptions
        statement = (
            sa.update(table)
            .where(table.c.id.in_(ids))
            .values(state="dead", reason=reason, answer=answer, at=now, run_id=self._run_id)
        )
        return lambda tx: _execute(tx, statement)

    def _take_back(self, places: Sequence[tuple[int, int]], changes: list[Change]) -> None:
        """Dead letters that were none: they wait again, in order."""
        table = tables.exceptions
        self.held_changed = True
        for lane_id, row in places:
            statement = (
                sa.update(table)
                .where(table.c.lane_id == lane_id, table.c.lane_row == row, table.c.state == "dead")
                .values(state="held", reason="forbidden")
            )
            changes.append(lambda tx, statement=statement: _execute(tx, statement))  # type: ignore[misc]
        self._count_dead(changes, {"forbidden": -len(places)})


def _execute(tx: Transaction, statement: sa.Executable, rows: Sequence[dict[str, Any]] | None = None) -> None:
    if rows is None:
        tx.execute(statement)
    elif rows:
        tx.execute(statement, rows)


def _by_value(dead: Any) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in dead.values():
        counts[reason] += 1
    return dict(counts)


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _answer_text(answer: HttpAnswer | NoAnswer, api_key: Secret) -> str | None:
    """An answer for the records: short, and without the key that Amplitude repeats in it."""
    if isinstance(answer, NoAnswer):
        return answer.kind
    if answer.status == 200:
        return None
    text = answer.body[:2_000].decode(errors="replace")
    return text.replace(api_key.reveal(), "…").replace("\x00", "")
