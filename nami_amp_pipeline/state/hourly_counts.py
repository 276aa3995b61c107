"""Counts of events by the hour in which they were captured, their type, and where they are now.

Each event counts in one hour for good, so that of every hour, type and window of time ``captured = delivered +
skipped + dead + waiting``. An event that waited for a login counts in the hour in which its user logged in. What a
backfill delivers is not counted here, nor what was captured before there were such counts: its outbox has no hour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction

HOUR: Final = 3_600_000_000
"""In µs."""

KEPT_HOURS: Final = 35 * 24
"""So many hours are kept: the longest window that people look at has 30 days."""

End = Literal["captured", "delivered", "skipped", "dead"]
"""What is counted; the column of that name."""

ENDS: Final[tuple[End, ...]] = ("captured", "delivered", "skipped", "dead")

Tally = Counter[tuple[int, str, End]]
"""Events by hour, type and end; negative to take them back."""

_KEY: Final = ("integration_id", "hour", "event_type")
_AT_ONCE: Final = 500


def hour_of(moment: int) -> int:
    """The first µs of the hour of a time."""
    return moment // HOUR * HOUR


def add(store: Store, tx: Transaction, integration_id: int, tally: Mapping[tuple[int, str, End], int]) -> None:
    """Adds to the counts of an integration."""
    add_all(store, tx, {integration_id: tally})


def add_all(store: Store, tx: Transaction, tallies: Mapping[int, Mapping[tuple[int, str, End], int]]) -> None:
    """Adds to the counts of many integrations, by their ids."""
    rows: dict[tuple[int, int, str], dict[str, object]] = {}
    for integration_id, tally in tallies.items():
        for (hour, event_type, end), events in tally.items():
            if events:
                row = rows.get((integration_id, hour, event_type))
                if row is None:
                    row = rows[integration_id, hour, event_type] = {
                        "integration_id": integration_id, "hour": hour, "event_type": event_type,
                        "captured": 0, "delivered": 0, "skipped": 0, "dead": 0,
                    }  # fmt: skip
                row[end] = events
    store.upsert(tx, tables.hourly_counts, list(rows.values()), _KEY, add=ENDS)


def add_exceptions(store: Store, tx: Transaction, which: sa.ColumnElement[bool], end: End, events: int = 1) -> None:
    """Counts exceptions of any integrations in their hours; call it while they fulfil the condition.

    Args:
        store: for its kind.
        tx: the transaction to write in.
        which: a condition on ``exceptions``.
        end: what they have become, or were.
        events: how often each counts: 1, or -1 to take it back.
    """
    table = tables.exceptions
    rows = tx.execute(
        sa.select(table.c.integration_id, table.c.hour, table.c.event_type, sa.func.count())
        .where(which, table.c.hour.is_not(None))
        .group_by(table.c.integration_id, table.c.hour, table.c.event_type)
    ).all()
    by_integration: dict[int, Tally] = {}
    for integration_id, hour, event_type, number in rows:
        by_integration.setdefault(integration_id, Counter())[hour, event_type, end] = number * events
    add_all(store, tx, by_integration)


def add_numbered(store: Store, tx: Transaction, ids: Sequence[int], end: End, events: int = 1) -> None:
    """The same of exceptions by their numbers."""
    for start in range(0, len(ids), _AT_ONCE):
        add_exceptions(store, tx, tables.exceptions.c.id.in_(ids[start : start + _AT_ONCE]), end, events)


def adopt(store: Store, tx: Transaction, ids: Sequence[int], integration_id: int, now: int) -> None:
    """Counts exceptions that had no hour as captured in this one, for an integration."""
    table, hour = tables.exceptions, hour_of(now)
    for start in range(0, len(ids), _AT_ONCE):
        which = sa.and_(table.c.id.in_(ids[start : start + _AT_ONCE]), table.c.hour.is_(None))
        rows = tx.execute(
            sa.select(table.c.event_type, sa.func.count()).where(which).group_by(table.c.event_type)
        ).all()
        add(store, tx, integration_id, {(hour, event_type, "captured"): number for event_type, number in rows})
        tx.execute(sa.update(table).where(which).values(hour=hour))


def spread(events: int, types: Mapping[str, int]) -> dict[str, int]:
    """Divides events of unknown types over types in proportion to their numbers; the sum is exact."""
    whole, left = sum(types.values()), events
    shares: dict[str, int] = {}
    for event_type, number in sorted(types.items()):
        share = round(left * number / whole) if whole else 0
        shares[event_type] = share
        left, whole = left - share, whole - number
    if left:
        shares[""] = left
    return shares
