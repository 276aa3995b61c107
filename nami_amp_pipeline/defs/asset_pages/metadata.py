"""What a materialization tells the people on call: counts by outcome, times, bytes, lag, a few rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import dagster as dg
import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.asset_pages.previews import (
    PREVIEW_ROWS,
    created_between,
    receipt_preview,
    segment_preview,
    snapshot_preview,
)
from nami_amp_pipeline.delivery.attempt import Delivered
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.stages.capture import Captured
from nami_amp_pipeline.stages.prepare import Prepared
from nami_amp_pipeline.stages.snapshots import Snapshotted
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration

Facts = dict[str, Any]
"""Metadata of one materialization."""

ROW_COUNT = "dagster/partition_row_count"

PREVIEWED_PARTITIONS = 20
"""A run that moves more partitions than this shows no rows of them: each preview opens a file."""


def captured(context: Context, moved: Mapping[str, Captured]) -> dict[str, Facts]:
    """Metadata of ``nami_events`` by partition key, of the apps that have new rows."""
    if not moved:
        return {}
    names = _segment_files(context, [number for one in moved.values() for number in one.segments])
    found = {}
    for app_id, one in moved.items():
        if not one.rows:
            continue
        facts: Facts = {
            ROW_COUNT: one.rows,
            "events_by_type": _counts(one.types, "event type"),
            "malformed_payloads": one.malformed,
            "lag_seconds": _seconds_since(context, one.min_ingested_at),
            "first_event": _moment(one.min_created_date),
            "last_event": _moment(one.max_created_date),
            "first_loaded": _moment(one.min_ingested_at),
            "last_loaded": _moment(one.max_ingested_at),
            "segments": len(one.segments),
            "segment_bytes": sum(context.folder.path(names[number]).stat().st_size for number in one.segments),
        }
        if len(moved) <= PREVIEWED_PARTITIONS:
            facts["preview"] = _table(segment_preview(context.folder.path(names[one.segments[0]]), app_id))
        found[app_id] = facts
    return found


def snapshotted(context: Context, moved: Mapping[str, Snapshotted]) -> dict[str, Facts]:
    """Metadata of ``user_property_snapshots`` by partition key, of the apps that have new snapshots."""
    found = {}
    for app_id, one in moved.items():
        if not one.events:
            continue
        facts: Facts = {
            ROW_COUNT: one.events,
            "users": one.users,
            "truncated_arrays": one.truncated_arrays,
        }
        if len(moved) <= PREVIEWED_PARTITIONS:
            paths = [context.folder.path(name) for name in one.files]
            first, last = created_between(paths, app_id)
            facts["first_event"] = dg.MetadataValue.timestamp(first)
            facts["last_event"] = dg.MetadataValue.timestamp(last)
            facts["file_bytes"] = sum(path.stat().st_size for path in paths)
            facts["preview"] = _table(snapshot_preview(paths[0], app_id))
        found[app_id] = facts
    return found


def prepared(context: Context, integrations: Iterable[Integration], moved: Mapping[int, Prepared]) -> dict[str, Facts]:
    """Metadata of ``amplitude_events`` by partition key, of the integrations that have new events."""
    found = {}
    for one in integrations:
        done = moved.get(one.id)
        if done is None or not (done.captured or done.sendable):
            continue
        found[one.partition_key] = {
            ROW_COUNT: done.sendable,
            "captured": done.captured,
            "to_send": done.sendable,
            "skipped": sum(done.skipped.values()),
            "dead_letters": sum(done.dead.values()),
            "waiting_for_login": done.waiting,
            "outcomes": _counts(
                {
                    "to send": done.sendable,
                    "waiting for login": done.waiting,
                    **{f"skipped: {reason}": events for reason, events in sorted(done.skipped.items())},
                    **{f"dead letter: {reason}": events for reason, events in sorted(done.dead.items())},
                },
                "outcome",
            ),
            "bytes": done.bytes,
        }
        if done.preview and len(moved) <= PREVIEWED_PARTITIONS:
            found[one.partition_key]["preview"] = _table([_event_row(body) for body in done.preview[:PREVIEW_ROWS]])
    return found


def delivered(
    context: Context, integrations: Sequence[Integration], moved: Mapping[int, Delivered]
) -> dict[str, Facts]:
    """Metadata of ``amplitude_deliveries`` by partition key, of the integrations of which events came to an end."""
    concerned = [one for one in integrations if one.id in moved and (moved[one.id].delivered or moved[one.id].dead)]
    if not concerned:
        return {}
    requests = _requests(context)
    receipts = _receipt_files(context)
    found = {}
    for one, now in zip(concerned, status(context, concerned), strict=True):
        done = moved[one.id]
        facts: Facts = {
            ROW_COUNT: done.delivered,
            "delivered": done.delivered,
            "dead_letters": sum(done.dead.values()),
            "pending": now.pending,
            "lag_seconds": round(now.lag_seconds, 3),
            "watermark": _moment(now.watermark),
            "requests": sum(done.requests.values()),
            "requests_by_status": _counts(requests.get(one.id, {}), "HTTP status and outcome"),
            "bytes": done.bytes,
            "endpoint": one.endpoint,
            "since_the_beginning": _counts(
                {
                    "captured": now.captured,
                    "delivered": now.delivered,
                    "skipped": sum(now.skipped.values()),
                    "dead letters": sum(now.dead_letters.values()),
                    "pending": now.pending,
                },
                "outcome",
            ),
            "how_to_trace": dg.MetadataValue.md(_how_to_trace(one, context.run_id)),
        }
        if done.dead:
            facts["dead_letters_by_reason"] = _counts(done.dead, "reason")
        if done.error:
            facts["error"] = done.error
        if one.id in receipts and len(concerned) <= PREVIEWED_PARTITIONS:
            preview = receipt_preview([context.folder.path(name) for name in receipts[one.id]])
            facts["first_event"] = dg.MetadataValue.timestamp(preview.first)
            facts["last_event"] = dg.MetadataValue.timestamp(preview.last)
            facts["preview"] = _table(preview.rows)
        found[one.partition_key] = facts
    return found


def _how_to_trace(one: Integration, run_id: str) -> str:
    return (
        f"Where one event is: `nami-amp trace EVENT_ID`. What was refused: `nami-amp dead-letters list {one.key}`. "
        f"How things stand: `nami-amp status`. All of this run: [run {run_id[:8]}](/runs/{run_id})."
    )


def _segment_files(context: Context, numbers: Sequence[int]) -> dict[int, str]:
    table = tables.segments
    with context.store.begin() as tx:
        query = sa.select(table.c.id, table.c.file).where(table.c.id.between(min(numbers), max(numbers)))
        return dict(tx.execute(query).tuples().all())


def _requests(context: Context) -> dict[int, dict[str, int]]:
    """Requests of this run by status and outcome, by integration id."""
    table = tables.requests
    query = (
        sa.select(table.c.integration_id, table.c.status, table.c.outcome, sa.func.count())
        .where(table.c.run_id == context.run_id)
        .group_by(table.c.integration_id, table.c.status, table.c.outcome)
        .order_by(table.c.status, table.c.outcome)
    )
    found: dict[int, dict[str, int]] = {}
    with context.store.begin() as tx:
        for integration_id, number, outcome, requests in tx.execute(query):
            found.setdefault(integration_id, {})[f"{number or 'no answer'} {outcome}"] = requests
    return found


def _receipt_files(context: Context) -> dict[int, list[str]]:
    """Receipts of the outboxes that this run prepared and finished, by integration id."""
    table = tables.outboxes
    query = (
        sa.select(table.c.integration_id, table.c.receipts_file)
        .where(table.c.run_id == context.run_id, table.c.receipts_file.is_not(None))
        .order_by(table.c.id)
    )
    found: dict[int, list[str]] = {}
    with context.store.begin() as tx:
        for integration_id, name in tx.execute(query):
            found.setdefault(integration_id, []).append(name)
    return found


def _event_row(body: str) -> dict[str, Any]:
    event = orjson.loads(body.lstrip(","))
    return {
        "insert_id": event["insert_id"],
        "event_type": event["event_type"],
        "user_id": event.get("user_id"),
        "time": to_text(event["time"] * 1000),
        "user_properties": orjson.dumps(event.get("user_properties", {})).decode()[:300],
    }


def _counts(counts: Mapping[str, int], of: str) -> dg.TableMetadataValue:
    schema = dg.TableSchema([dg.TableColumn(of, "text"), dg.TableColumn("count", "int")])
    return dg.MetadataValue.table(
        [dg.TableRecord({of: name, "count": number}) for name, number in counts.items()], schema
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as text, so that empty fields do not change a column's type."""
    names = list(rows[0]) if rows else []
    return dg.MetadataValue.table(
        [dg.TableRecord({name: _text(row[name]) for name in names}) for row in rows],
        dg.TableSchema([dg.TableColumn(name, "text") for name in names]),
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return "" if value is None else str(value)


def _moment(us: int | None) -> dg.MetadataValue[Any]:
    return dg.MetadataValue.null() if us is None else dg.MetadataValue.timestamp(to_datetime(us))


def _seconds_since(context: Context, us: int) -> float:
    return round(max(0.0, (context.now() - us) / 1e6), 3)
