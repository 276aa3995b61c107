"""Gives up the lost outbox of a backfill or an identify: its events are set aside, and the next one sends them."""

from __future__ import annotations

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.rebuild import LOST_FILE, left_in
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.store import Lease


def set_aside(context: Context, backfill: Backfill, outbox_id: int, lease: Lease) -> None:
    """Ends a lost outbox. What of it was delivered stays so, and the rest counts as skipped.

    The rows of a backfill are in no segment, so their bytes cannot be made again. What is held of the outbox has its
    bytes in the store, and is posted when the backfill is resumed.

    Args:
        context: the process at work.
        backfill: whose outbox it is.
        outbox_id: of the store.
        lease: of the integration.

    Raises:
        LostLease: another process works for the integration.
    """
    boxes, lanes, table, sent = tables.outboxes, tables.lanes, tables.exceptions, tables.sent_states
    context.step("repair.aside")
    with context.store.begin(under=[lease]) as tx:
        mine = sa.select(boxes.c.id).where(boxes.c.id == outbox_id, boxes.c.done_at.is_(None))
        if tx.execute(mine).first() is None:
            return
        left = left_in(tx, outbox_id)
        of_box = table.c.lane_id.in_(sa.select(lanes.c.id).where(lanes.c.outbox_id == outbox_id))
        tx.execute(sa.update(table).where(of_box).values(lane_id=None, lane_row=None))
        tx.execute(sa.delete(boxes).where(boxes.c.id == outbox_id))
        context.store.count(tx, backfill.channel_id, "skipped", {LOST_FILE: left.rows - left.delivered})
        if backfill.kind == "identify":
            # Whom the file had states for is not known any more: the next identify gives everybody theirs once more.
            tx.execute(sa.update(sent).where(sent.c.integration_id == backfill.integration_id).values(identify_id=None))


def what_to_do(backfill: Backfill) -> str:
    """How its events are sent after all, in a line."""
    again = f"nami-amp identify {backfill.integration}"
    if backfill.kind == "backfill":
        again = (
            f"nami-amp backfill {backfill.integration} --from {to_text(backfill.since)} --to {to_text(backfill.until)}"
        )
        again += " --by ingested_at" if backfill.by == "ingested_at" else ""
        again += f" --events {','.join(backfill.patterns)}" if backfill.patterns else ""
    return (
        f"counts its events as skipped (lost_file); then 'nami-amp backfills resume {backfill.id}', and after it, "
        f"within 6 days of its start, '{again}' sends them"
    )
