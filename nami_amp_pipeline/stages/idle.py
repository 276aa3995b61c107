"""Who has work: asked once for all, so that a tick takes no leases for thousands of apps without news."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.waiting import is_expired
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration


def lacking_snapshots(context: Context, app_ids: Sequence[str]) -> Sequence[str]:
    """The apps with a segment that has no snapshots."""
    parts = tables.segment_apps
    query = sa.select(parts.c.app_id).where(parts.c.snapshot_file.is_(None)).distinct()
    with context.store.reading() as tx:
        lacking = set(tx.execute(query).scalars())
    return [app_id for app_id in app_ids if app_id in lacking]


def to_prepare(context: Context, integrations: Sequence[Integration]) -> Sequence[Integration]:
    """The integrations that lack a segment, whose events have waited too long, or that are to be counted by hour."""
    table, parts, exceptions = tables.integrations, tables.segment_apps, tables.exceptions
    queries = (
        sa.select(table.c.id)
        .join(parts, parts.c.app_id == table.c.app_id)
        .where(parts.c.segment_id > table.c.prepared_through, table.c.enabled, table.c.halted_reason.is_(None))
        .distinct(),
        sa.select(exceptions.c.integration_id).where(is_expired(context)).distinct(),
        sa.select(table.c.id).where(table.c.counted_since.is_not(None)),
    )
    return _chosen(context, integrations, queries)


def to_deliver(context: Context, integrations: Sequence[Integration]) -> Sequence[Integration]:
    """The integrations with an unfinished outbox or held events, and those that are halted, which have that to say."""
    table, boxes, exceptions = tables.integrations, tables.outboxes, tables.exceptions
    queries = (
        sa.select(boxes.c.integration_id).where(boxes.c.done_at.is_(None)).distinct(),
        sa.select(exceptions.c.integration_id).where(exceptions.c.state == "held").distinct(),
        sa.select(table.c.id).where(table.c.halted_reason.is_not(None)),
    )
    return _chosen(context, integrations, queries)


def _chosen(
    context: Context, integrations: Sequence[Integration], queries: Sequence[sa.Select[tuple[int]]]
) -> list[Integration]:
    with context.store.reading() as tx:
        chosen = {number for query in queries for number in tx.execute(query).scalars()}
    return [integration for integration in integrations if integration.id in chosen]
