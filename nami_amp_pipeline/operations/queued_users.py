"""Whose events are queued: read from outboxes, and from segments from which no outbox was made yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.rows_aside import rows_aside

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE: Final = 500

_MOST_PARTS: Final = 16
"""So many parts of files are read to name a few users: a user may have a million events."""


def queued_users(context: Context, integration: Integration) -> Iterator[tuple[str | None, str, int, int]]:
    """Amplitude user (None without an id yet), Nami user, how many events, and when the oldest was created (µs)."""
    import pyarrow as pa

    parts = [*_in_outboxes(context, integration), *_in_segments(context, integration)]
    if not parts:
        return
    whole = pa.concat_tables(parts).group_by(["user", "nami_user"]).aggregate([("events", "sum"), ("oldest", "min")])
    for row in whole.to_pylist():
        yield row["user"], row["nami_user"], row["events_sum"], row["oldest_min"]


def some_users(context: Context, integration: Integration, most: int) -> tuple[tuple[str, ...], bool]:
    """A few of the users whose events are queued, those of the oldest files; quick, however many there are.

    Returns:
        Their names, and whether these are known to be all.
    """
    from itertools import chain

    found: dict[str, int] = {}
    is_all = True
    parts = chain(_in_outboxes(context, integration), _in_segments(context, integration))
    for place, part in enumerate(parts):
        if place == _MOST_PARTS or len(found) > most:
            is_all = False
            break
        for row in part.sort_by("oldest").slice(0, 50 * most).to_pylist():
            name = row["user"] or row["nami_user"]
            found[name] = min(row["oldest"], found.get(name, row["oldest"]))
        is_all = is_all and part.num_rows <= 50 * most
    names = sorted(found, key=lambda name: (found[name], name))
    return tuple(names[:most]), is_all and len(names) <= most


def _in_outboxes(context: Context, integration: Integration) -> Iterator[pa.Table]:
    """Users of the rows that are still to be posted, by outbox."""
    import pyarrow as pa

    from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS

    boxes, lanes = tables.outboxes, tables.lanes
    with context.store.reading() as tx:
        open_boxes = sa.select(boxes.c.id, boxes.c.file).where(
            boxes.c.integration_id == integration.id, boxes.c.done_at.is_(None)
        )
        files = dict(tx.execute(open_boxes.order_by(boxes.c.id)).tuples().all())
        rows = tx.execute(
            sa.select(lanes).where(lanes.c.outbox_id.in_(list(files)), lanes.c.next_row < lanes.c.rows)
        ).all()
        aside = rows_aside(tx, tables.exceptions.c.integration_id == integration.id)
    for box_id, file in files.items():
        mine = [lane for lane in rows if lane.outbox_id == box_id]
        if not mine or not (path := context.folder.fetch(file)).exists():
            continue
        with pa.memory_map(str(path)) as source:
            names = pa.ipc.open_file(source).schema.names
            wanted = [names.index(name) for name in ("user_id", "identity", "created_date")]
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
            for lane in mine:
                first = lane.next_row // LANE_BATCH_ROWS
                for number in range(first, -(-lane.rows // LANE_BATCH_ROWS)):
                    base = number * LANE_BATCH_ROWS
                    batch = reader.get_batch(lane.batch + number)
                    left = [
                        row - base
                        for row in range(max(base, lane.next_row), base + batch.num_rows)
                        if row not in aside.get(lane.id, ())
                    ]
                    yield _counted(pa.Table.from_batches([batch]).take(left))


def _counted(rows: pa.Table) -> pa.Table:
    """Users with how many events each has, and when the oldest was created."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table(
        {
            "user": pc.utf8_slice_codeunits(rows["identity"], 2),
            "nami_user": rows["user_id"],
            "created": rows["created_date"].cast(pa.int64()),
        }
    )
    counted = table.group_by(["user", "nami_user"]).aggregate([("created", "count"), ("created", "min")])
    return counted.select(["user", "nami_user", "created_count", "created_min"]).rename_columns(
        ["user", "nami_user", "events", "oldest"]
    )


def _in_segments(context: Context, integration: Integration) -> Iterator[pa.Table]:
    """Users of the selected events of segments from which no outbox was made yet, by segment."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts, segments = tables.segment_apps, tables.segments
    with context.store.reading() as tx:
        rows = tx.execute(
            sa.select(segments.c.id, segments.c.file)
            .join(parts, parts.c.segment_id == segments.c.id)
            .where(parts.c.app_id == integration.app_id, segments.c.id > integration.prepared_through)
            .order_by(segments.c.id)
        ).all()
    for segment_id, file in rows:
        path = context.folder.fetch(file)
        if not path.exists():
            continue
        chosen = [("app_id", "=", integration.app_id), ("event_type", "in", list(integration.events))]
        table = pq.read_table(path, columns=["user_id", "created_date", "ingested_at"], filters=chosen)
        start = integration.start_in(segment_id)
        if start is not None:
            table = table.filter(pc.greater_equal(table["ingested_at"].cast(pa.int64()), start))
        users = _amplitude_users(context, integration, sorted({user for user in table["user_id"].to_pylist() if user}))
        identities = [users.get(user) for user in table["user_id"].to_pylist()]
        yield _counted(
            table.append_column(
                "identity", pa.array([identity and f"u:{identity}" for identity in identities], pa.string())
            )
        )


def _amplitude_users(context: Context, integration: Integration, nami_users: Sequence[str]) -> Mapping[str, str]:
    """What Amplitude will know users by, as far as their External ID is known now."""
    if integration.user_id_kind == "nami_user_id":
        return {user: user for user in nami_users}
    table = tables.user_property_snapshots
    found: dict[str, str] = {}
    with context.store.reading() as tx:
        for start in range(0, len(nami_users), AT_ONCE):
            query = sa.select(table.c.user_id, table.c.external_id).where(
                table.c.app_id == integration.app_id,
                table.c.user_id.in_(nami_users[start : start + AT_ONCE]),
                table.c.external_id.is_not(None),
            )
            found |= dict(tx.execute(query).tuples().all())
    return found
