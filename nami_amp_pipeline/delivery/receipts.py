"""Receipts: one row per event of a finished outbox with its end state, request and run; then the outbox can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.destination import Destination
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease, Transaction

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
or dead may have changed since: the store's ``exceptions`` win. ``request_id`` is of the store's ``requests``. A
destination adds the columns of its fingerprints; files of older versions lack them."""


_PORTION_ROWS = 20 * LANE_BATCH_ROWS
"""Rows whose receipts are made at once: one user may have a million events in an outbox."""


_Rows = tuple[pa.RecordBatch, pa.Array]
"""Receipts, and the bodies that were posted."""


@dataclass(frozen=True)
class _Span:
    """Rows of a lane (start, end), and the requests (id, first row, end) that delivered rows of that lane."""

    lane: Any
    start: int
    end: int
    posted: Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class _Outbox:
    """An outbox as the store has it: its row, and the spans of its lanes."""

    box: Any
    spans: Sequence[_Span]

    @property
    def posted_rows(self) -> int:
        """How many of its rows are in lanes."""
        return sum(span.end - span.start for span in self.spans)


def finish_outbox(context: Context, outbox_id: int, lease: Lease, destination: Destination | None = None) -> None:
    """Writes the receipts of a done outbox, and removes its file when all its integrations are done.

    Args:
        context: the process at work.
        outbox_id: of the store.
        lease: of its integration.
        destination: whose fingerprints of the events stand in the receipts; without it there are none.
    """
    boxes = tables.outboxes
    with context.store.reading() as tx:  # neither waits for the recording of answers nor blocks it
        box = tx.execute(sa.select(boxes).where(boxes.c.id == outbox_id)).one()
        if box.done_at is not None:  # a transaction that seemed to fail has written them
            return
        outbox = _Outbox(box, _spans(tx, outbox_id))
    name = context.folder.new_name("receipts", "parquet")
    try:
        parts = _receipts(context, outbox, destination)
        first = next(parts, RECEIPT_SCHEMA.empty_table())
        with context.folder.parquet(name, first.schema) as writer:
            for part in chain([first], parts):
                writer.write_table(part)
    except (OSError, pa.ArrowException) as error:
        raise Blocked(f"the receipts of {box.file} cannot be written: {type(error).__name__}") from None
    context.folder.publish([name])
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


def receipts_so_far(context: Context, outbox_id: int, destination: Destination | None = None) -> Iterator[pa.Table]:
    """What the receipts of an open outbox would be; ``state`` is send of what has no end yet.

    Args:
        context: the process at work.
        outbox_id: of the store.
        destination: as :func:`finish_outbox` takes it.

    Yields:
        Parts of it; none if it was finished or removed meanwhile.

    Raises:
        Blocked: its file cannot be read.
    """
    boxes = tables.outboxes
    with context.store.reading() as tx:
        box = tx.execute(sa.select(boxes).where(boxes.c.id == outbox_id, boxes.c.done_at.is_(None))).one_or_none()
        if box is None:
            return
        outbox = _Outbox(box, _spans(tx, outbox_id))
    try:
        yield from _receipts(context, outbox, destination)
    except (OSError, pa.ArrowException) as error:
        raise Blocked(f"outbox {box.file} cannot be read: {type(error).__name__}") from None


def _spans(tx: Transaction, outbox_id: int) -> list[_Span]:
    lanes, requests = tables.lanes, tables.requests
    lane_rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == outbox_id).order_by(lanes.c.id)).all()
    posted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for request in tx.execute(
        sa.select(requests.c.id, requests.c.lane_id, requests.c.first_row, requests.c.end_row)
        .where(requests.c.lane_id.in_([lane.id for lane in lane_rows]), requests.c.outcome == "delivered")
        .order_by(requests.c.id)
    ):
        posted[request.lane_id].append((request.id, request.first_row, request.end_row))
    return [
        _Span(lane, start, min(start + _PORTION_ROWS, lane.rows), posted[lane.id])
        for lane in lane_rows
        for start in range(0, lane.rows, _PORTION_ROWS)
    ]


def _receipts(context: Context, outbox: _Outbox, destination: Destination | None) -> Iterator[pa.Table]:
    """The rows of a receipts file in portions, in the order of the outbox."""
    reader = context.folder.open_ipc(outbox.box.file)
    for rows in chain(_of_lanes(context, reader, outbox.spans), _of_others(reader, outbox)):
        receipts = pa.Table.from_batches([batch for batch, _ in rows], RECEIPT_SCHEMA)
        if destination is None:
            yield receipts
            continue
        added = destination.fingerprints(pa.chunked_array([bodies for _, bodies in rows], pa.string()))
        schema = pa.schema([*RECEIPT_SCHEMA, *added.schema], metadata=added.schema.metadata)
        yield pa.table([*receipts.columns, *added.columns], schema=schema)


def _of_lanes(context: Context, reader: pa.RecordBatchFileReader, spans: Sequence[_Span]) -> Iterator[list[_Rows]]:
    """The receipts of the posted rows, about :data:`_PORTION_ROWS` at a time."""
    exceptions = tables.exceptions
    for portion in _portions(spans):
        others: dict[int, list[Any]] = defaultdict(list)
        columns = (exceptions.c[name] for name in ("lane_id", "lane_row", "state", "reason", "request_id"))
        with context.store.reading() as tx:
            for other in tx.execute(sa.select(*columns).where(sa.or_(*map(_is_in, portion)))):
                others[other.lane_id].append(other)
        yield [batch for span in portion for batch in _of_span(reader, span, others[span.lane.id])]


def _is_in(span: _Span) -> sa.ColumnElement[bool]:
    row = tables.exceptions.c.lane_row
    return sa.and_(tables.exceptions.c.lane_id == span.lane.id, row >= span.start, row < span.end)


def _portions(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    portion: list[_Span] = []
    rows = 0
    for span in spans:
        more = span.end - span.start
        if portion and rows + more > _PORTION_ROWS:
            yield portion
            portion, rows = [], 0
        portion.append(span)
        rows += more
    if portion:
        yield portion


def _of_span(reader: pa.RecordBatchFileReader, span: _Span, others: Sequence[Any]) -> Iterator[_Rows]:
    first_row, rows = span.start, span.end - span.start
    request_ids = np.zeros(rows, dtype=np.int64)
    for request_id, first, end in span.posted:
        if first < span.end and end > first_row:
            request_ids[max(0, first - first_row) : end - first_row] = request_id
    states, reasons = pa.repeat("delivered", rows), pa.nulls(rows, pa.string())
    done = min(max(span.lane.next_row - first_row, 0), rows)
    if others or done < rows:
        texts: list[str | None] = [None] * rows
        ends = ["delivered"] * done + ["send"] * (rows - done)
        for other in others:
            row = other.lane_row - first_row
            ends[row] = other.state
            texts[row] = other.reason if other.state != "delivered" else None
            request_ids[row] = other.request_id or 0
        states, reasons = pa.array(ends, pa.string()), pa.array(texts, pa.string())
    numbers = pa.array(request_ids, mask=request_ids == 0)
    for start in range(0, rows, LANE_BATCH_ROWS):
        # Of a cancelled backfill a lane may end before its last record batch does.
        batch = reader.get_batch(span.lane.batch + (first_row + start) // LANE_BATCH_ROWS).slice(0, rows - start)
        columns = (column.slice(start, batch.num_rows) for column in (states, reasons, numbers))
        yield _rows(batch, *columns), batch["body"]


def _of_others(reader: pa.RecordBatchFileReader, outbox: _Outbox) -> Iterator[list[_Rows]]:
    """The receipts of the rows that are not posted."""
    left = outbox.box.rows - outbox.posted_rows
    number = outbox.box.others_batch
    while left > 0:
        batch = reader.get_batch(number)
        receipts = _rows(batch, batch["state"], batch["reason"], pa.nulls(batch.num_rows, pa.int64()))
        yield [(receipts, pa.nulls(batch.num_rows, pa.string()))]
        left -= batch.num_rows
        number += 1


def _rows(batch: pa.RecordBatch, states: pa.Array, reasons: pa.Array, request_ids: pa.Array) -> pa.RecordBatch:
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
