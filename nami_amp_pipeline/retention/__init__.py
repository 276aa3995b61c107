"""Retention: removes data that nothing needs any more, so that nothing grows without bound.

Every removal is one transaction that deletes rows. Their files are then marked, and removed later, when no process can
still be reading them. If it is killed in between, the next run reaches the same end.
"""

from __future__ import annotations

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Busy
from nami_amp_pipeline.retention.files import sweep
from nami_amp_pipeline.retention.plans import expire_plans
from nami_amp_pipeline.retention.report import Removed, RetentionReport
from nami_amp_pipeline.retention.rows import (
    expire_comparison_requests,
    expire_dead_letters,
    expire_hours,
    expire_leases,
    expire_pauses,
    expire_receipts,
    expire_reconciled,
    expire_requests,
    expire_resends,
    expire_settled,
    expire_sign_ins,
    expire_troubles,
)
from nami_amp_pipeline.retention.segments import expire_segments

LEASE = "retention"


def retain(context: Context, *, dry_run: bool = False) -> RetentionReport:
    """Removes data from the store and the data folder that is past its retention and that nothing needs.

    Safe beside micro-batches: its transactions are short, it takes none of their leases, and removes nothing that they
    read.

    Args:
        context: the process at work.
        dry_run: only report what would be removed; nothing is written.

    Raises:
        Busy: another process removes data at the moment.
        StoreUnavailable: the store cannot be read or written; every removal so far is complete.
    """
    report = RetentionReport(dry_run=dry_run)
    if dry_run:
        _all(context, report)
        return report
    leases = context.store.acquire([LEASE])
    if not leases:
        raise Busy("another retention run is removing data at the moment")
    try:
        _all(context, report)
    finally:
        context.store.release(leases.values())
    return report


def _all(context: Context, report: RetentionReport) -> None:
    expire_segments(context, report)
    expire_receipts(context, report)
    expire_requests(context, report)
    expire_settled(context, report)
    expire_dead_letters(context, report)
    expire_reconciled(context, report)
    expire_hours(context, report)
    expire_pauses(context, report)
    expire_leases(context, report)
    expire_troubles(context, report)
    expire_resends(context, report)
    expire_sign_ins(context, report)
    expire_comparison_requests(context, report)
    expire_plans(context, report)
    sweep(context, report)


__all__ = ["Removed", "RetentionReport", "retain"]
