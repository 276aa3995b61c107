"""The outcomes of events: noted as changes for the store, and summed up as results of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nami_amp_pipeline.delivery.attempt import Attempt, Delivered
from nami_amp_pipeline.delivery.destination import Outcome, Target, Verdict
from nami_amp_pipeline.delivery.lane import Lane
from nami_amp_pipeline.delivery.outbox import OutboxBatch
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.store_changes import StoreChanges, exception_rows
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer


class OutcomeRecorder:
    """See the module's docstring; it decides nothing.

    Args:
        integration_id: whose events.
        run_id: goes into each record.

    Attributes:
        changes: for the store.
        done: what the run did.
        segment_id: of the outbox that the rows of lanes are of.
        hour: in which its events count; None if they are not counted by hour.
    """

    def __init__(self, integration_id: int, run_id: str) -> None:
        self.changes = StoreChanges(integration_id)
        self.done = Delivered()
        self.segment_id = 0
        self.hour: int | None = None
        self._integration_id = integration_id
        self._run_id = run_id

    def request(
        self, attempt: Attempt, answer: HttpAnswer | NoAnswer, verdict: Verdict, target: Target, now: int
    ) -> RequestRecord:
        """Notes a request and its answer."""
        self.done.requests[verdict.reason.split(":")[0]] += 1
        self.done.bytes += len(attempt.body)
        if verdict.warning:
            self.done.warnings[verdict.warning] += 1
        is_clean = verdict.outcome is Outcome.DELIVERED and not verdict.dead and not verdict.paused
        lane_id, first_row, end_row = attempt.place or (None, None, None)
        record = RequestRecord(
            {
                "integration_id": self._integration_id,
                "lane_id": lane_id,
                "first_row": first_row,
                "end_row": end_row,
                "events": attempt.events,
                "bytes": len(attempt.body),
                "status": answer.status if isinstance(answer, HttpAnswer) else 0,
                "outcome": target.reason(verdict),
                "answer": verdict.warning or (None if is_clean else target.shown(answer)),
                "sent_at": attempt.started_at,
                "answered_at": now,
                "run_id": self._run_id,
            }
        )
        self.changes.requests.append(record)
        return record

    def delivered_rows(self, events: int, types: Callable[[], Mapping[str, int]]) -> None:
        """Events of a lane were delivered; the lane knows which, and how many of each type."""
        self.done.delivered += events
        self.changes.counts["delivered", ""] += events
        if self.hour is not None:
            for event_type, number in types().items():
                self.changes.hourly[self.hour, event_type, "delivered"] += number

    def delivered_held(self, ids: Sequence[int], request: RequestRecord, now: int) -> None:
        """Held events were delivered."""
        self.done.delivered += len(ids)
        # Kept without the body: it records that the lane's row has its end state, and when.
        self.changes.update_exceptions(
            ids, {"state": "delivered", "body": None, "at": now, "run_id": self._run_id}, request
        )
        self.changes.count_exceptions(ids, "delivered")
        self.changes.counts["delivered", ""] += len(ids)

    def dead_rows(
        self,
        lane: Lane,
        batch: OutboxBatch,
        dead: Mapping[int, str],
        answer: str | None,
        request: RequestRecord | None,
        now: int,
        said: Mapping[int, str] | None = None,
    ) -> None:
        """Rows of a lane's record batch become dead letters, each for its reason; ``said`` has what is said of one."""
        rows = exception_rows(lane, batch, sorted(dead), self._origin("dead", now))
        for row, number in zip(rows, sorted(dead), strict=True):
            reason = dead[number] if row["body"] is not None else row["reason"]
            row |= {"reason": reason, "answer": (said or {}).get(number, answer)}
        self.changes.insert_exceptions(rows, request)
        self._count_dead(Counter(row["reason"] for row in rows))
        self._count_by_hour(rows)

    def dead_held(
        self, ids: Sequence[int], reason: str, answer: str | None, request: RequestRecord | None, now: int
    ) -> None:
        """Held events become dead letters."""
        values = {"state": "dead", "reason": reason, "answer": answer, "at": now, "run_id": self._run_id}
        self.changes.update_exceptions(ids, values, request)
        self.changes.count_exceptions(ids, "dead")
        self._count_dead({reason: len(ids)})

    def not_dead(self, places: Sequence[tuple[int | None, int]], reason: str) -> None:
        """Dead letters that were made by mistake are held again, in order.

        Args:
            places: for each, its lane and row, or None and its id.
            reason: of all of them.
        """
        for lane_id, row in places:
            if lane_id is None:
                self.changes.update_exceptions([row], {"state": "held", "reason": reason})
                self.changes.count_exceptions([row], "dead", -1)
            else:
                self.changes.take_back(lane_id, row, reason)
        self._count_dead({reason: -len(places)})

    def held_rows(self, lane: Lane, batch: OutboxBatch, rows: Sequence[int], now: int) -> Iterable[str]:
        """Rows of a lane's record batch are held in the store; returns their distinct identities."""
        held = exception_rows(lane, batch, rows, self._origin("held", now))
        self.changes.insert_exceptions(held)
        dead = [row for row in held if row["state"] == "dead"]
        self._count_dead(Counter(row["reason"] for row in dead))
        self._count_by_hour(dead)
        return dict.fromkeys(row["identity"] for row in held if row["state"] == "held")

    def halted(self, reason: str, now: int) -> None:
        """The integration stops."""
        self.done.error = reason
        self.changes.halt(reason, now)

    def _count_dead(self, by_reason: Mapping[str, int]) -> None:
        for reason, events in by_reason.items():
            self.done.dead[reason] += events
            self.changes.counts["dead", reason] += events

    def _count_by_hour(self, dead: Sequence[Mapping[str, Any]]) -> None:
        if self.hour is not None:
            for row in dead:
                self.changes.hourly[self.hour, row["event_type"], "dead"] += 1

    def _origin(self, state: str, now: int) -> dict[str, Any]:
        return {
            "integration_id": self._integration_id,
            "state": state,
            "reason": "throttled",
            "segment_id": self.segment_id,
            "hour": self.hour,
            "run_id": self._run_id,
            "at": now,
        }
