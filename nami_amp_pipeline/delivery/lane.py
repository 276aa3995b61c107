"""A lane of an outbox: its next rows, and where a refused event can still be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from nami_amp_pipeline.delivery.bisection import Bisection
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS, OutboxBatch, spans_without
from nami_amp_pipeline.delivery.rate_limit import RateLimiter


@dataclass
class Lane:
    """The progress of a lane; see ``state.tables.lanes``.

    Attributes:
        id: of the store.
        first_batch: its first record batch in the outbox.
        rows: how many it has.
        next_row: rows before it have their end state, or are held in the store.
        attempt_end: rows from ``next_row`` to it may have been posted since ``unknown_since``.
        taken: rows at or after ``next_row`` that have their end state, or are held in the store.
        search: for a refused event; its suspects are rows of the lane.
        ready_at: not before, in µs since the epoch.
        failures: consecutive answers without progress.
        doubts: how often in a row an answer was not believed.
        busy: a request is under way.
    """

    id: int
    first_batch: int
    rows: int
    next_row: int
    attempt_end: int
    unknown_since: int | None
    taken: set[int] = field(default_factory=set)
    search: Bisection | None = None
    ready_at: int = 0
    failures: int = 0
    doubts: int = 0
    busy: bool = False

    @property
    def batch_number(self) -> int:
        """The record batch that holds the next row, counted in the outbox."""
        return self.first_batch + self.next_row // LANE_BATCH_ROWS

    @property
    def base(self) -> int:
        """The lane's row that this record batch begins with."""
        return self.next_row // LANE_BATCH_ROWS * LANE_BATCH_ROWS

    def advance(self, row: int) -> None:
        """Every row before ``row`` has its end state, or is held in the store."""
        self.next_row = row
        if self.taken:
            self.taken = {taken for taken in self.taken if taken >= row}
        if self.search is not None and (not self.search.suspects or row > self.search.suspects[-1]):
            self.search = None
        if row >= self.attempt_end:
            self.attempt_end = row
            self.unknown_since = None

    @property
    def record(self) -> tuple[int, int, int | None]:
        """What the store keeps."""
        return self.next_row, self.attempt_end, self.unknown_since

    def unknown_since_of(self, row: int) -> int | None:
        """Since when the outcome of a row is unknown."""
        return self.unknown_since if row < self.attempt_end else None


@dataclass(frozen=True)
class Plan:
    """The rows of a record batch that the next request carries.

    Attributes:
        rows: of the record batch; the events of the request.
        spans: the rows as spans (start, end).
        end: the row behind the last one looked at.
        aside: rows before ``end`` that are held, because their identity is paused.
        hot: events of the identities that are watched.
    """

    rows: Sequence[int]
    spans: Sequence[tuple[int, int]]
    end: int
    aside: Sequence[int]
    hot: dict[str, int]


def plan(
    lane: Lane, batch: OutboxBatch, held: Collection[str], pacer: RateLimiter, *, events: int, size: int, now: int
) -> Plan:
    """What a lane's next request carries.

    Args:
        lane: whose rows.
        batch: the record batch with its next row.
        held: identities that are paused.
        pacer: how many events of an identity may go.
        events: at most so many.
        size: bytes at most, for more than one event.
        now: in µs since the epoch.
    """
    base, start = lane.base, lane.next_row - lane.base
    end = batch.end_within(start, events, size)
    if lane.search is not None:
        end = min(end, max(start + 1, lane.search.suspects[-1] + 1 - base))
    aside = batch.among(start, end, held) if held else []
    if lane.taken:
        aside = [row for row in aside if base + row not in lane.taken]
    hot: dict[str, int] = {}
    for identity, rows in batch.hot.items():
        if identity in held:
            continue
        mine = [
            row for row in rows[rows.searchsorted(start) : rows.searchsorted(end)].tolist()
            if base + row not in lane.taken
        ]  # fmt: skip
        if mine:
            room = pacer.room(identity, now)
            aside += mine[room:]
            hot[identity] = min(room, len(mine))
    if not aside and not lane.taken:
        if lane.search is None or end - start == 1:
            return Plan(range(start, end), [(start, end)], end, (), hot)
        skipped: list[int] = []
    else:
        skipped = sorted({*aside, *(row - base for row in lane.taken if start <= row - base < end)})
    rows_left = [row for span in spans_without(start, end, skipped) for row in range(*span)]
    if lane.search is not None and len(rows_left) > 1:
        rows_left = rows_left[: len(rows_left) // 2]
        end = rows_left[-1] + 1
        aside = [row for row in aside if row < end]
        skipped = [row for row in skipped if row < end]
    return Plan(rows_left, spans_without(start, end, skipped), end, sorted(aside), hot)
