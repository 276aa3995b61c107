"""Where events are: in segments, and from there on with each integration; for one event or for all of a user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.state import Transaction, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.storage.duckdb_engine import read_files
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

_STATES = {"dead": "dead_letter", "waiting": "waiting_for_login", "held": "held"}

Place = dict[str, Any]
"""Where an event is with one integration: ``state``, ``reason`` and what is known of outbox, request and answer."""


def captures_of(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    column: str,
    wanted: Sequence[str],
    most: int | None = None,
    app_id: str | None = None,
) -> list[dict[str, Any]]:
    """The segments that hold some events, one entry per app and event, in the order in which they were created.

    Args:
        context: the process at work.
        connection: reads the files.
        column: ``id`` or ``user_id``.
        wanted: values of it.
        most: the newest so many; None for all.
        app_id: only of this app.
    """
    query = sa.select(tables.segments)
    if app_id is not None:
        parts = tables.segment_apps
        query = query.where(tables.segments.c.id.in_(sa.select(parts.c.segment_id).where(parts.c.app_id == app_id)))
    with context.store.reading() as tx:
        found = [row for row in tx.execute(query) if row.file]
    paths = context.folder.fetch_all(row.file for row in found)
    segments = {str(path): row for path, row in zip(paths, found, strict=True)}
    known = [path for path in paths if path.exists()]
    if not known or not wanted:
        return []
    rows = connection.execute(
        "SELECT filename, file_row_number, app_id, id, event_type, user_id, epoch_us(created_date), "  # noqa: S608
        f"epoch_us(ingested_at), well_formed FROM {read_files(known, SEGMENT_SCHEMA, 'filename', 'file_row_number')} "
        f"WHERE list_contains(?, {column}) AND app_id = coalesce(?, app_id) "
        "ORDER BY created_date DESC, id DESC LIMIT ?",
        [list(wanted), app_id, most if most is not None else 2**31],
    ).fetchall()
    captures = []
    for filename, row_number, app_id, event_id, event_type, user_id, created, ingested, well_formed in reversed(rows):
        segment = segments[filename]
        captures.append(
            {
                "app_id": app_id,
                "event_id": event_id,
                "event_type": event_type,
                "user_id": user_id,
                "created_date": to_text(created),
                "ingested_at": to_text(ingested),
                "ingested_us": ingested,
                "well_formed": well_formed,
                "segment": segment.id,
                "row": row_number,
                "captured_at": to_text(segment.captured_at),
                "run_id": segment.run_id,
            }
        )
    return captures


def snapshot_of(
    context: Context, connection: duckdb.DuckDBPyConnection, capture: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The user properties as of the event; None for events that carry none, or that are not that far yet."""
    parts = tables.segment_apps
    with context.store.begin() as tx:
        name = tx.execute(
            sa.select(parts.c.snapshot_file).where(
                parts.c.segment_id == capture["segment"], parts.c.app_id == capture["app_id"]
            )
        ).scalar()
    if not name or not (path := context.folder.fetch(name)).exists():
        return None
    names = [prop.name for prop in contract.PROPERTIES]
    row = connection.execute(
        f"SELECT {', '.join(names)} FROM {read_files([path], snapshot_schema())} "  # noqa: S608
        "WHERE app_id = ? AND row = ?",
        [capture["app_id"], capture["row"]],
    ).fetchall()
    if not row:
        return None
    return {key: value for key, value in zip(names, row[0], strict=True) if value is not None}


def sources_of(context: Context, connection: duckdb.DuckDBPyConnection, capture: Mapping[str, Any]) -> dict[str, Any]:
    """For each group of the user properties as of an event, the event that it is from, as far as files still tell."""
    parts = tables.segment_apps
    with context.store.begin() as tx:
        names = tx.execute(
            sa.select(parts.c.segment_id, parts.c.snapshot_file).where(
                parts.c.segment_id <= capture["segment"],
                parts.c.app_id == capture["app_id"],
                parts.c.snapshot_file.is_not(None),
            )
        ).all()
    fetched = context.folder.fetch_all(row.snapshot_file for row in names)
    paths = {row.segment_id: path for row, path in zip(names, fetched, strict=True) if path.exists()}
    if capture["segment"] not in paths:
        return {}
    own = read_files([paths[capture["segment"]]], snapshot_schema())
    every = read_files(list(paths.values()), snapshot_schema())
    found: dict[str, Any] = {}
    for group, path in contract.GROUPS.items():
        row = connection.execute(
            f"SELECT s.id, epoch_us(s.created_date) FROM {every} s "  # noqa: S608
            f"JOIN (FROM {own} WHERE app_id = ? AND row = ?) own USING (app_id, user_id) "
            f"WHERE s.has_{group} AND (s.created_date, s.id) <= (own.created_date, own.id) "
            "ORDER BY s.created_date DESC, s.id DESC LIMIT 1",
            [capture["app_id"], capture["row"]],
        ).fetchone()
        if row is not None:
            found[path.removesuffix("[]")] = {"event_id": row[0], "created_date": to_text(row[1])}
    return found


def places_of(
    context: Context, connection: duckdb.DuckDBPyConnection, integration: Integration, event_ids: Sequence[str]
) -> dict[str, Place]:
    """Where events are from their outbox on, by event id; those that no outbox has are left out.

    What the exceptions say wins over outboxes, and those over receipts.
    """
    with context.store.begin() as tx:
        found = _in_exceptions(tx, integration, event_ids)
        left = [event_id for event_id in event_ids if event_id not in found]
        found |= _in_open_outboxes(context, tx, integration, left)
        left = [event_id for event_id in left if event_id not in found]
        return found | _in_receipts(context, connection, tx, integration, left)


def _in_exceptions(tx: Transaction, integration: Integration, event_ids: Sequence[str]) -> dict[str, Place]:
    table = tables.exceptions
    rows = tx.execute(
        sa.select(table)
        .where(table.c.integration_id == integration.id, table.c.event_id.in_(event_ids))
        .order_by(table.c.id)
    )
    newest = {row.event_id: row for row in rows}
    return {event_id: _excepted(tx, integration, row) for event_id, row in newest.items()}


def _excepted(tx: Transaction, integration: Integration, row: Any) -> Place:
    requests, pauses = tables.requests, tables.pauses
    outbox = sa.select(tables.outboxes).where(
        tables.outboxes.c.integration_id == integration.id, tables.outboxes.c.segment_id == row.segment_id
    )
    end: Place = {
        "state": _STATES.get(row.state, row.state),
        "reason": row.reason if row.state != "delivered" else None,
        "identity": row.identity or None,
        "at": to_text(row.at),
        "outbox": _outbox(tx.execute(outbox.limit(1)).one_or_none()),
        "answer": row.answer if row.state != "delivered" else None,
    }
    if row.state in ("delivered", "dead"):
        request = tx.execute(sa.select(requests).where(requests.c.id == row.request_id)).one_or_none()
        end["request"] = _request(request)
    else:
        waits = tx.execute(
            sa.select(pauses.c.reason, pauses.c.until)
            .where(
                pauses.c.integration_id == integration.id,
                pauses.c.identity.in_((row.identity, "")),  # the empty one is the whole integration
            )
            .order_by(pauses.c.until.desc())
        ).first()
        end["paused_until"] = to_text(waits.until if waits else None)
        end["paused_for"] = waits.reason if waits else None
    if row.state == "dead":
        end |= {"dead_letter": row.id, "body": row.body}
    return end


def _in_open_outboxes(
    context: Context, tx: Transaction, integration: Integration, event_ids: Sequence[str]
) -> dict[str, Place]:
    boxes = tables.outboxes
    found: dict[str, Place] = {}
    if not event_ids:
        return found
    rows = tx.execute(
        sa.select(boxes).where(boxes.c.integration_id == integration.id, boxes.c.done_at.is_(None)).order_by(boxes.c.id)
    ).all()
    for box in rows:  # what a later one says wins
        lanes = tx.execute(sa.select(tables.lanes).where(tables.lanes.c.outbox_id == box.id)).all()
        own = [(lane, range(lane.batch, lane.batch - (-lane.rows // LANE_BATCH_ROWS))) for lane in lanes]
        places = _find(context.folder.fetch(box.file), own, box.others_batch, box.rows, event_ids)
        for event_id, (lane, row, state, reason) in places.items():
            place = {"state": _STATES.get(state, state), "reason": reason} if lane is None else _in_lane(tx, lane, row)
            found[event_id] = {**place, "outbox": _outbox(box)}
    return found


def _find(
    path: Path, lanes: Sequence[tuple[Any, range]], others_batch: int | None, rows: int, event_ids: Sequence[str]
) -> dict[str, tuple[Any, int, str, str | None]]:
    """By event id: (lane or None, its row, state, reason) in an outbox; only one integration's share of it is read."""
    found: dict[str, tuple[Any, int, str, str | None]] = {}
    if not path.exists():
        return found
    wanted = pa.array(list(event_ids), pa.string())
    numbers = [(number, lane, (number - own.start) * LANE_BATCH_ROWS) for lane, own in lanes for number in own]
    with pa.memory_map(str(path)) as source:
        names = pa.ipc.open_file(source).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in ("id", "state", "reason")])
        reader = pa.ipc.open_file(source, options=options)
        left = rows - sum(lane.rows for lane, _ in lanes)
        numbers += [
            (number, None, 0)
            for number in range(others_batch or 0, reader.num_record_batches if others_batch is not None else 0)
        ]
        for number, lane, base in numbers:
            batch = reader.get_batch(number)
            if lane is None:
                if left <= 0:
                    break
                left -= batch.num_rows
            for at in pc.indices_nonzero(pc.is_in(batch["id"], value_set=wanted)).to_pylist():
                found[batch["id"][at].as_py()] = (
                    lane,
                    base + at,
                    batch["state"][at].as_py(),
                    batch["reason"][at].as_py(),
                )
    return found


def _in_lane(tx: Transaction, lane: Any, row: int) -> Place:
    requests = tables.requests
    if row < lane.next_row:
        request = tx.execute(
            sa.select(requests).where(
                requests.c.lane_id == lane.id,
                requests.c.first_row <= row,
                requests.c.end_row > row,
                requests.c.outcome == "delivered",
            )
        ).first()
        return {"state": "delivered", "reason": None, "request": _request(request)}
    tries = tx.execute(
        sa.select(requests)
        .where(requests.c.lane_id == lane.id, requests.c.first_row <= row, requests.c.end_row > row)
        .order_by(requests.c.id.desc())
    ).first()
    is_unknown = row < lane.attempt_end and lane.unknown_since is not None
    return {
        "state": "outcome_unknown" if is_unknown else "queued",
        "reason": f"posted, no answer recorded since {to_text(lane.unknown_since)}" if is_unknown else "not posted yet",
        "request": _request(tries),
    }


def _in_receipts(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    tx: Transaction,
    integration: Integration,
    event_ids: Sequence[str],
) -> dict[str, Place]:
    boxes = tables.outboxes
    mine = sa.select(boxes).where(boxes.c.integration_id == integration.id, boxes.c.receipts_file.is_not(None))
    done = tx.execute(mine).all()
    paths = context.folder.fetch_all(box.receipts_file for box in done)
    by_file = {str(path): box for path, box in zip(paths, done, strict=True)}
    known = [path for path in paths if path.exists()]
    if not known or not event_ids:
        return {}
    rows = connection.execute(
        "SELECT id, filename, state, reason, identity, request_id "  # noqa: S608
        f"FROM {read_files(known, RECEIPT_SCHEMA, 'filename')} WHERE list_contains(?, id)",
        [list(event_ids)],
    ).fetchall()
    found: dict[str, Place] = {}
    # An event that waited for a login stands in two: the later one says how it ended.
    for event_id, filename, state, reason, identity, request_id in sorted(rows, key=lambda row: by_file[row[1]].id):
        request = tx.execute(sa.select(tables.requests).where(tables.requests.c.id == request_id)).one_or_none()
        found[event_id] = {
            "state": _STATES.get(state, state),
            "reason": reason,
            "identity": identity,
            "outbox": _outbox(by_file[filename]),
            "request": _request(request),
        }
    return found


def _outbox(box: Any) -> dict[str, Any] | None:
    if box is None:
        return None
    return {"id": box.id, "segment": box.segment_id, "prepared_at": to_text(box.prepared_at), "run_id": box.run_id}


def _request(row: Any) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "id": row.id,
        "status": row.status,
        "outcome": row.outcome,
        "events": row.events,
        "sent_at": to_text(row.sent_at),
        "answered_at": to_text(row.answered_at),
        "run_id": row.run_id,
        "answer": row.answer,
    }
