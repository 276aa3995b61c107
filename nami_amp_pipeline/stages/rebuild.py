"""Makes Amplitude events again from their segment, with the same insert ids: a lost outbox, or single events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.destinations import repeats_micros, title_of
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.stages.encoding import encoders_of
from nami_amp_pipeline.stages.outbox_writer import OutboxPart, add_outboxes, write_outbox
from nami_amp_pipeline.stages.prepare import begin_segment
from nami_amp_pipeline.stages.prepare_inputs import PreparedSegment, register_released, register_sent
from nami_amp_pipeline.state import hourly_counts, tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.storage.duckdb_engine import engine, execute
from nami_amp_pipeline.storage.row_faults import ODD_ROW

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
        left = left_in(tx, outbox_id)
        segment = _segment(context, tx, box)
        ended = _ended(tx, box)
    age = context.now() - box.prepared_at
    to = segment.integrations[0]
    window = repeats_micros(to.destination, to.endpoint)
    if age > window and not resend:
        raise Blocked(
            f"outbox {box.file} is older than {window / 86_400_000_000:g} days: {title_of(to.destination)} may store "
            "its events a second time; --resend sends them anyway"
        )
    name = context.folder.new_name("outboxes", "arrow")
    part = _write_again(context, segment, name, ended)
    events = sum(lane.rows for lane in part.lanes)
    if part.rows:
        context.folder.publish([name])
    with context.store.begin(under=[lease]) as tx:
        tx.execute(sa.delete(boxes).where(boxes.c.id == outbox_id))
        add_outboxes(context, tx, {box.integration_id: part}, box.segment_id, name, box.hour)
        # Its events may have been posted ever since.
        tx.execute(sa.update(boxes).where(boxes.c.file == name).values(prepared_at=box.prepared_at))
        count = context.store.count
        count(tx, box.integration_id, "delivered", -left.delivered)
        gone = left.rows - events
        if box.hour is not None:
            hourly_counts.add(context.store, tx, box.integration_id, _by_hour(box.hour, part, left.delivered, gone))
        if gone > 0:
            count(tx, box.integration_id, "skipped", {LOST_FILE: gone})
        elif gone < 0:
            count(tx, box.integration_id, "captured", -gone)
    if not part.rows:
        context.folder.remove(name)


def _by_hour(hour: int, part: OutboxPart, delivered: int, gone: int) -> hourly_counts.Tally:
    """The same by hour and type; the types of what was lost are those of what was made again."""
    types = {event_type: events for (event_type, end), events in part.types.items() if end == "captured"}
    tally: hourly_counts.Tally = Counter()
    for event_type, events in hourly_counts.spread(delivered, types).items():
        tally[hour, event_type, "delivered"] = -events
    end: hourly_counts.End = "skipped" if gone > 0 else "captured"
    for event_type, events in hourly_counts.spread(abs(gone), types).items():
        tally[hour, event_type, end] = events
    return tally


class Left:
    """The store's knowledge of an outbox's events.

    Attributes:
        rows: events without a record of their own, such as a dead letter or a hold.
        delivered: of them, how many have been delivered.
    """

    def __init__(self, rows: int, delivered: int) -> None:
        self.rows, self.delivered = rows, delivered


def left_in(tx: Transaction, outbox_id: int) -> Left:
    """What the store knows of an outbox without its file."""
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
    return Left(int(rows) - int(recorded), int(passed) - int(recorded_passed))


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
    if row is None or not context.folder.exists(row.file):
        raise Blocked(f"outbox {box.file} cannot be rebuilt: its segment is lost too; restore a backup")
    (integration,) = all_integrations(context.store, [f"{row.app_id}/{row.name}"])
    odd = _odd(context, row.file, _ended(tx, box, reason=ODD_ROW))
    return PreparedSegment(box.segment_id, row.file, [row.snapshot_file], [integration], odd=odd)


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
    ids = pq.read_table(context.folder.fetch(file), columns=["id"])["id"]
    numbers: list[int] = pc.indices_nonzero(pc.is_in(ids, pa.array(event_ids, pa.string()))).to_pylist()
    return numbers


def events_again(
    context: Context, integration: Integration, segment_ids: Mapping[str, int | None], *, as_of_now: bool = True
) -> Iterator[tuple[int, pa.Table]]:
    """Segment by segment, events as they would be posted now.

    Args:
        context: for the store and the files.
        integration: whose events.
        segment_ids: by event id, the segment of its outbox, where it is looked for first.
        as_of_now: whether newer state that their users were sent makes history of them, as it does now. Without that
            they are what they were before that.

    Yields:
        A segment, and of its events id, event_type, user_id, identity, created_date and body. Left out are those whose
        segment is past its retention and those that the integration does not send any more.

    Raises:
        Blocked: a file cannot be read.
    """
    parts, segments = tables.segment_apps, tables.segments
    with context.store.reading() as tx:
        rows = tx.execute(
            sa.select(segments.c.id, segments.c.file, parts.c.snapshot_file)
            .join(parts, parts.c.segment_id == segments.c.id)
            .where(parts.c.app_id == integration.app_id, parts.c.snapshot_file.is_not(None))
            .order_by(segments.c.id)
        ).all()
    left = set(segment_ids)
    hinted = set(segment_ids.values())
    # Events that waited for a login are in an older segment than the one that their outbox is of.
    for row in sorted(rows, key=lambda row: (row.id not in hinted, -row.id)):
        if not left:
            return
        path = context.folder.fetch(row.file)
        if not path.exists():
            continue
        ids = pq.read_table(path, columns=["id"])["id"]
        here = set(ids.filter(pc.is_in(ids, pa.array(sorted(left), pa.string()))).to_pylist())
        if not here:
            continue
        left -= here
        segment = PreparedSegment(row.id, row.file, [row.snapshot_file], [integration])
        name = context.folder.new_name("outboxes", "arrow")
        try:
            _write_again(context, segment, name, sorted(here), are_wanted=True, as_of_now=as_of_now)
            reader = context.folder.open_ipc(name, mapped=False)
            names = ["id", "event_type", "user_id", "identity", "created_date", "body"]
            yield row.id, reader.read_all().select(names)
        finally:
            context.folder.remove(name)


def _write_again(
    context: Context,
    segment: PreparedSegment,
    name: str,
    ids: list[str],
    *,
    are_wanted: bool = False,
    as_of_now: bool = True,
) -> OutboxPart:
    """Writes an outbox of the events that are posted: without those of some ids, or of these alone."""
    with engine(context.settings) as alone, begin_segment(context, segment, alone) as begun:
        connection = begun.connection
        execute(connection, "prepare_2_decide")
        connection.register("ids", pa.table({"id": pa.array(ids, pa.string())}))
        which = "NOT IN" if are_wanted else "IN"
        connection.execute(f"DELETE FROM decided WHERE state <> 'send' OR id {which} (SELECT id FROM ids)")  # noqa: S608
        register_released(context, connection, [], {})
        register_sent(context, connection, segment.integrations if as_of_now else [])
        execute(connection, "prepare_4_lanes")
        encoders = encoders_of(segment.integrations)
        return write_outbox(context, connection, name, encoders).get(segment.integrations[0].id, OutboxPart())
