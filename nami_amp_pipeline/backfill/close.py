"""Ends what was cancelled: what was not posted is skipped, and what may be stored becomes a dead letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.backfill.profiles import USER, rows_from
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.delivery.receipts import finish_outbox
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.store import Lease, Transaction

CANCELLED: Final = "cancelled"
OUTCOME_UNKNOWN: Final = "outcome_unknown"


def close(context: Context, backfill: Backfill, lease: Lease) -> None:
    """Gives every event that a cancelled backfill has taken on its end; once done, it changes nothing.

    Args:
        context: the process at work.
        backfill: that was cancelled.
        lease: of its integration.
    """
    boxes, lanes = tables.outboxes, tables.lanes
    context.step("backfill.close")
    with context.store.begin(under=[lease]) as tx:
        found = tx.execute(
            sa.select(boxes).where(boxes.c.integration_id == backfill.channel_id, boxes.c.done_at.is_(None))
        ).all()
        for box in found:
            rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == box.id).order_by(lanes.c.id)).all()
            if backfill.kind == "identify":
                _forget(tx, backfill, _identifies(context, box.file, rows))
            cut = sum(_cut(context, tx, box, lane, backfill.channel_id) for lane in rows)
            tx.execute(sa.update(boxes).where(boxes.c.id == box.id).values(rows=boxes.c.rows - cut))
        if backfill.kind == "identify":
            _forget(tx, backfill, _held_identifies(tx, backfill.channel_id))
        _end_held(context, tx, backfill.channel_id)
        files = [file.file for file in backfills.files_of(tx, backfill.id) if not file.is_prepared]
    for box in found:
        finish_outbox(context, box.id, lease)
    for name in files:
        context.folder.remove(name)
    context.step("backfill.closed")


def _identifies(context: Context, file: str, lanes: Sequence[Any]) -> dict[str, str]:
    """Identity to insert id of what is cut from lanes."""
    found: dict[str, str] = {}
    reader = context.folder.open_ipc(file)
    for number, (first, _) in rows_from(lanes, _end_of).items():
        rows = reader.get_batch(number).slice(first)
        found |= dict(zip(rows["identity"].to_pylist(), rows["id"].to_pylist(), strict=True))
    return found


def _held_identifies(tx: Transaction, channel_id: int) -> dict[str, str]:
    table = tables.exceptions
    held = sa.select(table.c.identity, table.c.event_id).where(
        table.c.integration_id == channel_id, table.c.state == "held"
    )
    return dict(tx.execute(held).tuples().all())


def _forget(tx: Transaction, backfill: Backfill, identifies: Mapping[str, str]) -> None:
    """Nobody knows any more that users were given these states: a later identify gives them once more."""
    sent = tables.sent_states
    people = list(identifies)
    for start in range(0, len(people), 500):
        some = people[start : start + 500]
        tx.execute(
            sa.update(sent)
            .where(
                sent.c.integration_id == backfill.integration_id,
                sent.c.user_id.in_([identity.removeprefix(USER) for identity in some]),
                sent.c.identify_id.in_([identifies[identity] for identity in some]),
            )
            .values(identify_id=None)
        )


def _end_of(lane: Any) -> int:
    """The row behind the last one that a request may have carried."""
    return int(max(lane.next_row, lane.attempt_end) if lane.unknown_since is not None else lane.next_row)


def _cut(context: Context, tx: Transaction, box: Any, lane: Any, channel_id: int) -> int:
    """Ends a lane where its last request ended; returns how many rows it loses."""
    table, lanes = tables.exceptions, tables.lanes
    end = _end_of(lane)
    elsewhere = set(
        tx.execute(
            sa.select(table.c.lane_row).where(table.c.lane_id == lane.id, table.c.lane_row >= lane.next_row)
        ).scalars()
    )
    # What is beyond the end has no place in the lane any more.
    tx.execute(
        sa.update(table).where(table.c.lane_id == lane.id, table.c.lane_row >= end).values(lane_id=None, lane_row=None)
    )
    unknown = [row for row in range(lane.next_row, end) if row not in elsewhere]
    if unknown:
        origin = {
            "integration_id": channel_id,
            "state": "dead",
            "reason": OUTCOME_UNKNOWN,
            "segment_id": box.segment_id,
            "run_id": context.run_id,
            "at": context.now(),
            "unknown_since": lane.unknown_since,
            "lane_id": lane.id,
        }
        tx.execute(sa.insert(table), [origin | row for row in _events(context, box.file, lane.batch, unknown)])
        context.store.count(tx, channel_id, "dead", {OUTCOME_UNKNOWN: len(unknown)})
    skipped = lane.rows - end - sum(row >= end for row in elsewhere)
    context.store.count(tx, channel_id, "skipped", {CANCELLED: skipped})
    tx.execute(sa.update(lanes).where(lanes.c.id == lane.id).values(rows=end, next_row=end))
    return int(lane.rows - end)


def _events(context: Context, file: str, first_batch: int, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a lane as columns of ``exceptions``."""
    reader = context.folder.open_ipc(file)
    found = []
    for row in rows:
        batch = reader.get_batch(first_batch + row // LANE_BATCH_ROWS).slice(row % LANE_BATCH_ROWS, 1)
        (event,) = batch.select(["event_type", "user_id", "identity", "body"]).to_pylist()
        created = batch["created_date"].cast(pa.int64())[0].as_py()
        found.append({**event, "event_id": batch["id"][0].as_py(), "created_date": created, "lane_row": row})
    return found


def _end_held(context: Context, tx: Transaction, channel_id: int) -> None:
    table = tables.exceptions
    held = sa.and_(table.c.integration_id == channel_id, table.c.state == "held")
    unknown = tx.execute(
        sa.update(table)
        .where(held, table.c.unknown_since.is_not(None))
        .values(state="dead", reason=OUTCOME_UNKNOWN, at=context.now())
    ).rowcount
    gone = tx.execute(sa.delete(table).where(held)).rowcount
    context.store.count(tx, channel_id, "dead", {OUTCOME_UNKNOWN: unknown})
    context.store.count(tx, channel_id, "skipped", {CANCELLED: gone})
