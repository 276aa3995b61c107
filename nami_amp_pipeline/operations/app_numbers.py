"""What is known of an app's events and users, from what the pipeline keeps; the warehouse is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Transaction

DAYS: Final = 30
_DAY: Final = 86_400_000_000
_HOUR: Final = 3_600_000_000
_AT_ONCE: Final = 2.0
_MOST_USERS: Final = 20_000
"""So many users are looked at: their ids say nothing of them, so they are a fair sample."""

_WITHOUT: Final = "no_external_id"

_known: dict[tuple[str, str], tuple[tuple[int | None, int], dict[str, int], float]] = {}
"""By store and app: what was found last, and of which newest segment and hour. Segments do not change."""

_MOST_KNOWN: Final = 500


@dataclass(frozen=True)
class AppNumbers:
    """What is known of an app.

    Attributes:
        by_type: events that were read in the last 30 days, by event type, those that no integration selects included.
        days: the days that these events are of; 0 if nothing was read.
        users: how many users were looked at.
        identified: how many of them have an External ID.
        is_sample: whether the app has more users than were looked at.
        captured: events of all its integrations, since each was added.
        unidentified: how many of those were skipped because their user had no External ID.
    """

    by_type: Mapping[str, int]
    days: float
    users: int
    identified: int
    is_sample: bool
    captured: int
    unidentified: int

    @property
    def events(self) -> int:
        """All events of the last 30 days."""
        return sum(self.by_type.values())

    @property
    def identified_share(self) -> float | None:
        """The share of users with an External ID; None without users."""
        return self.identified / self.users if self.users else None

    def share_of(self, event_types: Sequence[str]) -> float | None:
        """Which part of the events of the last 30 days is of some types; None if no event is known."""
        return sum(self.by_type.get(name, 0) for name in event_types) / self.events if self.events else None

    def a_month(self, event_types: Sequence[str]) -> int:
        """How many events of some types come in 30 days, going by those that are known; 0 if none are known."""
        return round(sum(map(self.share_of_month, event_types)))

    def share_of_month(self, event_type: str) -> float:
        """The same of one type, not rounded."""
        return self.by_type.get(event_type, 0) * DAYS / max(self.days, 1.0)


def app_numbers(context: Context, app_id: str) -> AppNumbers:
    """What is known of an app.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    now = context.now()
    with context.store.reading() as tx:
        by_type, days = _by_type_once(tx, context.store.url, app_id, now)
        users, identified = _users(tx, app_id)
        captured, unidentified = _unidentified(tx, app_id)
    return AppNumbers(by_type, days, min(users, _MOST_USERS), identified, users > _MOST_USERS, captured, unidentified)


def _by_type_once(tx: Transaction, store: str, app_id: str, now: int) -> tuple[dict[str, int], float]:
    """The same as :func:`_by_type`, which reads a month of segments, once for each segment and hour."""
    parts = tables.segment_apps
    newest = tx.execute(sa.select(sa.func.max(parts.c.segment_id)).where(parts.c.app_id == app_id)).scalar()
    state = (newest, now // _HOUR)
    known = _known.get((store, app_id))
    if known is not None and known[0] == state:
        return known[1:]
    found = _by_type(tx, app_id, now - DAYS * _DAY)
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[store, app_id] = (state, *found)
    return found


def _by_type(tx: Transaction, app_id: str, since: int) -> tuple[dict[str, int], float]:
    """Events by type of segments that reach into a time, and of how many days they are."""
    parts = tables.segment_apps
    rows = tx.execute(
        sa.select(
            parts.c.types,
            parts.c.min_ingested_at,
            parts.c.max_ingested_at,
            parts.c.min_created_date,
            parts.c.max_created_date,
        ).where(parts.c.app_id == app_id, parts.c.max_ingested_at >= since)
    ).all()
    if not rows:
        return {}, 0.0
    found: Counter[str] = Counter()
    for row in rows:
        found.update(orjson.loads(row.types))
    days = (max(row.max_ingested_at for row in rows) - max(since, min(row.min_ingested_at for row in rows))) / _DAY
    if days < _AT_ONCE:  # years that were loaded at once say of a month what their own days say of it
        days = (max(row.max_created_date for row in rows) - min(row.min_created_date for row in rows)) / _DAY
    return dict(found), max(days, 0.0)


def _users(tx: Transaction, app_id: str) -> tuple[int, int]:
    """Users, one too many at most, and how many of them have an External ID."""
    table = tables.user_property_snapshots
    some = sa.select(table.c.external_id).where(table.c.app_id == app_id).limit(_MOST_USERS + 1).subquery()
    users, identified = tx.execute(sa.select(sa.func.count(), sa.func.count(some.c.external_id))).one()
    return users, min(identified, _MOST_USERS)


def _unidentified(tx: Transaction, app_id: str) -> tuple[int, int]:
    counts, integrations = tables.counts, tables.integrations
    rows = tx.execute(
        sa.select(counts.c.state, counts.c.reason, sa.func.sum(counts.c.events))
        .join(integrations, integrations.c.id == counts.c.integration_id)
        .where(integrations.c.app_id == app_id, integrations.c.backfill_of.is_(None))
        .group_by(counts.c.state, counts.c.reason)
    ).all()
    captured = sum(int(events) for state, _, events in rows if state == "captured")
    return captured, sum(int(events) for state, reason, events in rows if (state, reason) == ("skipped", _WITHOUT))
