"""Plans of backfills that nobody ran: their files take as much room as what they would send."""

from __future__ import annotations

from typing import Final

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.retention.files import DAY, let_go, size_of
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.state import backfills, tables

PLAN_DAYS: Final = 7
"""A plan is kept for so long: what it counts as recognised by Amplitude is not any more."""


def expire_plans(context: Context, report: RetentionReport) -> None:
    """Cancels the planned backfills that are past that time, and lets their files go."""
    table = tables.backfills
    old = (table.c.state == "planned", table.c.created_at < context.now() - PLAN_DAYS * DAY)
    context.step("retention.commit")
    files: list[str] = []
    with context.store.begin() as tx:
        expired = backfills.read(tx, *old)
        for backfill in expired:
            files += [file.file for file in backfills.files_of(tx, backfill.id)]
            if not report.dry_run:
                backfills.move(context.store, tx, backfill.id, "cancelled", error=f"not run within {PLAN_DAYS} days")
    context.step("retention.committed")
    if expired:
        measure = size_of if report.dry_run else let_go
        report.add("plans", rows=len(expired), sizes=measure(context, files))
