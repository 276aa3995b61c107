"""What the pipeline knows of the events that it may have sent in some hours, as a table of DuckDB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.amplitude import fingerprints
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA, receipts_so_far
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.storage.duckdb_engine import read_files

_EXCEPTIONS: Final = pa.schema(
    [
        ("event_id", pa.string()), ("event_type", pa.string()), ("identity", pa.string()), ("created_date", pa.int64()),
        ("state", pa.string()), ("reason", pa.string()), ("segment_id", pa.int64()), ("request_id", pa.int64()),
        ("at", pa.int64()), ("unknown_since", pa.int64()), ("first_sent_at", pa.int64()),
    ]
)  # fmt: skip

_SENT: Final = """
CREATE OR REPLACE TEMP TABLE sent AS
WITH receipts AS (
    SELECT r.*, b.segment_id, b.prepared_at FROM ({receipts}) r JOIN boxes b USING (outbox_id)
    -- An event that waited for a login stands in two outboxes: the later one has it.
    QUALIFY row_number() OVER (PARTITION BY r.id ORDER BY r.outbox_id DESC) = 1
),
joined AS (
    SELECT
        coalesce(r.id, e.event_id) AS id, coalesce(r.event_type, e.event_type) AS event_type,
        coalesce(nullif(e.identity, ''), r.identity) AS identity,
        coalesce(epoch_us(r.created_date), e.created_date) AS created_date,
        coalesce(e.state, r.state) AS state, coalesce(e.reason, r.reason) AS reason,
        CASE WHEN e.event_id IS NULL THEN r.request_id ELSE e.request_id END AS request_id,
        r.outbox_id, coalesce(r.segment_id, e.segment_id) AS segment_id, r.is_open, e.at,
        CASE WHEN e.event_id IS NULL THEN r.prepared_at END AS prepared_at,
        coalesce(e.unknown_since, e.first_sent_at) AS first_sent_at, e.event_id IS NOT NULL AS was_again,
        {fingerprints}
    FROM receipts r FULL JOIN excepted e ON e.event_id = r.id
)
SELECT row_number() OVER () AS number, j.*,
    CASE WHEN j.state = 'delivered' THEN coalesce(q.answered_at, j.at) END AS delivered_at
FROM joined j LEFT JOIN answered q ON q.request_id = j.request_id
WHERE j.id IS NOT NULL AND j.identity IS NOT NULL
"""


def load_sent(
    context: Context, connection: duckdb.DuckDBPyConnection, integration: Integration, first: int, end: int
) -> None:
    """Creates the table ``sent`` of an integration's events that may have been posted in these hours.

    ``delivered_at`` is null of what was not delivered, or not then. ``outbox_id`` is null where receipts are past
    their retention, fingerprints also where they were computed otherwise; they are of what was sent first, and not of
    what ``was_again``. ``first_sent_at`` is known of events that were held, and ``prepared_at`` of all others: before
    that, nobody can have posted them.

    Args:
        context: the process at work.
        connection: where.
        integration: whose.
        first: in µs since the epoch.
        end: behind the last hour.

    Raises:
        Blocked: a file cannot be read.
    """
    channels = channels_of(context, integration)
    boxes = _boxes(context, channels, first, end)
    parts = _finished(context, [box for box in boxes if box.receipts_file])
    parts += _open(context, connection, [box for box in boxes if not box.receipts_file])
    columns = {"outbox_id": pa.int64(), "segment_id": pa.int64(), "prepared_at": pa.int64()}
    connection.register(
        "boxes",
        pa.table(
            {
                "outbox_id": [box.id for box in boxes],
                "segment_id": [box.segment_id for box in boxes],
                "prepared_at": [box.prepared_at for box in boxes],
            },
            schema=pa.schema(columns.items()),
        ),
    )
    _register_rows(context, connection, channels, first, end)
    connection.execute(
        _SENT.format(
            receipts=" UNION ALL BY NAME ".join(parts),
            fingerprints=", ".join(f"r.{name}" for name in fingerprints.schema().names),
        )
    )
    for name in ("boxes", "excepted", "answered"):
        connection.unregister(name)


def channels_of(context: Context, integration: Integration) -> list[int]:
    """The rows of ``integrations`` through which its events are posted: its own, and those of its backfills.

    Not those of identifies: they are no events, and nobody says that exports hold them.
    """
    with context.store.reading() as tx:
        mine = backfills.of_integration(tx, integration.id, "backfill")
    return [integration.id, *(backfill.channel_id for backfill in mine)]


def _boxes(context: Context, channels: Sequence[int], first: int, end: int) -> Sequence[Any]:
    """The outboxes that were open in these hours, and those of held events that were delivered then."""
    boxes, exceptions = tables.outboxes, tables.exceptions
    late = sa.select(exceptions.c.segment_id).where(
        exceptions.c.integration_id.in_(channels),
        exceptions.c.at >= first,
        exceptions.c.at < end,
        exceptions.c.segment_id.is_not(None),
    )
    with context.store.reading() as tx:
        return tx.execute(
            sa.select(boxes)
            .where(
                boxes.c.integration_id.in_(channels),
                sa.or_(
                    sa.and_(boxes.c.prepared_at < end, sa.or_(boxes.c.done_at.is_(None), boxes.c.done_at >= first)),
                    boxes.c.segment_id.in_(late),
                ),
            )
            .order_by(boxes.c.id)
        ).all()


def _register_rows(
    context: Context, connection: duckdb.DuckDBPyConnection, channels: Sequence[int], first: int, end: int
) -> None:
    """The store's records of single events, and of the requests of these hours."""
    exceptions, requests = tables.exceptions, tables.requests
    with context.store.reading() as tx:
        rows = tx.execute(
            sa.select(*(exceptions.c[name] for name in _EXCEPTIONS.names)).where(
                exceptions.c.integration_id.in_(channels)
            )
        ).mappings()
        excepted = pa.Table.from_pylist([dict(row) for row in rows], schema=_EXCEPTIONS)
        answered = tx.execute(
            sa.select(requests.c.id, requests.c.answered_at).where(
                requests.c.integration_id.in_(channels),
                requests.c.outcome == "delivered",
                requests.c.answered_at >= first,
                requests.c.answered_at < end,
            )
        ).all()
    connection.register("excepted", excepted)
    connection.register(
        "answered",
        pa.table(
            {
                "request_id": pa.array([row.id for row in answered], pa.int64()),
                "answered_at": pa.array([row.answered_at for row in answered], pa.int64()),
            }
        ),
    )


def _schema() -> pa.Schema:
    return pa.schema([*RECEIPT_SCHEMA, *fingerprints.schema()])


def _finished(context: Context, boxes: Sequence[Any]) -> list[str]:
    """SQL of the receipts of finished outboxes."""
    none = read_files([], _schema())
    nothing = f"SELECT *, 0 AS outbox_id, false AS is_open FROM {none}"  # noqa: S608
    parts = [nothing]
    for box in boxes:
        path = context.folder.fetch(box.receipts_file)
        if not path.exists():  # past its retention
            continue
        columns = _schema() if _is_of_this_kind(path) else RECEIPT_SCHEMA
        parts.append(
            f"SELECT {', '.join(columns.names)}, {box.id} AS outbox_id, false AS is_open "  # noqa: S608
            f"FROM {read_files([path], columns)}"
        )
    return parts


def _is_of_this_kind(path: Path) -> bool:
    """Whether the fingerprints of a receipts file can be compared with those that this process computes."""
    metadata = pq.read_schema(path).metadata or {}
    return bool(metadata.get(fingerprints.KIND) == fingerprints.kind())


def _open(context: Context, connection: duckdb.DuckDBPyConnection, boxes: Sequence[Any]) -> list[str]:
    """SQL of what the receipts of open outboxes would be."""
    parts = []
    for box in boxes:
        table = f"so_far_{box.id}"
        connection.register("nothing", _schema().empty_table())
        connection.execute(f"CREATE TEMP TABLE {table} AS FROM nothing")
        connection.unregister("nothing")
        for receipts in receipts_so_far(context, box.id, DESTINATIONS["amplitude"]):
            connection.register("portion", receipts)
            connection.execute(f"INSERT INTO {table} FROM portion")
            connection.unregister("portion")
        parts.append(f"SELECT *, {box.id} AS outbox_id, true AS is_open FROM {table}")  # noqa: S608
    return parts
