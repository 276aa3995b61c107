"""What is known of events of an integration: the outcome of each, from live delivery and from earlier backfills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA, receipts_so_far
from nami_amp_pipeline.destinations import repeats_micros
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.among import among
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Transaction
from nami_amp_pipeline.storage.duckdb_engine import read_files
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

_DAY: Final = 86_400_000_000

MARGIN: Final = _DAY
"""An event counts as one that Amplitude would store again this long before Amplitude forgets it: it is posted later."""

PENDING, DEAD, REPEAT, STORED, SKIPPED = "pending", "dead", "repeat", "stored", "skipped"

_COLUMNS: Final = pa.schema([("id", pa.string()), ("outcome", pa.string()), ("identity", pa.string())])

_AT_ONCE = 20_000


def register_known(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    tx: Transaction,
    integration: Integration,
    channels: Sequence[int],
) -> None:
    """Makes the table ``known`` (``id``, ``outcome``, ``identity``) of the events in the view ``window_rows``.

    The outcomes are ``pending``, ``dead``, ``repeat`` (delivered, and a repeat is recognised), ``stored`` (delivered,
    and a repeat would be stored again) and ``skipped``. The identity is that of the user or device whose event it was
    when it was sent.

    Args:
        context: for the files and the time.
        connection: has ``window_rows``.
        tx: reads the store; no outcome changes while the lease of the integration is held.
        integration: as it is now.
        channels: the rows through which its backfills deliver.

    Raises:
        Blocked: an open outbox cannot be read, so nobody knows what is in it.
    """
    connection.execute("CREATE TEMP TABLE wanted_ids AS SELECT id, created_date FROM window_rows")
    ids = [integration.id, *channels]
    still = context.now() - repeats_micros(integration.destination, integration.endpoint) + MARGIN
    requests = tables.requests
    recent = tx.execute(sa.select(requests.c.id).where(requests.c.integration_id.in_(ids), requests.c.sent_at >= still))
    connection.register("recent_requests", pa.table({"request_id": pa.array(recent.scalars(), pa.int64())}))
    ends = connection.execute("SELECT epoch_us(min(created_date)), epoch_us(max(created_date)) FROM wanted_ids")
    ((first, last),) = ends.fetchall()
    connection.execute("CREATE TEMP TABLE told (id VARCHAR, outcome VARCHAR, identity VARCHAR, place BIGINT)")
    if first is None:
        connection.execute("CREATE TEMP VIEW known AS SELECT id, outcome, identity FROM told")
        return
    _add_receipts(context, connection, tx, ids, integration.app_id, first, last)
    _add_open_outboxes(context, connection, tx, ids)
    _add_unprepared(context, connection, tx, integration)
    _add_exceptions(context, connection, tx, ids, still)
    connection.execute(
        "CREATE TEMP TABLE known AS SELECT id, arg_max(outcome, place) AS outcome, "
        "arg_max(identity, place) AS identity FROM told GROUP BY id"
    )


def _add_receipts(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    tx: Transaction,
    ids: Sequence[int],
    app_id: str,
    first: int,
    last: int,
) -> None:
    """The receipts of outboxes whose events were created in the time of the wanted events, or at an unknown time."""
    boxes, parts = tables.outboxes, tables.segment_apps
    rows = tx.execute(
        sa.select(boxes.c.id, boxes.c.receipts_file, boxes.c.integration_id.in_(_cancelled()).label("is_cancelled"))
        .outerjoin(parts, sa.and_(parts.c.segment_id == boxes.c.segment_id, parts.c.app_id == app_id))
        .where(
            boxes.c.integration_id.in_(ids),
            boxes.c.receipts_file.is_not(None),
            sa.or_(
                parts.c.segment_id.is_(None),
                sa.and_(parts.c.max_created_date >= first, parts.c.min_created_date <= last),
                # What had waited for a login is in an outbox of a later segment.
                parts.c.segment_id.in_(_with_returned(ids)),
            ),
        )
    ).all()
    fetched = context.folder.fetch_all(row.receipts_file for row in rows)
    numbers = {str(path): row for path, row in zip(fetched, rows, strict=True)}
    paths = [path for path in fetched if path.exists()]
    connection.register(
        "receipt_files",
        pa.table(
            {
                "filename": pa.array(list(numbers), pa.string()),
                "place": pa.array([row.id for row in numbers.values()], pa.int64()),
                "is_cancelled": pa.array([bool(row.is_cancelled) for row in numbers.values()], pa.bool_()),
            }
        ),
    )
    connection.execute(
        "INSERT INTO told SELECT r.id, CASE r.state "  # noqa: S608
        f"WHEN 'delivered' THEN CASE WHEN q.request_id IS NOT NULL THEN '{REPEAT}' ELSE '{STORED}' END "
        f"WHEN 'skipped' THEN '{SKIPPED}' WHEN 'dead' THEN '{DEAD}' "
        # What was held or waiting then is among the exceptions or in a later outbox, which count for more, unless its
        # backfill was cancelled or nobody logged in.
        f"ELSE CASE WHEN f.is_cancelled OR r.state = 'waiting' THEN '{SKIPPED}' ELSE '{PENDING}' END END, "
        "r.identity, f.place "
        f"FROM {read_files(paths, RECEIPT_SCHEMA, 'filename')} r SEMI JOIN wanted_ids w ON w.id = r.id "
        "JOIN receipt_files f USING (filename) LEFT JOIN recent_requests q ON q.request_id = r.request_id"
    )


def _cancelled() -> sa.Select[tuple[int]]:
    """The rows through which cancelled backfills delivered."""
    table = tables.backfills
    return sa.select(table.c.channel_id).where(table.c.state == "cancelled")


def _with_returned(ids: Sequence[int]) -> sa.Select[tuple[int]]:
    """The segments of outboxes that may hold events of earlier segments: of integrations that let events wait."""
    boxes, table = tables.outboxes, tables.integrations
    waits = sa.select(table.c.id).where(table.c.id.in_(ids), table.c.anonymous == "wait_for_login")
    return sa.select(boxes.c.segment_id).where(boxes.c.integration_id.in_(waits))


def _add_open_outboxes(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: Transaction, ids: Sequence[int]
) -> None:
    """Whatever is in an outbox that is still open has its end there."""
    boxes = tables.outboxes
    open_boxes = sa.select(boxes.c.id).where(boxes.c.integration_id.in_(ids), boxes.c.done_at.is_(None))
    for box_id in tx.execute(open_boxes).scalars().all():
        for receipts in receipts_so_far(context, box_id):
            connection.register("open_rows", receipts.select(["id", "state"]))
            connection.execute(
                "INSERT INTO told SELECT id, CASE state "  # noqa: S608
                f"WHEN 'skipped' THEN '{SKIPPED}' WHEN 'dead' THEN '{DEAD}' ELSE '{PENDING}' END, NULL, {box_id} "
                "FROM open_rows SEMI JOIN wanted_ids USING (id)"
            )


def _add_unprepared(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: Transaction, integration: Integration
) -> None:
    """What was captured and is in no outbox yet is still to be decided on by live delivery."""
    for rows, values in unprepared(context, tx, integration):
        connection.execute(
            f"INSERT INTO told SELECT id, '{PENDING}', NULL, {2**61} "  # noqa: S608
            f"FROM ({rows}) SEMI JOIN wanted_ids USING (id)",
            values,
        )


def unprepared(context: Context, tx: Transaction, integration: Integration) -> Iterator[tuple[str, list[Any]]]:
    """SQL of the events that were captured for an integration and are in no outbox yet, a segment at a time.

    Args:
        context: for the files.
        tx: reads the store.
        integration: as it is now.

    Yields:
        A query of all columns of a segment, and its parameters.
    """
    parts, segments = tables.segment_apps, tables.segments
    rows = tx.execute(
        sa.select(parts.c.segment_id, parts.c.max_ingested_at, segments.c.file)
        .join(segments, segments.c.id == parts.c.segment_id)
        .where(parts.c.app_id == integration.app_id, parts.c.segment_id > integration.prepared_through)
        .order_by(parts.c.segment_id)
    ).all()
    for row in rows:
        start = integration.start_in(row.segment_id)
        file = read_files([context.folder.fetch(row.file)], SEGMENT_SCHEMA)
        types = ", ".join("?" for _ in integration.events) or "NULL"
        query = f"FROM {file} WHERE app_id = ? AND event_type IN ({types}) AND epoch_us(ingested_at) >= ?"
        yield query, [integration.app_id, *integration.events, start if start is not None else -(2**62)]


def _add_exceptions(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: Transaction, ids: Sequence[int], still: int
) -> None:
    """The exceptions of the store, which win over receipts: what became of an event after its outbox was done."""
    table = tables.exceptions
    wanted = [event_id for (event_id,) in connection.execute("SELECT id FROM wanted_ids").fetchall()]
    for start in range(0, len(wanted), _AT_ONCE):
        rows = tx.execute(
            sa.select(table.c.event_id, table.c.state, table.c.at, table.c.identity).where(
                table.c.integration_id.in_(ids),
                among(context.store, table.c.event_id, wanted[start : start + _AT_ONCE]),
            )
        ).all()
        told = [(row.event_id, _outcome(row.state, row.at, still), row.identity or None) for row in rows]
        found = pa.table([pa.array([row[n] for row in told], pa.string()) for n in range(3)], schema=_COLUMNS)
        connection.register("excepted", found)
        connection.execute(f"INSERT INTO told SELECT id, outcome, identity, {2**60} FROM excepted")  # noqa: S608


def _outcome(state: str, at: int, still: int) -> str:
    if state == "dead":
        return DEAD
    if state == "delivered":
        return REPEAT if at >= still else STORED
    return PENDING
