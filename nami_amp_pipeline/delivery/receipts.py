"""Receipts: one row per event of a finished outbox with its end state, request and run; then the outbox can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease

RECEIPT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("identity", pa.string()),
        ("created_date", pa.timestamp("us", tz="UTC")),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("request_id", pa.int64()),
    ]
)
"""Columns of a receipts file (Parquet). ``state`` is delivered, skipped, dead, held or waiting; what is held, waiting
or dead may have changed since: the store's ``exceptions`` win. ``request_id`` is of the store's ``requests``."""


def finish_outbox(context: Context, outbox_id: int, lease: Lease) -> None:
    """Writes the receipts of a done outbox, and removes its file when all its integrations are done."""
    boxes, lanes, requests, exceptions = tables.outboxes, tables.lanes, tables.requests, tables.exceptions
    with context.store.reading() as tx:  # neither waits for the recording of answers nor blocks it
        box = tx.execute(sa.select(boxes).where(boxes.c.id == outbox_id)).one()
        if box.done_at is not None:  # a transaction that seemed to fail has written them
            return
        lane_rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == outbox_id).order_by(lanes.c.id)).all()
        ids = [lane.id for lane in lane_rows]
        posted = tx.execute(
            sa.select(requests.c.id, requests.c.lane_id, requests.c.first_row, requests.c.end_row)
            .where(requests.c.lane_id.in_(ids), requests.c.outcome == "delivered")
            .order_by(requests.c.id)
        ).all()
        others = tx.execute(
            sa.select(
                exceptions.c.lane_id,
                exceptions.c.lane_row,
                exceptions.c.state,
                exceptions.c.reason,
                exceptions.c.request_id,
            ).where(exceptions.c.lane_id.in_(ids))
        ).all()
    requests_of: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for request in posted:
        requests_of[request.lane_id].append((request.id, request.first_row, request.end_row))
    others_of: dict[int, list[Any]] = defaultdict(list)
    for other in others:
        others_of[other.lane_id].append(other)
    name = context.folder.new_name("receipts", "parquet")
    try:
        reader = context.folder.open_ipc(box.file)
        parts = [
            part for lane in lane_rows for part in _of_lane(reader, lane, requests_of[lane.id], others_of[lane.id])
        ]
        left = box.rows - sum(lane.rows for lane in lane_rows)
        number = box.others_batch
        while left > 0:
            batch = reader.get_batch(number)
            parts.append(_receipts(batch, batch["state"], batch["reason"], pa.nulls(batch.num_rows, pa.int64())))
            left -= batch.num_rows
            number += 1
        with context.folder.parquet(name, RECEIPT_SCHEMA) as writer:
            writer.write_table(pa.Table.from_batches(parts, RECEIPT_SCHEMA))
    except (OSError, pa.ArrowException) as error:
        raise Blocked(f"the receipts of {box.file} cannot be written: {type(error).__name__}") from None
    context.step("receipts.commit")
    with context.store.begin() as tx:
        # Do not renew here: the posting loop counts the renewals to learn whether its commit succeeded.
        context.store.check(tx, lease)
        tx.execute(sa.update(boxes).where(boxes.c.id == outbox_id).values(done_at=context.now(), receipts_file=name))
        open_boxes = tx.execute(
            sa.select(sa.func.count()).where(boxes.c.file == box.file, boxes.c.done_at.is_(None))
        ).scalar_one()
    if not open_boxes:
        context.folder.remove(box.file)
    context.step("receipts.committed")


def _of_lane(
    reader: pa.RecordBatchFileReader, lane: Any, posted: Sequence[tuple[int, int, int]], others: Sequence[Any]
) -> Iterator[pa.RecordBatch]:
    request_ids = np.zeros(lane.rows, dtype=np.int64)
    for request_id, first, end in posted:
        request_ids[first:end] = request_id
    states, reasons = pa.repeat("delivered", lane.rows), pa.nulls(lane.rows, pa.string())
    if others:
        texts: list[str | None] = [None] * lane.rows
        ends = ["delivered"] * lane.rows
        for other in others:
            ends[other.lane_row] = other.state
            texts[other.lane_row] = other.reason if other.state != "delivered" else None
            request_ids[other.lane_row] = other.request_id or 0
        states, reasons = pa.array(ends, pa.string()), pa.array(texts, pa.string())
    numbers = pa.array(request_ids, mask=request_ids == 0)
    for start in range(0, lane.rows, LANE_BATCH_ROWS):
        batch = reader.get_batch(lane.batch + start // LANE_BATCH_ROWS)
        yield _receipts(batch, *(column.slice(start, batch.num_rows) for column in (states, reasons, numbers)))


def _receipts(batch: pa.RecordBatch, states: pa.Array, reasons: pa.Array, request_ids: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            batch["id"],
            batch["event_type"],
            batch["user_id"],
            batch["identity"],
            batch["created_date"],
            states,
            reasons,
            request_ids,
        ],
        schema=RECEIPT_SCHEMA,
    )
