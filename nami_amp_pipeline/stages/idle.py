"""Who has work: asked once for all, so that a tick neither reads nor leases thousands of apps without news."""

from __future__ import annotations

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.waiting import is_expired
from nami_amp_pipeline.state import tables


def lacking_snapshots(context: Context) -> set[str]:
    """The apps with a segment that has no snapshots."""
    parts = tables.segment_apps
    query = sa.select(parts.c.app_id).where(parts.c.snapshot_file.is_(None)).distinct()
    with context.store.reading() as tx:
        return set(tx.execute(query).scalars())


def to_prepare(context: Context) -> set[int]:
    """The integrations that lack a segment, whose events have waited too long, or that are to be counted by hour."""
    table, parts, exceptions = tables.integrations, tables.segment_apps, tables.exceptions
    return _all(
        context,
        sa.select(table.c.id)
        .join(parts, parts.c.app_id == table.c.app_id)
        .where(parts.c.segment_id > table.c.prepared_through, table.c.enabled, table.c.halted_reason.is_(None))
        .distinct(),
        sa.select(exceptions.c.integration_id).where(is_expired(context)).distinct(),
        sa.select(table.c.id).where(table.c.counted_since.is_not(None)),
    )


def to_deliver(context: Context) -> set[int]:
    """The integrations with an unfinished outbox or held events, and those that are halted, which have that to say."""
    table, boxes, exceptions = tables.integrations, tables.outboxes, tables.exceptions
    return _all(
        context,
        sa.select(boxes.c.integration_id).where(boxes.c.done_at.is_(None)).distinct(),
        sa.select(exceptions.c.integration_id).where(exceptions.c.state == "held").distinct(),
        sa.select(table.c.id).where(table.c.halted_reason.is_not(None)),
    )


def _all(context: Context, *queries: sa.Select[tuple[int]]) -> set[int]:
    with context.store.reading() as tx:
        return {number for query in queries for number in tx.execute(query).scalars()}
