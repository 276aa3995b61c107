"""The facts of a stage's work for a partition, as plain values for any page: counts by outcome, times, a few rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Delivered
from nami_amp_pipeline.stages.capture import Captured
from nami_amp_pipeline.stages.outbox_writer import Prepared
from nami_amp_pipeline.stages.previews import (
    PREVIEW_ROWS,
    created_between,
    receipt_preview,
    segment_preview,
    snapshot_preview,
)
from nami_amp_pipeline.stages.snapshots import Snapshotted
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration

ROWS: Final = "rows"
"""The fact that every partition has: how many events were moved."""

FROM: Final = "nami/from"
TO: Final = "nami/to"
"""Numbers, the last one before what is new, and the last one of it: of deliveries they are those of requests, of
prepared events those of outboxes, of captured events and of snapshots those of segments."""

PREVIEWED_PARTITIONS = 20
"""A run that moves more partitions than this shows no rows of them: each preview opens a file."""


@dataclass(frozen=True)
class Moment:
    """A time, or None."""

    at: datetime | None


@dataclass(frozen=True)
class Counts:
    """Numbers by name.

    Attributes:
        of: the meaning of the names.
        numbers: by name.
    """

    of: str
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class Rows:
    """A few rows of a table, by column."""

    rows: Sequence[Mapping[str, Any]]


Fact = int | float | str | Moment | Counts | Rows
Facts = dict[str, Fact]
"""The facts of one partition, by name; :data:`ROWS` is always present."""


def describe_captured(context: Context, _apps: Sequence[str], moved: Mapping[str, Captured]) -> dict[str, Facts]:
    """Facts of ``nami_events`` by app, of those that have new rows."""
    if not moved:
        return {}
    names = _segment_files(context, [number for moved_rows in moved.values() for number in moved_rows.segments])
    found = {}
    for app_id, moved_rows in moved.items():
        if not moved_rows.rows:
            continue
        facts: Facts = {
            ROWS: moved_rows.rows,
            "events_by_type": Counts("event type", moved_rows.types),
            "malformed_payloads": moved_rows.malformed,
            "lag_seconds": round(max(0.0, (context.now() - moved_rows.min_ingested_at) / 1e6), 3),
            "first_event": moment(moved_rows.min_created_date),
            "last_event": moment(moved_rows.max_created_date),
            "first_loaded": moment(moved_rows.min_ingested_at),
            "last_loaded": moment(moved_rows.max_ingested_at),
            "segments": len(moved_rows.segments),
            FROM: min(moved_rows.segments) - 1,
            TO: max(moved_rows.segments),
            "segment_bytes": sum(context.folder.sizes(names[number] for number in moved_rows.segments)),
        }
        if len(moved) <= PREVIEWED_PARTITIONS:
            facts["preview"] = Rows(segment_preview(context.folder.fetch(names[moved_rows.segments[0]]), app_id))
        found[app_id] = facts
    return found


def describe_snapshotted(context: Context, _apps: Sequence[str], moved: Mapping[str, Snapshotted]) -> dict[str, Facts]:
    """Facts of ``user_property_snapshots`` by app, of those that have new snapshots."""
    found = {}
    for app_id, computed in moved.items():
        if not computed.events:
            continue
        facts: Facts = {
            ROWS: computed.events,
            "users": computed.users,
            "truncated_arrays": computed.truncated_arrays,
            FROM: min(computed.segments) - 1,
            TO: max(computed.segments),
        }
        if computed.without:
            facts["events_without"] = Counts("property", computed.without)
        if len(moved) <= PREVIEWED_PARTITIONS:
            paths = context.folder.fetch_all(computed.files)
            first, last = created_between(paths, app_id)
            facts["first_event"] = Moment(first)
            facts["last_event"] = Moment(last)
            facts["file_bytes"] = sum(path.stat().st_size for path in paths)
            facts["preview"] = Rows(snapshot_preview(paths[0], app_id))
        found[app_id] = facts
    return found


def describe_prepared(
    context: Context, integrations: Sequence[Integration], moved: Mapping[str, Prepared]
) -> dict[str, Facts]:
    """Facts of ``amplitude_events`` by partition key, of the integrations that have new events."""
    found = {}
    spans = _spans(context, tables.outboxes) if any(done.captured or done.sendable for done in moved.values()) else {}
    for integration in integrations:
        done = moved.get(integration.partition_key)
        if done is None or not (done.captured or done.sendable):
            continue
        facts: Facts = {
            ROWS: done.sendable,
            "captured": done.captured,
            "to_send": done.sendable,
            "skipped": sum(done.skipped.values()),
            "dead_letters": sum(done.dead.values()),
            "waiting_for_login": done.waiting,
            "outcomes": Counts(
                "outcome",
                {
                    "to send": done.sendable,
                    "waiting for login": done.waiting,
                    **{f"skipped: {reason}": events for reason, events in sorted(done.skipped.items())},
                    **{f"dead letter: {reason}": events for reason, events in sorted(done.dead.items())},
                },
            ),
            "bytes": done.bytes,
        }
        if integration.id in spans:
            first, last = spans[integration.id]
            facts |= {FROM: first - 1, TO: last}
        if done.preview and len(moved) <= PREVIEWED_PARTITIONS:
            facts["preview"] = Rows([_event_row(body) for body in done.preview[:PREVIEW_ROWS]])
        found[integration.partition_key] = facts
    return found


def describe_delivered(
    context: Context, integrations: Sequence[Integration], moved: Mapping[str, Delivered]
) -> dict[str, Facts]:
    """Facts of ``amplitude_deliveries`` by partition key, of the integrations of which events came to an end."""
    results = (
        (integration, moved[integration.partition_key])
        for integration in integrations
        if integration.partition_key in moved
    )
    concerned = [(integration, done) for integration, done in results if done.delivered or done.dead]
    if not concerned:
        return {}
    requests = _requests(context)
    spans = _spans(context, tables.requests)
    receipts = _receipt_files(context)
    found = {}
    for integration, done in concerned:
        facts: Facts = {
            ROWS: done.delivered,
            "delivered": done.delivered,
            "dead_letters": sum(done.dead.values()),
            "requests": sum(done.requests.values()),
            "requests_by_status": Counts("HTTP status and outcome", requests.get(integration.id, {})),
            "bytes": done.bytes,
            "endpoint": integration.endpoint,
        }
        if integration.id in spans:
            first, last = spans[integration.id]
            facts |= {FROM: first - 1, TO: last}
        if done.dead:
            facts["dead_letters_by_reason"] = Counts("reason", done.dead)
        if done.error:
            facts["error"] = done.error
        if integration.id in receipts and len(concerned) <= PREVIEWED_PARTITIONS:
            preview = receipt_preview(context.folder.fetch_all(receipts[integration.id]))
            facts["first_event"] = Moment(preview.first)
            facts["last_event"] = Moment(preview.last)
            facts["preview"] = Rows(preview.rows)
        found[integration.partition_key] = facts
    return found


def moment(us: int | None) -> Moment:
    """A time of the store, in µs since the epoch."""
    return Moment(None if us is None else to_datetime(us))


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


def _spans(context: Context, table: sa.Table) -> dict[int, tuple[int, int]]:
    """The first and last number of this run's requests or outboxes, by integration id."""
    query = (
        sa.select(table.c.integration_id, sa.func.min(table.c.id), sa.func.max(table.c.id))
        .where(table.c.run_id == context.run_id)
        .group_by(table.c.integration_id)
    )
    with context.store.begin() as tx:
        return {integration_id: (first, last) for integration_id, first, last in tx.execute(query)}


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
    try:
        event = orjson.loads(body.lstrip(","))
    except orjson.JSONDecodeError:  # numbers beyond the range of a float are sent unchanged
        return {"insert_id": "", "event_type": "", "user_id": None, "time": "", "user_properties": body[:300]}
    return {
        "insert_id": event["insert_id"],
        "event_type": event["event_type"],
        "user_id": event.get("user_id"),
        "time": to_text(event["time"] * 1000),
        "user_properties": orjson.dumps(event.get("user_properties", {})).decode()[:300],
    }
