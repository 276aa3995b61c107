"""What would be posted next, byte for byte; nothing is posted or recorded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from nami_amp_pipeline.backfill.window_events import compute_window
from nami_amp_pipeline.backfill.window_files import write_files
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.stages.prepare import ComputedSegment, compute_carefully, pending_segments
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration, get
from nami_amp_pipeline.storage.duckdb_engine import engine


def preview(context: Context, key: str, limit: int, window: Window | None = None) -> list[str]:
    """The events that an integration would be sent next, as JSON texts.

    First what is held and what is in outboxes, then what was captured and is in no outbox yet. Rows of the warehouse
    that no run has read are not among them. Given a window, the events of it that a backfill would send.

    Args:
        context: the process at work.
        key: ``<app_id>/<name>``.
        limit: so many events at most.
        window: of a backfill.

    Raises:
        Misconfigured: there is none of that name.
        WarehouseUnavailable: the warehouse cannot be read; only with a window.
    """
    integration = get(context.store, key)
    found = _of_window(context, integration, window) if window is not None else _of_live(context, integration)
    return list(islice(found, limit))


def _of_live(context: Context, integration: Integration) -> Iterator[str]:
    yield from _held(context, integration)
    yield from _in_outboxes(context, integration)
    for segment in pending_segments(context, {integration.id: integration}):
        with engine(context.settings) as own:
            for computed in compute_carefully(context, segment, own):
                yield from _sent(context, computed)


def _held(context: Context, integration: Integration) -> list[str]:
    table = tables.exceptions
    event_id = table.c.event_id if context.store.is_sqlite else sa.collate(table.c.event_id, "C")
    query = (
        sa.select(table.c.body)
        .where(table.c.integration_id == integration.id, table.c.state == "held")
        .order_by(table.c.identity, table.c.created_date, event_id)
    )
    with context.store.reading() as tx:
        return [body.removeprefix(",") for body in tx.execute(query).scalars()]


def _in_outboxes(context: Context, integration: Integration) -> Iterator[str]:
    boxes, lanes, exceptions = tables.outboxes, tables.lanes, tables.exceptions
    with context.store.reading() as tx:
        rows = tx.execute(
            sa.select(boxes.c.file, lanes)
            .join(lanes, lanes.c.outbox_id == boxes.c.id)
            .where(boxes.c.integration_id == integration.id, boxes.c.done_at.is_(None))
            .order_by(boxes.c.id, lanes.c.id)
        ).all()
        taken: dict[int, set[int]] = {}
        for lane_id, lane_row in tx.execute(
            sa.select(exceptions.c.lane_id, exceptions.c.lane_row)
            .join(lanes, lanes.c.id == exceptions.c.lane_id)
            .where(exceptions.c.integration_id == integration.id, exceptions.c.lane_row >= lanes.c.next_row)
        ):
            taken.setdefault(lane_id, set()).add(lane_row)
    for lane in rows:
        reader = context.folder.open_ipc(lane.file)
        for row in range(lane.next_row, lane.rows):
            if row not in taken.get(lane.id, ()):
                batch = reader.get_batch(lane.batch + row // LANE_BATCH_ROWS)
                yield batch["body"][row % LANE_BATCH_ROWS].as_py().removeprefix(",")


def _sent(context: Context, computed: ComputedSegment) -> Iterator[str]:
    """The events of an outbox file that nobody will register."""
    try:
        if any(part.rows for part in computed.parts.values()):
            reader = context.folder.open_ipc(computed.file, mapped=False)
            for number in range(reader.num_record_batches):
                rows = reader.get_batch(number)
                for body in rows.filter(pc.equal(rows["state"], pa.scalar("send")))["body"].to_pylist():
                    yield body.removeprefix(",")
    finally:
        context.folder.remove(computed.file)


def _of_window(context: Context, integration: Integration, window: Window) -> Iterator[str]:
    """The same as the files of a backfill that is not recorded."""
    backfill = Backfill(
        id=0, kind="backfill", integration_id=integration.id, channel_id=-1, integration=integration.key,
        since=window.since, until=window.until, by=window.by, patterns=None, resend=False, state="planned",
        created_at=context.now(), created_by="", started_at=None, ended_at=None, run_id=None, events=None, plan=None,
        compared_through=None, error=None,
    )  # fmt: skip
    files = write_files(context, backfill, integration)
    try:
        for name, rows, events in files:
            file = BackfillFile(0, name, rows, events, False, {})
            for computed in compute_window(context, backfill, file, integration).parts:
                yield from _sent(context, computed)
    finally:
        for name, *_ in files:
            context.folder.remove(name)
