"""Backfills and identifies in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import Transaction, backfills, tables
from nami_amp_pipeline.state.backfills import ASKED_FOR, ENDED, Backfill
from nami_amp_pipeline.state.integration_rows import get
from nami_amp_pipeline.state.owners import has_ended


@dataclass
class BackfillStatus:
    """A backfill or identify with its numbers: of distinct events of its window, or of users.

    Attributes:
        backfill: the record.
        is_at_work: whether a process works on it.
        captured: events that it took on.
        delivered: acknowledged by Amplitude.
        skipped, dead_letters: by reason.
        found: by class, what was found of the events of the files that were looked at so far.
        looked_at: events of the window in those files.
        pending: taken on, without an end yet.
    """

    backfill: Backfill
    is_at_work: bool = False
    captured: int = 0
    delivered: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    looked_at: int = 0

    @property
    def pending(self) -> int:
        """Events that it took on and that have no end yet."""
        return self.captured - self.delivered - sum(self.skipped.values()) - sum(self.dead_letters.values())

    def __str__(self) -> str:
        """In a line, for people."""
        backfill = self.backfill
        state: str = backfill.state
        if state == "running" and not self.is_at_work:
            state = f"running, but no process works on it ('nami-amp backfills resume {backfill.id}')"
        text = f"{backfill.called.capitalize()} of {backfill.integration}: {state}, {self.progress}"
        if backfill.state == "failed":
            text += f": {backfill.error} (once that is repaired: 'nami-amp backfills resume {backfill.id}')"
        return text

    @property
    def progress(self) -> str:
        """How far it is, in a clause."""
        if self.backfill.events is None:
            return "not read yet"
        return f"{self.done:,} of {self.backfill.events:,} {KINDS[self.backfill.kind].unit} done"

    @property
    def done(self) -> int:
        """Events of the window that need no more work."""
        return self.looked_at - self.pending

    def pace(self, now: int) -> tuple[float, float] | None:
        """How many were done a second since it began to run, pauses included, and the seconds left at that rate.

        Args:
            now: in µs since the epoch.

        Returns:
            None where nothing can be said: no process works on it, or nothing is done yet.
        """
        backfill = self.backfill
        if not self.is_at_work or backfill.started_at is None or not backfill.events:
            return None
        seconds = (now - backfill.started_at) / 1e6
        if backfill.state != "running" or seconds <= 0 or self.done <= 0:
            return None
        rate = self.done / seconds
        return rate, max(0, backfill.events - self.done) / rate

    def to_json(self) -> dict[str, Any]:
        """The object of ``backfill --json`` and ``identify --json``."""
        backfill = self.backfill
        return {
            "backfill_id": backfill.id,
            "kind": backfill.kind,
            "integration": backfill.integration,
            **window_json(backfill),
            "state": backfill.state,
            "at_work": self.is_at_work,
            "events": backfill.events,
            "done": self.done,
            "delivered": self.delivered,
            "skipped": self.skipped,
            "dead_letters": self.dead_letters,
            "pending": self.pending,
            "found": self.found,
            "error": backfill.error,
            "created_at": to_text(backfill.created_at),
            "created_by": backfill.created_by,
            "started_at": to_text(backfill.started_at),
            "ended_at": to_text(backfill.ended_at),
        }


def window_json(backfill: Backfill) -> dict[str, Any]:
    """What was asked for: the window of a backfill, or the users of an identify."""
    if backfill.kind == "identify":
        return {"silent_since": to_text(backfill.since) if backfill.since else None}
    return {"from": to_text(backfill.since), "to": to_text(backfill.until), "by": backfill.by}


def show(context: Context, number: int) -> BackfillStatus:
    """A backfill with its numbers.

    Raises:
        Misconfigured: there is none of that number.
    """
    with context.store.reading() as tx:
        return with_numbers(tx, context, [backfills.get(tx, number)])[0]


def listed(
    context: Context,
    integration: str | None = None,
    *,
    app_id: str | None = None,
    before: int | None = None,
    limit: int | None = None,
) -> list[BackfillStatus]:
    """The backfills of all integrations, of one or of an app; the newest first.

    Args:
        context: the process at work.
        integration: ``<app_id>/<name>``.
        app_id: of its integrations.
        before: only those with a lower number.
        limit: so many at most.
    """
    table = tables.backfills
    conditions = []
    if integration is not None:
        conditions.append(table.c.integration_id == get(context.store, integration).id)
    if app_id is not None:
        conditions.append(tables.integrations.c.app_id == app_id)
    if before is not None:
        conditions.append(table.c.id < before)
    with context.store.reading() as tx:
        return with_numbers(tx, context, backfills.read(tx, *conditions, newest=limit)[::-1])


def unattended(context: Context) -> list[Backfill]:
    """The backfills that no process works on: running, or a dry run that a person asked for.

    The process of one that is running was killed, gave up for a while, or is still to be started.
    """
    table = tables.backfills
    is_asked = sa.and_(table.c.state == "planned", table.c.plan.is_(None), table.c.run_id == ASKED_FOR)
    with context.store.reading() as tx:
        running = backfills.read(tx, sa.or_(table.c.state == "running", is_asked))
        return [status.backfill for status in with_numbers(tx, context, running) if not status.is_at_work]


def failed(context: Context) -> list[Backfill]:
    """The backfills and identifies that failed and that nobody has resumed or cancelled, the oldest first."""
    with context.store.reading() as tx:
        return backfills.read(tx, tables.backfills.c.state == "failed")


def not_ended(context: Context) -> list[BackfillStatus]:
    """The backfills and identifies that are planned, running, paused or failed, the oldest first."""
    with context.store.reading() as tx:
        return with_numbers(tx, context, backfills.read(tx, tables.backfills.c.state.not_in(ENDED)))


def with_numbers(tx: Transaction, context: Context, some: Sequence[Backfill]) -> list[BackfillStatus]:
    """Backfills with their numbers, in their order."""
    counts, leases, files = tables.counts, tables.leases, tables.backfill_files
    of: dict[int, BackfillStatus] = {backfill.channel_id: BackfillStatus(backfill) for backfill in some}
    for row in tx.execute(sa.select(counts).where(counts.c.integration_id.in_(list(of)))):
        status = of[row.integration_id]
        if row.state == "captured":
            status.captured = row.events
        elif row.state == "delivered":
            status.delivered = row.events
        elif row.events:
            (status.skipped if row.state == "skipped" else status.dead_letters)[row.reason] = row.events
    now = context.now()
    held = {
        row.name
        for row in tx.execute(sa.select(leases).where(leases.c.name.in_([backfill.lease for backfill in some])))
        if row.owner and row.expires_at > now and not has_ended(row.owner)
    }
    for status in of.values():
        backfill = status.backfill
        status.is_at_work = backfill.lease in held
        found: Counter[str] = Counter()
        for row in tx.execute(
            sa.select(files.c.found, files.c.events).where(
                files.c.backfill_id == backfill.id, files.c.prepared_at.is_not(None)
            )
        ):
            found.update(orjson.loads(row.found))
            status.looked_at += row.events
        status.found = dict(found)
    return list(of.values())
