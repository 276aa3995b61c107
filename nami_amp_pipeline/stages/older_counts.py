"""Counts by hour what is older than such counts: from receipts, the newest first, a second of each micro-batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import hourly_counts, tables
from nami_amp_pipeline.state.hourly_counts import HOUR, KEPT_HOURS, End, Tally, hour_of
from nami_amp_pipeline.state.store import Lease, Transaction

SECONDS: Final = 1.0
"""A micro-batch spends so long on it, until all of it is done."""

_COLUMNS: Final = ["id", "event_type", "state"]

# A held event without a record of its own was delivered, and that record is past its retention. One that waited for a
# login and has no record any more is in a later outbox.
_ENDS: Final[Mapping[str, tuple[End, ...]]] = {
    "delivered": ("captured", "delivered"),
    "skipped": ("captured", "skipped"),
    "dead": ("captured", "dead"),
    "held": ("captured", "delivered"),
    "waiting": (),
}

_KNOWN_ENDS: Final[Mapping[str, tuple[End, ...]]] = {
    "delivered": ("captured", "delivered"),
    "dead": ("captured", "dead"),
    "held": ("captured",),
    "waiting": ("captured",),
}


def count_older(context: Context, leases: Mapping[int, Lease]) -> int:
    """Counts outboxes of integrations that are older than counts by hour; returns how many.

    Args:
        context: the process at work.
        leases: by integration id.
    """
    table = tables.integrations
    with context.store.reading() as tx:
        older = sa.select(table.c.id).where(table.c.counted_since.is_not(None), table.c.backfill_of.is_(None))
        ids = sorted(set(tx.execute(older).scalars()) & leases.keys())
    until = context.monotonic() + SECONDS
    done = 0
    for integration_id in ids:
        while context.monotonic() < until and _count_next(context, integration_id, leases[integration_id]):
            done += 1
    return done


def _count_next(context: Context, integration_id: int, lease: Lease) -> bool:
    """Counts the newest outbox that is not counted; False if there is none."""
    boxes, segments, integrations = tables.outboxes, tables.segments, tables.integrations
    since = hour_of(context.now()) - KEPT_HOURS * HOUR
    left = sa.and_(boxes.c.integration_id == integration_id, boxes.c.hour.is_(None), boxes.c.prepared_at >= since)
    query = (
        sa.select(boxes.c.id, boxes.c.receipts_file, boxes.c.prepared_at, segments.c.captured_at)
        .outerjoin(segments, segments.c.id == boxes.c.segment_id)
        .where(left, boxes.c.done_at.is_not(None))
        .order_by(boxes.c.id.desc())
        .limit(1)
    )
    mine = integrations.c.id == integration_id
    with context.store.begin(under=[lease]) as tx:
        box = tx.execute(query).one_or_none()
        if box is None:
            if tx.execute(sa.select(boxes.c.id).where(left).limit(1)).first() is None:
                tx.execute(sa.update(integrations).where(mine).values(counted_since=None))
            return False
        hour = hour_of(box.prepared_at if box.captured_at is None else box.captured_at)
        _count(context, tx, integration_id, box, hour)
        tx.execute(sa.update(boxes).where(boxes.c.id == box.id).values(hour=hour))
        earlier = integrations.c.counted_since > hour
        tx.execute(sa.update(integrations).where(mine, earlier).values(counted_since=hour))
    return True


def _count(context: Context, tx: Transaction, integration_id: int, box: Any, hour: int) -> None:
    path = None if box.receipts_file is None else context.folder.fetch(box.receipts_file)
    if path is None or not path.exists():
        return  # nobody knows any more
    receipts = pq.read_table(path, columns=_COLUMNS)
    table = tables.exceptions
    columns = sa.select(table.c.id, table.c.event_id, table.c.state, table.c.hour)
    known = {row.event_id: row for row in tx.execute(columns.where(table.c.integration_id == integration_id))}
    is_known = pc.is_in(receipts["id"], value_set=pa.array(list(known), pa.string()))
    tally: Tally = Counter()
    plain = receipts.filter(pc.invert(is_known)).group_by(["event_type", "state"]).aggregate([([], "count_all")])
    for row in plain.to_pylist():
        for end in _ENDS[row["state"]]:
            tally[hour, row["event_type"], end] += row["count_all"]
    numbers = []
    for row in receipts.filter(is_known).to_pylist():
        exception = known[row["id"]]
        if exception.hour is not None or (exception.state == "waiting") != (row["state"] == "waiting"):
            continue  # it counts elsewhere
        numbers.append(exception.id)
        for end in _KNOWN_ENDS[exception.state]:
            tally[hour, row["event_type"], end] += 1
    hourly_counts.add(context.store, tx, integration_id, tally)
    for start in range(0, len(numbers), 500):
        tx.execute(sa.update(table).where(table.c.id.in_(numbers[start : start + 500])).values(hour=hour))
