"""Rebuilds a lost outbox from its segment: the same insert ids, without events that have an end state."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import DEDUPLICATION_WINDOW
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.stages.odd_rows import ODD_ROW
from nami_amp_pipeline.stages.outbox_writer import OutboxPart, add_outbox, write_outbox
from nami_amp_pipeline.stages.prepare import begin_segment
from nami_amp_pipeline.stages.prepare_inputs import PreparedSegment, register_released, register_sent
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.storage.duckdb_engine import engine, execute

LOST_FILE = "lost_file"
"""Why an event of a lost outbox is skipped if it cannot be rebuilt."""


def rebuild_outbox(context: Context, outbox_id: int, lease: Lease, *, resend: bool = False) -> None:
    """Rebuilds a lost outbox.

    The lost file knew which events had been delivered, so all of them are sent again, with the same insert ids.
    Amplitude recognises them for seven days. Events of other segments that had waited for a login and were in the file
    are lost: they count as skipped.

    Args:
        context: for the store and the files.
        outbox_id: of the store.
        lease: of its integration.
        resend: sends them even if Amplitude may no longer recognise them.

    Raises:
        Blocked: they may be too old, or the segment is lost too.
        LostLease: another process works for the integration.
    """
    boxes = tables.outboxes
    with context.store.reading() as tx:
        box = tx.execute(sa.select(boxes).where(boxes.c.id == outbox_id, boxes.c.done_at.is_(None))).one_or_none()
        if box is None:  # the former holder of the lease finished it, or its integration was removed
            return
        left = _left(tx, outbox_id)
        segment = _segment(context, tx, box)
        ended = _ended(tx, box)
    age = context.now() - box.prepared_at
    if age > DEDUPLICATION_WINDOW.total_seconds() * 1_000_000 and not resend:
        raise Blocked(
            f"outbox {box.file} is older than 7 days: Amplitude may store its events a second time; --resend sends "
            f"them anyway"
        )
    name = context.folder.new_name("outboxes", "arrow")
    part = _write_again(context, segment, name, ended)
    events = sum(lane.rows for lane in part.lanes)
    with context.store.begin(under=[lease]) as tx:
        tx.execute(sa.delete(boxes).where(boxes.c.id == outbox_id))
        add_outbox(context, tx, box.integration_id, box.segment_id, name, part)
        count = context.store.count
        count(tx, box.integration_id, "delivered", -left.delivered)
        gone = left.rows - events
        if gone > 0:
            count(tx, box.integration_id, "skipped", {LOST_FILE: gone})
        elif gone < 0:
            count(tx, box.integration_id, "captured", -gone)
    if not part.rows:
        context.folder.remove(name)


class _Left:
    """The store's knowledge of an outbox's events.

    Attributes:
        rows: events without a record of their own, such as a dead letter or a hold.
        delivered: of them, how many have been delivered.
    """

    def __init__(self, rows: int, delivered: int) -> None:
        self.rows, self.delivered = rows, delivered


def _left(tx: Transaction, outbox_id: int) -> _Left:
    lanes, exceptions = tables.lanes, tables.exceptions
    rows, passed = tx.execute(
        sa.select(sa.func.coalesce(sa.func.sum(lanes.c.rows), 0), sa.func.coalesce(sa.func.sum(lanes.c.next_row), 0))
        .where(lanes.c.outbox_id == outbox_id)
    ).one()  # fmt: skip
    recorded, recorded_passed = tx.execute(
        sa.select(
            sa.func.count(), sa.func.coalesce(sa.func.sum(sa.case((exceptions.c.lane_row < lanes.c.next_row, 1))), 0)
        )
        .select_from(exceptions.join(lanes, lanes.c.id == exceptions.c.lane_id))
        .where(lanes.c.outbox_id == outbox_id)
    ).one()
    return _Left(int(rows) - int(recorded), int(passed) - int(recorded_passed))


def _segment(context: Context, tx: Transaction, box: Any) -> PreparedSegment:
    segments, parts, integrations = tables.segments, tables.segment_apps, tables.integrations
    row = tx.execute(
        sa.select(segments.c.file, parts.c.snapshot_file, integrations.c.app_id, integrations.c.name)
        .join(parts, parts.c.segment_id == segments.c.id)
        .join(integrations, integrations.c.app_id == parts.c.app_id)
        .where(segments.c.id == box.segment_id, integrations.c.id == box.integration_id)
    ).one_or_none()
    if row is not None and row.snapshot_file is None:
        raise Blocked(
            f"outbox {box.file} needs snapshots that the next run computes: run 'nami-amp run', then 'nami-amp "
            "repair' again"
        )
    if row is None or not context.folder.path(row.file).exists():
        raise Blocked(f"outbox {box.file} cannot be rebuilt: its segment is lost too; restore a backup")
    (integration,) = all_integrations(context.store, [f"{row.app_id}/{row.name}"])
    odd = _odd(context, row.file, _ended(tx, box, reason=ODD_ROW))
    return PreparedSegment(box.segment_id, row.file, [row.snapshot_file], [integration], odd)


def _ended(tx: Transaction, box: Any, reason: str | None = None) -> list[str]:
    """The ids of the segment's events with a record of their own: dead letters, held and waiting events."""
    table = tables.exceptions
    query = sa.select(table.c.event_id).where(
        table.c.integration_id == box.integration_id, table.c.segment_id == box.segment_id
    )
    return list(tx.execute(query if reason is None else query.where(table.c.reason == reason)).scalars())


def _odd(context: Context, file: str, event_ids: list[str]) -> list[int]:
    """The row numbers of events that became dead letters because they could not be computed."""
    if not event_ids:
        return []
    ids = pq.read_table(context.folder.path(file), columns=["id"])["id"]
    numbers: list[int] = pc.indices_nonzero(pc.is_in(ids, pa.array(event_ids, pa.string()))).to_pylist()
    return numbers


def _write_again(context: Context, segment: PreparedSegment, name: str, ended: list[str]) -> OutboxPart:
    with engine(context.settings) as alone, begin_segment(context, segment, alone) as begun:
        connection = begun.connection
        execute(connection, "prepare_2_decide")
        connection.register("ended", pa.table({"id": pa.array(ended, pa.string())}))
        connection.execute("DELETE FROM decided WHERE state <> 'send' OR id IN (SELECT id FROM ended)")
        register_released(context, connection, [], {})
        register_sent(context, connection)
        execute(connection, "prepare_4_lanes")
        return write_outbox(context, connection, name).get(segment.integrations[0].id, OutboxPart())
