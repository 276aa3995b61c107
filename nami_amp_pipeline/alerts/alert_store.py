"""Open alerts, and which messages were sent, in the state store: so that they outlive every process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.alerts.kinds import NOT_AT_ONCE, Alert, Kind, run_page
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease, Store, Transaction


@dataclass(frozen=True)
class Entry:
    """A row of the table of alerts.

    Attributes:
        alert: what is or was wrong.
        since: when it was first seen, in µs since the epoch.
        told_at: when its message was sent; None if it was not.
        ended_at: when the problem ended; None while it continues.
    """

    alert: Alert
    since: int
    told_at: int | None
    ended_at: int | None


@dataclass(frozen=True)
class FailedRun:
    """A run that failed.

    Attributes:
        job: its job.
        run_id: Dagster's.
        failed_at: in µs since the epoch.
        problems: one line for each reason, beginning with its subject: ``fit/main: …``.
    """

    job: str
    run_id: str
    failed_at: int
    problems: Sequence[str]

    @property
    def causes(self) -> set[str]:
        """The subjects of the problems."""
        return {line.partition(": ")[0][:200] for line in self.problems}


def note_failed_run(store: Store, run: FailedRun) -> Alert | None:
    """Records a failed run. It causes an alert unless runs of its job are known to fail for all of these reasons.

    Returns:
        The alert; None if all reasons are known.

    Raises:
        StoreUnavailable: nothing was recorded.
    """
    table = tables.alerts
    lines = list(run.problems)
    rest = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    summary = "; ".join(lines[:3])[:900] + rest
    with store.begin() as tx:
        row = tx.execute(
            sa.select(table).where(table.c.kind == Kind.RUN_FAILED, table.c.subject == run.job).with_for_update()
        ).one_or_none()
        known = set(orjson.loads(row.causes)) if row is not None else set()
        if row is not None and run.failed_at <= row.seen_at:
            return None
        values = {"seen_at": run.failed_at, "ended_at": None, "causes": _json(known | run.causes)}
        news = {"summary": summary, "page": run_page(run.run_id), "told_at": None}
        if row is None:
            key = {"kind": Kind.RUN_FAILED.value, "subject": run.job, "since": run.failed_at}
            store.upsert(tx, table, [{**key, **values, **news}], ["kind", "subject"])
        else:
            is_known = run.causes <= known
            tx.execute(
                sa.update(table)
                .where(table.c.kind == Kind.RUN_FAILED, table.c.subject == run.job)
                .values(**values, **({} if is_known else news))
            )
            if is_known:
                return None
    return Alert(Kind.RUN_FAILED, run.job, summary, run_page(run.run_id))


def open_failed_runs(store: Store) -> dict[str, tuple[int, frozenset[str]]]:
    """The runs known to fail, by job or asset and partition.

    Returns:
        When the last of them failed, in µs since the epoch, and the subjects of its reasons.
    """
    table = tables.alerts
    with store.begin() as tx:
        query = sa.select(table).where(table.c.kind == Kind.RUN_FAILED, table.c.ended_at.is_(None))
        return {row.subject: (row.seen_at, frozenset(orjson.loads(row.causes))) for row in tx.execute(query)}


def bring_up_to_date(
    context: Context,
    lease: Lease,
    alerts: Iterable[Alert],
    known: Iterable[Kind],
    recovered_jobs: Iterable[str],
    unsettled: Collection[tuple[Kind, str]] = (),
) -> tuple[list[Alert], list[Alert]]:
    """Records new problems, and problems that are over.

    Args:
        context: the process at work.
        lease: of the process that sends alerts.
        alerts: all problems of this moment.
        known: the kinds that could be checked.
        recovered_jobs: subjects of failed runs, of which a run succeeded since the last failure.
        unsettled: alerts whose problem is not proven to be over.

    Returns:
        The alerts of new problems, and those of problems that are over.
    """
    table = tables.alerts
    now = context.now()
    over: list[Alert] = []
    wrong = {alert.key: alert for alert in alerts}
    looked_at, recovered = set(known), set(recovered_jobs)
    with context.store.begin(under=[lease]) as tx:
        there = {entry.alert.key: entry for entry in _entries(tx)}
        new = [alert for key, alert in wrong.items() if key not in there]
        context.store.upsert(
            tx,
            table,
            [
                {"kind": alert.kind.value, "subject": alert.subject, "summary": alert.summary, "causes": "[]",
                 "page": alert.page, "since": now, "seen_at": now}
                for alert in new
            ],
            ["kind", "subject"],
        )  # fmt: skip
        for key, entry in there.items():
            kind, subject = key
            of_runs = kind is Kind.RUN_FAILED
            is_over = subject in recovered if of_runs else kind in looked_at and key not in wrong
            if is_over and key in unsettled:
                continue
            if is_over and kind in NOT_AT_ONCE and entry.told_at is None:
                tx.execute(sa.delete(table).where(table.c.kind == kind.value, table.c.subject == subject))
            elif is_over and entry.ended_at is None:
                tx.execute(_update(key).values(ended_at=now))
                over.append(entry.alert)
            elif key in wrong and entry.ended_at is not None:
                tx.execute(_update(key).values(ended_at=None))  # it had not ended, and no all-clear was sent
    return new, over


def entries(store: Store) -> list[Entry]:
    """All recorded alerts, oldest first."""
    with store.begin() as tx:
        return _entries(tx)


def told(context: Context, lease: Lease, some: Iterable[Entry]) -> None:
    """Records that messages were sent: the all-clear of alerts that are over, the alert of the others.

    Raises:
        LostLease: another process sends alerts by now.
    """
    table = tables.alerts
    with context.store.begin(under=[lease]) as tx:
        for entry in some:
            same = sa.and_(table.c.since == entry.since, table.c.summary == entry.alert.summary)
            if entry.told_at is None:
                tx.execute(_update(entry.alert.key).where(same).values(told_at=context.now()))
            else:
                key = sa.and_(table.c.kind == entry.alert.kind, table.c.subject == entry.alert.subject)
                tx.execute(sa.delete(table).where(key, same, table.c.ended_at.is_not(None)))


def _update(key: tuple[Kind, str]) -> sa.Update:
    table = tables.alerts
    return sa.update(table).where(table.c.kind == key[0].value, table.c.subject == key[1])


def _entries(tx: Transaction) -> list[Entry]:
    table = tables.alerts
    rows = tx.execute(
        # A newer version may know kinds that this one does not, and silences are kept here too.
        sa.select(table)
        .where(table.c.kind.in_([kind.value for kind in Kind]))
        .order_by(table.c.since, table.c.kind, table.c.subject)
    ).all()
    return [
        Entry(Alert(Kind(row.kind), row.subject, row.summary, row.page), row.since, row.told_at, row.ended_at)
        for row in rows
    ]


def _json(causes: Iterable[str]) -> str:
    return orjson.dumps(sorted(causes)).decode()
