"""Keeps profiles from being turned back by an identify: what became old before it was posted is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.backfill.profiles import USER, rows_from
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.rows_aside import rows_aside
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.state.users import read_sent_states

SUPERSEDED: Final = "superseded"
"""Why an event of an identify is skipped: an event of its user has newer state, and was or will be sent."""


def leave_out_superseded(context: Context, backfill: Backfill, integration: Integration, lease: Lease) -> None:
    """Skips what an identify is about to post of users whom live delivery has sent newer state since.

    Also what may be stored already: sent once more, it would turn back the profile if it was not.

    Args:
        context: the process at work.
        backfill: an identify that is running.
        integration: that it belongs to, as it is now.
        lease: of the integration: its sent states stay as they are.
    """
    if backfill.compared_through == integration.prepared_through:
        return
    boxes, lanes, table = tables.outboxes, tables.lanes, tables.exceptions
    context.step("backfill.flag")
    with context.store.begin(under=[lease]) as tx:
        open_boxes = sa.select(boxes).where(boxes.c.integration_id == backfill.channel_id, boxes.c.done_at.is_(None))
        skipped = 0
        for box in tx.execute(open_boxes).all():
            rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == box.id)).all()
            aside = rows_aside(tx, lanes.c.outbox_id == box.id)
            reader = context.folder.open_ipc(box.file)
            for lane in rows:
                old = list(_superseded(context, tx, reader, lane, aside.get(lane.id, set()), integration.id))
                same = {"integration_id": backfill.channel_id, "segment_id": box.segment_id, "lane_id": lane.id}
                skipped += len(old)
                if old:
                    tx.execute(sa.insert(table), [{**same, **_skipped(context), **row} for row in old])
        skipped += _skip_held(context, tx, backfill.channel_id, integration.id)
        context.store.count(tx, backfill.channel_id, "skipped", {SUPERSEDED: skipped})
        backfills.note(tx, backfill.id, compared_through=integration.prepared_through)
    context.step("backfill.flagged")


def _skipped(context: Context) -> dict[str, Any]:
    return {"state": "skipped", "reason": SUPERSEDED, "run_id": context.run_id, "at": context.now()}


def _superseded(
    context: Context, tx: Transaction, reader: pa.RecordBatchFileReader, lane: Any, aside: set[int], profiles_of: int
) -> Iterator[dict[str, Any]]:
    """The rows of a lane without an end whose user has newer state, as columns of ``exceptions``."""
    for number, (first, base) in rows_from([lane], lambda lane: lane.next_row).items():
        batch = reader.get_batch(number)
        rows = batch.select(["id", "event_type", "user_id", "identity"]).slice(first).to_pylist()
        created = batch["created_date"].slice(first).cast(pa.int64()).to_pylist()
        given = _given(context, tx, profiles_of, [row["identity"] for row in rows])
        for place, (row, at) in enumerate(zip(rows, created, strict=True), base + first):
            if place >= lane.rows or place in aside or given.get(row["identity"]) == (row["id"], at):
                continue
            event_id = row.pop("id")
            yield {**row, "event_id": event_id, "created_date": at, "lane_row": place}


def _skip_held(context: Context, tx: Transaction, channel_id: int, profiles_of: int) -> int:
    table = tables.exceptions
    held = tx.execute(
        sa.select(table.c.id, table.c.event_id, table.c.identity, table.c.created_date).where(
            table.c.integration_id == channel_id, table.c.state == "held"
        )
    ).all()
    given = _given(context, tx, profiles_of, [row.identity for row in held])
    old = [row.id for row in held if given.get(row.identity) != (row.event_id, row.created_date)]
    for start in range(0, len(old), 500):
        which = table.c.id.in_(old[start : start + 500])
        tx.execute(sa.update(table).where(which).values(**_skipped(context), unknown_since=None))
    return len(old)


def _given(context: Context, tx: Transaction, profiles_of: int, identities: list[str]) -> dict[str, tuple[str, int]]:
    """By identity: which identify gave a user its newest state, and as of when."""
    users = sorted({identity.removeprefix(USER) for identity in identities})
    rows = read_sent_states(context.store, tx, profiles_of, users).to_pylist()
    return {USER + row["user_id"]: (row["identify_id"], row["as_of_date"]) for row in rows}
