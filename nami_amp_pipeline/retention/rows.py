"""Rows of the state store, and receipts: the ends of delivered events, kept as long as people may ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.retention.files import DAY, let_go, size_of
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.state import Transaction, backfills, hourly_counts, live_first, tables
from nami_amp_pipeline.state.journal import SIGN_INS

_AT_ONCE = 500

SIGN_IN_DAYS = 90
"""So long is it kept who signed in to the Control Center."""


def expire_receipts(context: Context, report: RetentionReport) -> None:
    """Removes outboxes that were done before the retention of receipts, with their lanes and receipts."""
    table = tables.outboxes
    before = context.now() - int(context.settings.receipt_retention_days * DAY)
    query = sa.select(table.c.id, table.c.receipts_file).where(table.c.done_at < before)

    def remove(tx: Transaction, ids: Sequence[int]) -> None:
        tx.execute(sa.delete(tables.lanes).where(tables.lanes.c.outbox_id.in_(ids)))
        tx.execute(sa.delete(table).where(table.c.id.in_(ids)))

    def removed(rows: Sequence[Any]) -> None:
        measure = size_of if report.dry_run else let_go
        files = [row.receipts_file for row in rows if row.receipts_file]
        report.add("receipts", rows=len(rows), sizes=measure(context, files))

    _in_parts(context, report, query, table.c.id, remove, removed)


def expire_requests(context: Context, report: RetentionReport) -> None:
    """Removes the records of requests that were sent before the retention of receipts.

    Requests of open outboxes are kept, because their receipts will name them, and so is the newest delivered request of
    each integration, from which on refusals are counted.
    """
    table = tables.requests
    before = context.now() - int(context.settings.receipt_retention_days * DAY)
    with context.store.begin() as tx:
        ids = list(tx.execute(sa.select(tables.integrations.c.id)).scalars())
    for integration_id in ids:
        mine = table.c.integration_id == integration_id
        newest = (
            sa.select(table.c.id)
            .where(mine, table.c.outcome == "delivered")
            .order_by(table.c.sent_at.desc(), table.c.id.desc())
            .limit(1)
        )
        query = sa.select(table.c.id).where(
            mine,
            table.c.sent_at < before,
            table.c.id.not_in(newest),
            sa.or_(table.c.lane_id.is_(None), table.c.lane_id.not_in(_open_lanes())),
        )
        _in_parts(context, report, query, table.c.id, _delete_from(table), _rows_of(report, "requests"))


def expire_settled(context: Context, report: RetentionReport) -> None:
    """Removes the rows of exceptions that were delivered or skipped before the retention of receipts."""
    before = context.now() - int(context.settings.receipt_retention_days * DAY)
    for state in ("delivered", "skipped"):
        _expire_exceptions(context, report, state, before, "settled_events")


def expire_dead_letters(context: Context, report: RetentionReport) -> None:
    """Removes dead letters that are past their retention; ``status`` still counts them."""
    before = context.now() - int(context.settings.dead_letter_retention_days * DAY)
    _expire_exceptions(context, report, "dead", before, "dead_letters")


def expire_resends(context: Context, report: RetentionReport) -> None:
    """Removes the records of dead letters that were sent again, no later than these letters."""
    table = tables.resends
    before = context.now() - int(context.settings.dead_letter_retention_days * DAY)
    _at_once(context, report, table, table.c.at < before, "resends")


def expire_sign_ins(context: Context, report: RetentionReport) -> None:
    """Removes the records of sign-ins that are older than :data:`SIGN_IN_DAYS`."""
    table = tables.journal
    old = sa.and_(table.c.kind.in_(SIGN_INS), table.c.at < context.now() - SIGN_IN_DAYS * DAY)
    _at_once(context, report, table, old, "sign_ins")


def expire_comparison_requests(context: Context, report: RetentionReport) -> None:
    """Removes what people asked to have compared, with what comparisons found."""
    table = tables.comparison_requests
    before = context.now() - int(context.settings.receipt_retention_days * DAY)
    _at_once(context, report, table, table.c.asked_at < before, "comparison_requests")


def _expire_exceptions(context: Context, report: RetentionReport, state: str, before: int, kind: str) -> None:
    table = tables.exceptions
    query = sa.select(table.c.id).where(
        table.c.state == state,
        table.c.at < before,
        # The receipts of an open outbox will be made from them.
        sa.or_(table.c.lane_id.is_(None), table.c.lane_id.not_in(_open_lanes())),
    )

    def remove(tx: Transaction, ids: Sequence[int]) -> None:
        # A person may be retrying it at this moment.
        tx.execute(sa.delete(table).where(table.c.id.in_(ids), table.c.state == state))

    _in_parts(context, report, query, table.c.id, remove, _rows_of(report, kind))


def expire_reconciled(context: Context, report: RetentionReport) -> None:
    """Removes what comparisons found of days before the retention of receipts."""
    before = context.now() - int(context.settings.receipt_retention_days * DAY)
    for table in (tables.reconciled_days, tables.reconciled_classes, tables.reconciled_samples):
        _at_once(context, report, table, table.c.day < before, "reconciled_days")


def expire_hours(context: Context, report: RetentionReport) -> None:
    """Removes the counts of hours that nobody can ask for any more; ``status`` still counts their events."""
    table = tables.hourly_counts
    before = context.now() - hourly_counts.KEPT_HOURS * hourly_counts.HOUR
    with context.store.reading() as tx:
        ids = list(tx.execute(sa.select(tables.integrations.c.id)).scalars())
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        _at_once(context, report, table, sa.and_(table.c.integration_id.in_(some), table.c.hour < before), "hours")


def expire_pauses(context: Context, report: RetentionReport) -> None:
    """Removes pauses that ended more than a day ago and behind which no event is held."""
    table, exceptions = tables.pauses, tables.exceptions
    waits = sa.exists().where(
        exceptions.c.integration_id == table.c.integration_id,
        exceptions.c.state == "held",
        exceptions.c.identity == table.c.identity,
    )
    ended = sa.and_(table.c.until < context.now() - DAY, ~waits)
    _at_once(context, report, table, ended, "pauses")


def expire_leases(context: Context, report: RetentionReport) -> None:
    """Removes the leases of integrations, apps, backfills and runs that no longer exist, a day after they expired."""
    table, integrations = tables.leases, tables.integrations
    subjects: tuple[tuple[str, sa.ColumnElement[Any]], ...] = (
        *((kind, integrations.c.id) for kind in (live_first.INTEGRATION, live_first.TURN, live_first.WISH)),
        (backfills.LEASE, tables.backfills.c.id),
        ("app:", integrations.c.app_id),
    )
    gone = sa.or_(
        table.c.name.like("run:%"),
        *(
            sa.and_(table.c.name.like(f"{kind}%"), table.c.name.not_in(sa.select(kind + sa.cast(subject, sa.Text))))
            for kind, subject in subjects
        ),
    )
    _at_once(context, report, table, sa.and_(table.c.expires_at < context.now() - DAY, gone), "leases")


def expire_troubles(context: Context, report: RetentionReport) -> None:
    """Removes what runs ran into, once those runs are past their own retention."""
    before = context.now() - int(context.settings.dagster_retention_days * DAY)
    _at_once(context, report, tables.run_troubles, tables.run_troubles.c.at < before, "run_troubles")


def _open_lanes() -> sa.Select[tuple[int]]:
    lanes, boxes = tables.lanes, tables.outboxes
    return sa.select(lanes.c.id).join(boxes, boxes.c.id == lanes.c.outbox_id).where(boxes.c.done_at.is_(None))


def _delete_from(table: sa.Table) -> Callable[[Transaction, Sequence[int]], None]:
    def remove(tx: Transaction, ids: Sequence[int]) -> None:
        tx.execute(sa.delete(table).where(table.c.id.in_(ids)))

    return remove


def _rows_of(report: RetentionReport, kind: str) -> Callable[[Sequence[Any]], None]:
    return lambda rows: report.add(kind, rows=len(rows))


def _in_parts(
    context: Context,
    report: RetentionReport,
    query: sa.Select[Any],
    key: sa.Column[int],
    remove: Callable[[Transaction, Sequence[int]], None],
    removed: Callable[[Sequence[Any]], None],
) -> None:
    """Removes the rows of a query in parts, each in its own transaction."""
    last = 0
    while True:
        context.step("retention.commit")
        with context.store.begin() as tx:
            rows = tx.execute(query.where(key > last).order_by(key).limit(_AT_ONCE)).all()
            if not rows:
                return
            last = rows[-1].id
            if not report.dry_run:
                remove(tx, [row.id for row in rows])
        context.step("retention.committed")
        removed(rows)


def _at_once(
    context: Context, report: RetentionReport, table: sa.Table, condition: sa.ColumnElement[bool], kind: str
) -> None:
    """Removes the rows of a small table in one transaction."""
    context.step("retention.commit")
    with context.store.begin() as tx:
        if report.dry_run:
            rows = tx.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one()
        else:
            rows = tx.execute(sa.delete(table).where(condition)).rowcount
    context.step("retention.committed")
    if rows:
        report.add(kind, rows=rows)
