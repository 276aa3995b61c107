"""What a chart of deliveries marks: changes, halts and their ends, and times in which nothing answered."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.state import journal, tables
from nami_amp_pipeline.state.integration_history import ChangeRecord, records_of
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Transaction

_MINUTE: Final = 60_000_000

SHORTEST_OUTAGE: Final = _MINUTE
"""In µs: what is answered within a minute after it failed is no outage."""

MOST_FAILED: Final = 5_000
"""So many failed requests are looked at, the newest."""

_MOST_OUTAGES: Final = 50

_DELIVERED: Final[sa.ColumnClause[str]] = sa.literal_column("'delivered'")
"""Written out: SQLite takes an index of some rows only where it sees that all that are wanted are among them."""


@dataclass(frozen=True)
class Mark:
    """What happened in a window.

    Attributes:
        at: when, in µs since the epoch.
        what: a clause.
        kind: what it is of: an outage begins at ``at``.
        until: when an outage ended; None of what has no length, and of one that lasts.
    """

    at: int
    what: str
    kind: Literal["change", "halt", "outage"] = "change"
    until: int | None = None

    def to_json(self) -> dict[str, Any]:
        """An object of ``deliveries --json``."""
        return {"at": to_text(self.at), "kind": self.kind, "what": self.what, "until": to_text(self.until)}


def marks_of(tx: Transaction, integration: Integration, since: int, now: int) -> list[Mark]:
    """The marks of an integration from a time on, the oldest first.

    Args:
        tx: the transaction to read in.
        integration: whose.
        since: in µs since the epoch, and ``now``.
        now: the end of the window.
    """
    found = [_changed(record) for record in records_of(tx, integration.key) if record.at >= since]
    found += _halts(tx, integration, since)
    found += _outages(tx, integration.id, since, now)
    return sorted(found, key=lambda mark: mark.at)


def _changed(record: ChangeRecord) -> Mark:
    what = f"changed: {', '.join(sorted(record.what)).replace('_', ' ') or 'nothing'}"
    if "enabled" in record.what:
        what = "switched on" if record.what["enabled"][1] else "switched off"
    elif "added" in record.what:
        what = "added"
    return Mark(record.at, what + _by(record.by))


def _by(name: str) -> str:
    return f" by {name}" if name else ""


def _halts(tx: Transaction, integration: Integration, since: int) -> list[Mark]:
    found = []
    for entry in journal.halts(tx, integration.key, since):
        is_halt = entry.kind == "halted"
        what = (
            f"stopped by itself: {reasons.halted_for(entry.what['reason'])}" if is_halt else f"on again{_by(entry.by)}"
        )
        found.append(Mark(entry.at, what, "halt"))
    at = integration.halted_at
    known = {mark.at for mark in found}
    if integration.halted_reason and at is not None and at >= since and at not in known:  # of an older version
        found.append(Mark(at, f"stopped by itself: {reasons.halted_for(integration.halted_reason)}", "halt"))
    return found


def _outages(tx: Transaction, integration_id: int, since: int, now: int) -> list[Mark]:
    """Times from a request that nothing answered to the next one that was answered."""
    table = tables.requests
    failed = sa.select(table.c.sent_at, table.c.outcome).where(
        table.c.integration_id == integration_id, table.c.sent_at >= since, table.c.outcome != _DELIVERED
    )
    rows = tx.execute(failed.order_by(table.c.sent_at.desc()).limit(MOST_FAILED)).all()[::-1]
    found: list[Mark] = []
    others = [sent_at for sent_at, outcome in rows if not reasons.is_unreachable(outcome)]
    end = since - 1
    for sent_at, outcome in rows:
        if sent_at <= end or not reasons.is_unreachable(outcome):
            continue
        later = others[bisect_right(others, sent_at) :][:1]
        answered = min([*later, *_delivered_after(tx, integration_id, sent_at)], default=None)
        end = now if answered is None else answered
        if end - sent_at >= SHORTEST_OUTAGE:
            found.append(Mark(sent_at, _said(outcome, sent_at, answered, now), "outage", answered))
        if len(found) >= _MOST_OUTAGES:
            break
    return found


def _delivered_after(tx: Transaction, integration_id: int, at: int) -> list[int]:
    table = tables.requests
    query = sa.select(table.c.sent_at).where(
        table.c.integration_id == integration_id, table.c.sent_at > at, table.c.outcome == "delivered"
    )
    return list(tx.execute(query.order_by(table.c.sent_at).limit(1)).scalars())


def _said(outcome: str, began: int, answered: int | None, now: int) -> str:
    minutes = max(1, ((now if answered is None else answered) - began) // _MINUTE)
    length = f"{minutes:,} minute{'s' * (minutes != 1)}" if minutes < 120 else f"{minutes // 60:,} hours"
    said = f"outage: {reasons.means(outcome)}"
    return f"{said}, for {length} so far" if answered is None else f"{said}, for {length}"
