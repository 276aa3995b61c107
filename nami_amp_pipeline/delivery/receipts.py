"""Receipts: one row per event of a finished outbox with its end state, request and run; then the outbox can go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.destination import Destination
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.errors import Blocked, FilesUnavailable, StoreUnavailable
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.portions import portions
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.storage.data_folder import Together

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


_MOST_NAMED = 1_000
"""Lanes in one statement."""

_Rows = tuple[pa.RecordBatch, pa.Array]
"""Receipts, and the bodies that were posted."""

_RowsOf = tuple[int, pa.RecordBatch, pa.Array]
"""The same behind the id of their outbox."""


@dataclass(frozen=True)
class Ending:
    """An outbox that is done, and what is needed to finish it.

    Attributes:
        outbox_id: of the store.
        lease: of its integration.
        destination: whose fingerprints of the events stand in the receipts; without it there are none.
    """

    outbox_id: int
    lease: Lease
    destination: Destination | None = None


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
        outbox_id: see :class:`Ending`.
        lease: as there.
        destination: as there.
    """
    _finish(context, [Ending(outbox_id, lease, destination)])


def finish_outboxes(context: Context, endings: Sequence[Ending]) -> dict[int, Exception]:
    """Does for many outboxes what :func:`finish_outbox` does for one, in one transaction.

    Returns:
        By outbox id, why it could not be finished: the others are.
    """
    try:
        _finish(context, endings)
    except (StoreUnavailable, FilesUnavailable) as error:
        return {ending.outbox_id: error for ending in endings}
    except Exception as error:  # noqa: BLE001 - whoever asked is told
        if len(endings) == 1:
            return {endings[0].outbox_id: error}
        failed: dict[int, Exception] = {}
        for ending in endings:  # one of them is to blame, or some
            failed |= finish_outboxes(context, [ending])
        return failed
    return {}


def _finish(context: Context, endings: Sequence[Ending]) -> None:
    with context.store.reading() as tx:  # neither waits for the recording of answers nor blocks it
        outboxes = _outboxes(tx, [ending.outbox_id for ending in endings])
    endings = [ending for ending in endings if ending.outbox_id in outboxes]
    readers: dict[str, pa.RecordBatchFileReader] = {}
    names: dict[int, str] = {}
    with context.folder.together() as files:
        for some in _alike(endings, outboxes):
            mine = [outboxes[ending.outbox_id] for ending in some]
            names.update(_write(context, mine, some[0].destination, readers, files))
    if not names:
        return
    context.folder.publish(list(names.values()))
    context.step("receipts.commit")
    boxes = tables.outboxes
    with context.store.begin() as tx:
        # Do not renew here: the posting loop counts the renewals to learn whether its commit succeeded.
        context.store.check(tx, [ending.lease for ending in endings])
        now = context.now()
        done = [{"id": number, "done_at": now, "receipts_file": name} for number, name in names.items()]
        context.store.change(tx, boxes, done, "id")
        files_done = {outbox.box.file for outbox in outboxes.values()}
        still_open = sa.select(boxes.c.file).where(boxes.c.file.in_(files_done), boxes.c.done_at.is_(None)).distinct()
        files_done -= set(tx.execute(still_open).scalars())
    for file in files_done:
        context.folder.remove(file)
    context.step("receipts.committed")


def _outboxes(tx: Transaction, ids: Sequence[int]) -> dict[int, _Outbox]:
    """Those that are not finished yet: a transaction that seemed to fail may have written their receipts."""
    boxes = tables.outboxes
    found = tx.execute(sa.select(boxes).where(boxes.c.id.in_(ids), boxes.c.done_at.is_(None))).all()
    spans = _spans(tx, [box.id for box in found])
    return {box.id: _Outbox(box, spans[box.id]) for box in found}


def _alike(endings: Sequence[Ending], outboxes: Mapping[int, _Outbox]) -> Iterator[list[Ending]]:
    """Those of one destination, with few rows together: they have their receipts made at once."""
    some: list[Ending] = []
    rows = 0
    for ending in endings:
        more = outboxes[ending.outbox_id].box.rows
        if some and (rows + more > _PORTION_ROWS or ending.destination is not some[0].destination):
            yield some
            some, rows = [], 0
        some.append(ending)
        rows += more
    if some:
        yield some


def _write(
    context: Context,
    outboxes: Sequence[_Outbox],
    destination: Destination | None,
    readers: dict[str, pa.RecordBatchFileReader],
    files: Together,
) -> dict[int, str]:
    """Writes a receipts file for each of these outboxes; returns the names by outbox id."""
    names = {outbox.box.id: context.folder.new_name("receipts", "parquet") for outbox in outboxes}
    file = outboxes[0].box.file
    try:
        parts = _receipts(context, outboxes, destination, readers)
        for outbox_id, of_it in groupby(parts, key=itemgetter(0)):
            (_, first), *_ = head = [next(of_it)]
            with context.folder.parquet(names[outbox_id], first.schema, among=files) as writer:
                for _, part in chain(head, of_it):
                    writer.write_table(part)
    except (OSError, pa.ArrowException) as error:
        raise Blocked(f"the receipts of {file} cannot be written: {type(error).__name__}") from None
    return names


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
        outbox = _Outbox(box, _spans(tx, [outbox_id])[outbox_id])
    try:
        for _, part in _receipts(context, [outbox], destination, {}):
            yield part
    except (OSError, pa.ArrowException) as error:
        raise Blocked(f"outbox {box.file} cannot be read: {type(error).__name__}") from None


def _spans(tx: Transaction, outbox_ids: Sequence[int]) -> dict[int, list[_Span]]:
    """The spans of each of these outboxes."""
    lanes, requests = tables.lanes, tables.requests
    lane_rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id.in_(outbox_ids)).order_by(lanes.c.id)).all()
    posted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for some in portions([lane.id for lane in lane_rows], _MOST_NAMED):
        for request in tx.execute(
            sa.select(requests.c.id, requests.c.lane_id, requests.c.first_row, requests.c.end_row)
            .where(requests.c.lane_id.in_(some), requests.c.outcome == "delivered")
            .order_by(requests.c.id)
        ):
            posted[request.lane_id].append((request.id, request.first_row, request.end_row))
    found: dict[int, list[_Span]] = {outbox_id: [] for outbox_id in outbox_ids}
    for lane in lane_rows:
        found[lane.outbox_id] += [
            _Span(lane, start, min(start + _PORTION_ROWS, lane.rows), posted[lane.id])
            for start in range(0, lane.rows, _PORTION_ROWS)
        ]
    return found


def _receipts(
    context: Context,
    outboxes: Sequence[_Outbox],
    destination: Destination | None,
    readers: dict[str, pa.RecordBatchFileReader],
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of receipts files in portions, with the id of their outbox, in its order; all of an outbox together."""
    for outbox in outboxes:
        if outbox.box.file not in readers:
            readers[outbox.box.file] = context.folder.open_ipc(outbox.box.file)
    portions: Iterable[list[_RowsOf]] = chain(_of_lanes(context, readers, outboxes), _of_others(readers, outboxes))
    if len(outboxes) > 1:
        place = {outbox.box.id: number for number, outbox in enumerate(outboxes)}
        portions = [sorted(chain.from_iterable(portions), key=lambda rows: place[rows[0]])]
    for rows in portions:
        yield from _tables(rows, destination)


def _tables(rows: Sequence[_RowsOf], destination: Destination | None) -> Iterator[tuple[int, pa.Table]]:
    """The receipts of each outbox, with the fingerprints of what was posted."""
    receipts = pa.Table.from_batches([batch for _, batch, _ in rows], RECEIPT_SCHEMA)
    if destination is not None:
        added = destination.fingerprints(pa.chunked_array([bodies for _, _, bodies in rows], pa.string()))
        schema = pa.schema([*RECEIPT_SCHEMA, *added.schema], metadata=added.schema.metadata)
        receipts = pa.table([*receipts.columns, *added.columns], schema=schema)
    start = 0
    for outbox_id, of_it in groupby(rows, key=itemgetter(0)):
        length = sum(batch.num_rows for _, batch, _ in of_it)
        yield outbox_id, receipts.slice(start, length)
        start += length


def _of_lanes(
    context: Context, readers: Mapping[str, pa.RecordBatchFileReader], outboxes: Sequence[_Outbox]
) -> Iterator[list[_RowsOf]]:
    """The receipts of the posted rows, about :data:`_PORTION_ROWS` at a time."""
    exceptions = tables.exceptions
    for portion in _portions([(outbox, span) for outbox in outboxes for span in outbox.spans]):
        others: dict[int, list[Any]] = defaultdict(list)
        columns = [exceptions.c[name] for name in ("lane_id", "lane_row", "state", "reason", "request_id")]
        query = sa.select(*columns)
        with context.store.reading() as tx:
            for some in portions([span for _, span in portion], _MOST_NAMED):
                for other in tx.execute(query.where(_is_in(some))):
                    others[other.lane_id].append(other)
        found: list[_RowsOf] = []
        for outbox, span in portion:
            in_span = [other for other in others[span.lane.id] if span.start <= other.lane_row < span.end]
            found += [(outbox.box.id, *rows) for rows in _of_span(readers[outbox.box.file], span, in_span)]
        yield found


def _is_in(spans: Sequence[_Span]) -> sa.ColumnElement[bool]:
    """Exceptions of rows of lanes; of a lane that is not whole, only those within."""
    lane_id, row = tables.exceptions.c.lane_id, tables.exceptions.c.lane_row
    if len(spans) == 1:
        return sa.and_(lane_id == spans[0].lane.id, row >= spans[0].start, row < spans[0].end)
    return sa.and_(lane_id.in_([span.lane.id for span in spans]), row.is_not(None))


def _portions(spans: Sequence[tuple[_Outbox, _Span]]) -> Iterator[list[tuple[_Outbox, _Span]]]:
    portion: list[tuple[_Outbox, _Span]] = []
    rows = 0
    for outbox, span in spans:
        more = span.end - span.start
        if portion and rows + more > _PORTION_ROWS:
            yield portion
            portion, rows = [], 0
        portion.append((outbox, span))
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


def _of_others(readers: Mapping[str, pa.RecordBatchFileReader], outboxes: Sequence[_Outbox]) -> Iterator[list[_RowsOf]]:
    """The receipts of the rows that are not posted; of an outbox without any rows, none of them."""
    for outbox in outboxes:
        if not outbox.box.rows:
            yield [(outbox.box.id, pa.RecordBatch.from_pylist([], RECEIPT_SCHEMA), pa.nulls(0, pa.string()))]
        left = outbox.box.rows - outbox.posted_rows
        number = outbox.box.others_batch
        while left > 0:
            batch = readers[outbox.box.file].get_batch(number)
            receipts = _rows(batch, batch["state"], batch["reason"], pa.nulls(batch.num_rows, pa.int64()))
            yield [(outbox.box.id, receipts, pa.nulls(batch.num_rows, pa.string()))]
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
