"""Where one event is: in the warehouse, in a segment, and with each integration of its app."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.state import Transaction, tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import compute, read_files
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA
from nami_amp_pipeline.warehouse import EventRow, Places

UNREAD_DAYS = 7
"""So far back, at most, an event that was not captured is looked for in a table that has no index for it."""

_STATES = {"dead": "dead_letter", "waiting": "waiting_for_login", "held": "held"}


@dataclass
class Trace:
    """All that is known of an event.

    Attributes:
        event_id: Nami's event id.
        warehouse: its rows in the events table; the same id can stand in several.
        warehouse_error: why the warehouse could not be asked.
        warehouse_is_whole: whether there can be no other rows of it: without an index on ``id``, a large table is
            searched only for what was captured, and among what is new.
        captures: the segments that hold it, one per app that has an event of this id.
        integrations: per integration of those apps, what became of it.
    """

    event_id: str
    warehouse: list[dict[str, Any]] = field(default_factory=list)
    warehouse_error: str | None = None
    warehouse_is_whole: bool = True
    captures: list[dict[str, Any]] = field(default_factory=list)
    integrations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_known(self) -> bool:
        """Whether there is any sign of it."""
        return bool(self.warehouse or self.captures or any(one["state"] for one in self.integrations))

    def to_json(self) -> dict[str, Any]:
        """The object of ``trace --json``."""
        return {
            "event_id": self.event_id,
            "warehouse": self.warehouse,
            "warehouse_error": self.warehouse_error,
            "warehouse_is_whole": self.warehouse_is_whole,
            "captures": self.captures,
            "integrations": self.integrations,
        }


def trace(context: Context, event_id: str, *, whole_table: bool = False) -> Trace:
    """Looks for an event everywhere; nothing is changed.

    Args:
        context: the process at work.
        event_id: Nami's event id.
        whole_table: reads the whole events table where it takes that to find all rows of an id.
    """
    found = Trace(event_id)
    with compute(context.settings) as connection:
        found.captures = _in_segments(context, connection, event_id)
        try:
            places = None if whole_table else _places(context, found.captures)
            looked_up = context.warehouse.find(connection, event_id, places)
            found.warehouse, found.warehouse_is_whole = _shown(looked_up.rows), looked_up.is_whole
        except WarehouseUnavailable as error:
            found.warehouse_error = str(error)
        captures = {capture["app_id"]: capture for capture in found.captures}
        app_ids = {row["app_id"] for row in found.warehouse} | captures.keys()
        for one in all_integrations(context.store):
            with context.store.begin() as tx:
                end = _end(context, connection, tx, one, event_id)
            if end is None and one.app_id in app_ids:
                end = _before_outbox(one, captures.get(one.app_id))
            if end is not None:
                found.integrations.append({"integration": one.key, **end})
    return found


def _places(context: Context, captures: Sequence[dict[str, Any]]) -> Places:
    """Where rows of an event may be: where it was captured, and among what no run may have read yet."""
    apps = tables.apps
    with context.store.begin() as tx:
        frontiers = tx.execute(sa.select(apps.c.app_id, apps.c.frontier)).all()
    longest_ago = context.now() - UNREAD_DAYS * 86_400_000_000
    return Places(
        [(capture["app_id"], capture["ingested_us"]) for capture in captures],
        {app_id: max(frontier or longest_ago, longest_ago) for app_id, frontier in frontiers},
    )


def _shown(rows: Sequence[EventRow]) -> list[dict[str, Any]]:
    return [
        {
            "app_id": row.app_id,
            "event_type": row.event_type,
            "user_id": row.user_id,
            "created_date": to_text(row.created_date),
            "ingested_at": to_text(row.ingested_at),
        }
        for row in rows
    ]


def _in_segments(context: Context, connection: duckdb.DuckDBPyConnection, event_id: str) -> list[dict[str, Any]]:
    with context.store.begin() as tx:
        segments = {
            str(context.folder.path(row.file)): row for row in tx.execute(sa.select(tables.segments)) if row.file
        }
    known = [Path(path) for path in segments if Path(path).exists()]
    if not known:
        return []
    rows = connection.execute(
        "SELECT filename, file_row_number, app_id, event_type, user_id, epoch_us(created_date), epoch_us(ingested_at), "  # noqa: S608
        f"well_formed FROM {read_files(known, SEGMENT_SCHEMA, 'filename', 'file_row_number')} WHERE id = ?",
        [event_id],
    ).fetchall()
    captures = []
    for filename, row_number, app_id, event_type, user_id, created, ingested, well_formed in rows:
        segment = segments[filename]
        captures.append(
            {
                "app_id": app_id,
                "event_type": event_type,
                "user_id": user_id,
                "created_date": to_text(created),
                "ingested_at": to_text(ingested),
                "ingested_us": ingested,
                "well_formed": well_formed,
                "segment": segment.id,
                "captured_at": to_text(segment.captured_at),
                "run_id": segment.run_id,
                "snapshot": _snapshot(context, connection, segment.id, app_id, row_number),
                "snapshot_sources": _sources(context, connection, segment.id, app_id, row_number),
            }
        )
    return captures


def _snapshot(
    context: Context, connection: duckdb.DuckDBPyConnection, segment_id: int, app_id: str, row_number: int
) -> dict[str, Any] | None:
    """The user properties as of the event; None for events that carry none, or that are not that far yet."""
    parts = tables.segment_apps
    with context.store.begin() as tx:
        name = tx.execute(
            sa.select(parts.c.snapshot_file).where(parts.c.segment_id == segment_id, parts.c.app_id == app_id)
        ).scalar()
    if not name or not context.folder.path(name).exists():
        return None
    names = [one.name for one in contract.PROPERTIES]
    row = connection.execute(
        f"SELECT {', '.join(names)} FROM {read_files([context.folder.path(name)], snapshot_schema())} "  # noqa: S608
        "WHERE app_id = ? AND row = ?",
        [app_id, row_number],
    ).fetchall()
    if not row:
        return None
    return {key: value for key, value in zip(names, row[0], strict=True) if value is not None}


def _sources(
    context: Context, connection: duckdb.DuckDBPyConnection, segment_id: int, app_id: str, row_number: int
) -> dict[str, Any]:
    """For each group of the user properties as of an event, the event that it is from, as far as files still tell."""
    parts = tables.segment_apps
    with context.store.begin() as tx:
        names = tx.execute(
            sa.select(parts.c.segment_id, parts.c.snapshot_file).where(
                parts.c.segment_id <= segment_id, parts.c.app_id == app_id, parts.c.snapshot_file.is_not(None)
            )
        ).all()
    paths = {row.segment_id: context.folder.path(row.snapshot_file) for row in names}
    paths = {number: path for number, path in paths.items() if path.exists()}
    if segment_id not in paths:
        return {}
    own = read_files([paths[segment_id]], snapshot_schema())
    every = read_files(list(paths.values()), snapshot_schema())
    found: dict[str, Any] = {}
    for group, path in contract.GROUPS.items():
        row = connection.execute(
            f"SELECT s.id, epoch_us(s.created_date) FROM {every} s "  # noqa: S608
            f"JOIN (FROM {own} WHERE app_id = ? AND row = ?) own USING (app_id, user_id) "
            f"WHERE s.has_{group} AND (s.created_date, s.id) <= (own.created_date, own.id) "
            "ORDER BY s.created_date DESC, s.id DESC LIMIT 1",
            [app_id, row_number],
        ).fetchone()
        if row is not None:
            found[path.removesuffix("[]")] = {"event_id": row[0], "created_date": to_text(row[1])}
    return found


def _before_outbox(one: Integration, capture: dict[str, Any] | None) -> dict[str, Any]:
    """What stands between an event and an integration that has no outbox with it."""
    if capture is None:
        reason = "" if one.enabled else "the integration is off"
        return {
            "state": "not_captured",
            "reason": reason
            or "not read yet; the next run reads it, unless it was loaded before the integration's start",
        }
    if capture["event_type"] not in one.events:
        return {"state": "not_selected", "reason": f"{capture['event_type']} is not selected"}
    start = one.start_in(capture["segment"])
    if start is not None and capture["ingested_us"] < start:
        if start == one.start_from:
            return {"state": "before_start", "reason": f"the integration starts with {to_text(start)}"}
        reason = f"the app was read once more for another integration; this one had been read up to {to_text(start)}"
        return {"state": "before_start", "reason": reason}
    if capture["segment"] <= one.prepared_through:
        return {"state": "expired", "reason": "its receipts are past their retention"}
    reason = one.halted_reason or ("" if one.enabled else "the integration is off")
    return {"state": "captured", "reason": reason or "the next run prepares it"}


def _end(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: Transaction, one: Integration, event_id: str
) -> dict[str, Any] | None:
    """Where the event is from its outbox on; None if no outbox has it. What the exceptions say wins over receipts."""
    return (
        _in_exceptions(tx, one, event_id)
        or _in_open_outboxes(context, tx, one, event_id)
        or _in_receipts(context, connection, tx, one, event_id)
    )


def _in_exceptions(tx: Transaction, one: Integration, event_id: str) -> dict[str, Any] | None:
    table, requests, pauses = tables.exceptions, tables.requests, tables.pauses
    row = tx.execute(
        sa.select(table)
        .where(table.c.integration_id == one.id, table.c.event_id == event_id)
        .order_by(table.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    outbox = sa.select(tables.outboxes).where(
        tables.outboxes.c.integration_id == one.id, tables.outboxes.c.segment_id == row.segment_id
    )
    end: dict[str, Any] = {
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
        until = tx.execute(
            sa.select(sa.func.max(pauses.c.until)).where(
                pauses.c.integration_id == one.id,
                pauses.c.identity.in_((row.identity, "")),  # the empty one is the whole integration
            )
        ).scalar()
        end["paused_until"] = to_text(until)
    if row.state == "dead":
        end["dead_letter"] = row.id
    return end


def _in_open_outboxes(context: Context, tx: Transaction, one: Integration, event_id: str) -> dict[str, Any] | None:
    boxes = tables.outboxes
    rows = tx.execute(
        sa.select(boxes).where(boxes.c.integration_id == one.id, boxes.c.done_at.is_(None)).order_by(boxes.c.id.desc())
    ).all()
    for box in rows:
        lanes = tx.execute(sa.select(tables.lanes).where(tables.lanes.c.outbox_id == box.id)).all()
        own = [(lane, range(lane.batch, lane.batch - (-lane.rows // LANE_BATCH_ROWS))) for lane in lanes]
        place = _find(context.folder.path(box.file), own, box.others_batch, box.rows, event_id)
        if place is None:
            continue
        lane, row, state, reason = place
        if lane is None:
            return {"state": _STATES.get(state, state), "reason": reason, "outbox": _outbox(box)}
        return {**_in_lane(tx, lane, row), "outbox": _outbox(box)}
    return None


def _find(
    path: Path, lanes: Sequence[tuple[Any, range]], others_batch: int | None, rows: int, event_id: str
) -> tuple[Any, int, str, str | None] | None:
    """(lane or None, its row, state, reason) of an event in an outbox; only one integration's share of it is read."""
    if not path.exists():
        return None
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
                    return None
                left -= batch.num_rows
            at = pc.index(batch["id"], pa.scalar(event_id)).as_py()
            if at >= 0:
                return lane, base + at, batch["state"][at].as_py(), batch["reason"][at].as_py()
    return None


def _in_lane(tx: Transaction, lane: Any, row: int) -> dict[str, Any]:
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
    context: Context, connection: duckdb.DuckDBPyConnection, tx: Transaction, one: Integration, event_id: str
) -> dict[str, Any] | None:
    boxes = tables.outboxes
    by_file = {
        str(context.folder.path(box.receipts_file)): box
        for box in tx.execute(
            sa.select(boxes).where(boxes.c.integration_id == one.id, boxes.c.receipts_file.is_not(None))
        )
    }
    known = [Path(path) for path in by_file if Path(path).exists()]
    if not known:
        return None
    rows = connection.execute(
        "SELECT filename, state, reason, identity, request_id "  # noqa: S608
        f"FROM {read_files(known, RECEIPT_SCHEMA, 'filename')} WHERE id = ?",
        [event_id],
    ).fetchall()
    if not rows:
        return None
    # An event that waited for a login stands in two: the later one says how it ended.
    filename, state, reason, identity, request_id = max(rows, key=lambda row: by_file[row[0]].id)
    request = tx.execute(sa.select(tables.requests).where(tables.requests.c.id == request_id)).one_or_none()
    return {
        "state": _STATES.get(state, state),
        "reason": reason,
        "identity": identity,
        "outbox": _outbox(by_file[filename]),
        "request": _request(request),
    }


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
