"""Segments with their snapshots, kept as long as a row that is loaded again must be recognised.

A segment is needed by integrations that have not prepared it, by those whose outbox of it is still open, and as long as
the ledger holds its ids: such an event is not read again, so a new integration that starts earlier takes it from here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.retention.files import DAY, let_go, size_of
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.stages import captured_ids as ledger
from nami_amp_pipeline.state import Transaction, tables
from nami_amp_pipeline.state.integration_rows import Integration, read_all

_AT_ONCE = 200


def expire_segments(context: Context, report: RetentionReport) -> None:
    """Removes segments that are past the retention of the ledger and that nothing needs."""
    table, all_gone = tables.segments, set[int]()
    before, last = context.now() - int(context.settings.ledger_retention_days * DAY), 0
    while True:
        context.step("retention.commit")
        with context.store.begin() as tx:
            rows = tx.execute(
                sa.select(table.c.id, table.c.file, table.c.captured_at)
                .where(table.c.id > last, table.c.captured_at < before, table.c.in_ledger)
                .order_by(table.c.id)
                .limit(_AT_ONCE)
            ).all()
            if not rows:
                break
            last = rows[-1].id
            known = [(run.oldest, run.newest) for run in ledger.needed_runs(context, tx)]
            needed = _needed(tx, [row.id for row in rows], report)
            needed |= {row.id for row in rows if any(first <= row.captured_at <= end for first, end in known)}
            gone = {row.id: row.file for row in rows if row.id not in needed}
            snapshots = _snapshot_files(tx, list(gone))
            if not report.dry_run:
                tx.execute(sa.delete(tables.segment_apps).where(tables.segment_apps.c.segment_id.in_(gone)))
                tx.execute(sa.delete(table).where(table.c.id.in_(gone)))
        context.step("retention.committed")
        all_gone.update(gone)
        measure = size_of if report.dry_run else let_go
        report.add("segments", rows=len(gone), sizes=measure(context, gone.values()))
        report.add("snapshots", sizes=measure(context, snapshots))
    files, _, size = ledger.expire(context, without=all_gone, dry_run=report.dry_run)
    report.add_files("captured_ids", rows=files, files=files, size=size)


def _snapshot_files(tx: Transaction, segment_ids: Sequence[int]) -> list[str]:
    parts = tables.segment_apps
    return list(
        tx.execute(
            sa.select(parts.c.snapshot_file)
            .where(parts.c.segment_id.in_(segment_ids), parts.c.snapshot_file.is_not(None))
            .distinct()
        ).scalars()
    )


def _needed(tx: Transaction, segment_ids: Sequence[int], report: RetentionReport) -> set[int]:
    """Those segments that an integration still needs; notes which."""
    parts, integrations, boxes = tables.segment_apps, tables.integrations, tables.outboxes
    by_app: dict[str, list[Integration]] = defaultdict(list)
    for integration in read_all(tx):
        by_app[integration.app_id].append(integration)
    rows = tx.execute(
        sa.select(parts.c.segment_id, parts.c.app_id, parts.c.snapshot_file, parts.c.max_ingested_at).where(
            parts.c.segment_id.in_(segment_ids)
        )
    )
    found = {
        (row.segment_id, integration.key)
        for row in rows
        for integration in by_app[row.app_id]
        if row.snapshot_file is None or integration.lacks(row.segment_id, row.max_ingested_at)
    }
    by_outbox = (
        sa.select(boxes.c.segment_id, integrations.c.app_id + "/" + integrations.c.name)
        .join(integrations, integrations.c.id == boxes.c.integration_id)
        .where(boxes.c.segment_id.in_(segment_ids), boxes.c.done_at.is_(None))
    )
    found |= set(tx.execute(by_outbox).tuples())
    for _, name in found:
        report.held_back[name] = report.held_back.get(name, 0) + 1
    return {segment_id for segment_id, _ in found}
