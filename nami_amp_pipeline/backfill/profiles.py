"""Keeps profiles from being turned back: what became history before it was posted is flagged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.stages.held_history import flag_held
from nami_amp_pipeline.stages.history import FLAG, can_be_flagged, flagged, is_history
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.state.users import read_sent

USER: Final = "u:"
"""What the identity of a user begins with; their id in Amplitude follows."""


def flag_history(context: Context, backfill: Backfill, integration: Integration, lease: Lease) -> None:
    """Flags what a backfill is about to post and what is older than the state that live delivery sent since.

    Also what a request may have carried: if that was stored, Amplitude drops the repeat, whatever it holds; and if not,
    it must not overwrite the profile now.

    Args:
        context: the process at work.
        backfill: that is running.
        integration: that it belongs to, as it is now.
        lease: of the integration: its sent states stay as they are.
    """
    if backfill.compared_through == integration.prepared_through:
        return
    boxes = tables.outboxes
    open_boxes = sa.select(boxes).where(boxes.c.integration_id == backfill.channel_id, boxes.c.done_at.is_(None))
    with context.store.reading() as tx:
        found = tx.execute(open_boxes).all()
    swaps = {box.id: name for box in found if (name := _rewritten(context, box, integration.id)) is not None}
    context.folder.publish(swaps.values())
    context.step("backfill.flag")
    with context.store.begin(under=[lease]) as tx:
        for box_id, name in swaps.items():
            tx.execute(sa.update(boxes).where(boxes.c.id == box_id).values(file=name))
        flag_held(context.store, tx, backfill.channel_id, profiles_of=integration.id, maybe_stored=True)
        backfills.note(tx, backfill.id, compared_through=integration.prepared_through)
    for box in found:
        if box.id in swaps:
            context.folder.remove(box.file)
    context.step("backfill.flagged")


def _rewritten(context: Context, box: Any, profiles_of: int) -> str | None:
    """The outbox with the flags that it lacks, as a new file; None if it lacks none."""
    lanes = tables.lanes
    with context.store.reading() as tx:
        rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == box.id)).all()
        reader = context.folder.open_ipc(box.file)
        first = rows_from(rows, lambda lane: lane.next_row)
        changes = {
            number: flags
            for number, (row, _) in first.items()
            if (flags := list(_history_in(context, tx, reader.get_batch(number), row, profiles_of)))
        }
    if not changes:
        return None
    name = context.folder.new_name("outboxes", "arrow")
    with context.folder.ipc(name, reader.schema, compression=context.folder.short_lived) as writer:
        for number in range(reader.num_record_batches):
            writer.write_batch(_with_flags(reader.get_batch(number), changes.get(number, ())))
    return name


def rows_from(lanes: Sequence[Any], first: Callable[[Any], int]) -> dict[int, tuple[int, int]]:
    """The record batches of lanes from some row on.

    Args:
        lanes: rows of ``lanes``.
        first: the first row of a lane that matters.

    Returns:
        Record batch to the first of its rows that matters, and to the row of the lane with which the batch begins.
    """
    found: dict[int, tuple[int, int]] = {}
    for lane in lanes:
        begin = first(lane)
        for place in range(-(-lane.rows // LANE_BATCH_ROWS)):
            start = place * LANE_BATCH_ROWS
            if start + LANE_BATCH_ROWS > begin:
                found[lane.batch + place] = max(0, begin - start), start
    return found


def _history_in(
    context: Context, tx: Transaction, batch: pa.RecordBatch, first: int, profiles_of: int
) -> Iterator[int]:
    """The rows of a record batch from ``first`` on that are history now and not flagged."""
    identities = batch["identity"].to_pylist()
    users = {text.removeprefix(USER) for text in identities[first:] if (text or "").startswith(USER)}
    sent = {user: (date, event) for user, date, event in read_sent(context.store, tx, profiles_of, sorted(users))}
    created, ids = batch["created_date"].cast(pa.int64()).to_pylist(), batch["id"].to_pylist()
    types = batch["event_type"].to_pylist()
    for row in range(first, batch.num_rows):
        newest = sent.get((identities[row] or "").removeprefix(USER)) if identities[row] else None
        if newest is None or not identities[row].startswith(USER) or not contract.carries_state(types[row]):
            continue
        body = batch["body"][row].as_py()
        if is_history(newest, (created[row], ids[row])) and FLAG not in body and can_be_flagged(body):
            yield row


def _with_flags(batch: pa.RecordBatch, rows: Sequence[int]) -> pa.RecordBatch:
    if not rows:
        return batch
    bodies = batch["body"].to_pylist()
    for row in rows:
        bodies[row] = flagged(bodies[row])
    at = batch.schema.get_field_index("body")
    return batch.set_column(at, batch.schema.field(at), pa.array(bodies, pa.string()))
