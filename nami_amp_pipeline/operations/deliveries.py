"""The events of an integration in a window of time: captured, and where they are now; by hour and by type.

The counts are those of :mod:`nami_amp_pipeline.state.hourly_counts`, and what was captured and has no outbox yet: of
every window, hour and type ``captured = delivered + skipped + dead letters + waiting``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.marks import Mark, marks_of
from nami_amp_pipeline.operations.status import selected_types
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.hourly_counts import HOUR, hour_of
from nami_amp_pipeline.state.integrations import Integration, refreshed
from nami_amp_pipeline.state.store import Transaction

WINDOWS: Final[Mapping[str, int]] = {"1h": 1, "24h": 24, "7d": 7 * 24, "30d": 30 * 24}
"""The windows that can be asked for, in hours. A window begins with a full hour."""

MOST_BARS: Final = 100
"""So many parts has a window at most."""


@dataclass
class Tally:
    """How many events were captured, and where they are now.

    Attributes:
        captured: read from the warehouse, of selected types.
        delivered: acknowledged.
        skipped: not sent on purpose.
        dead_letters: rejected, or what no event could be made of.
    """

    captured: int = 0
    delivered: int = 0
    skipped: int = 0
    dead_letters: int = 0

    @property
    def waiting(self) -> int:
        """Without an end yet."""
        return self.captured - self.delivered - self.skipped - self.dead_letters

    def add(self, captured: int, delivered: int = 0, skipped: int = 0, dead_letters: int = 0) -> None:
        """Adds more events."""
        self.captured += captured
        self.delivered += delivered
        self.skipped += skipped
        self.dead_letters += dead_letters

    def to_json(self) -> dict[str, int]:
        """All five numbers."""
        return {
            "captured": self.captured,
            "delivered": self.delivered,
            "skipped": self.skipped,
            "dead_letters": self.dead_letters,
            "waiting": self.waiting,
        }


@dataclass(frozen=True)
class Bar:
    """A part of a window: its first µs, its last (the next part begins there), and its events."""

    since: int
    until: int
    tally: Tally

    def to_json(self) -> dict[str, Any]:
        """An object of ``deliveries --json``."""
        return {"from": to_text(self.since), "to": to_text(self.until), **self.tally.to_json()}


@dataclass
class TypeRow:
    """The events of one type.

    Attributes:
        event_type: Nami's.
        is_chosen: whether the integration takes it now.
        tally: its events in the window.
        last: the first µs of the newest hour of the window with one of them; None without any.
    """

    event_type: str
    is_chosen: bool
    tally: Tally = field(default_factory=Tally)
    last: int | None = None

    def to_json(self) -> dict[str, Any]:
        """An object of ``deliveries --json``."""
        return {
            "event_type": self.event_type,
            "chosen": self.is_chosen,
            **self.tally.to_json(),
            "last_hour": to_text(self.last),
        }


@dataclass(frozen=True)
class Deliveries:
    """See the module's docstring.

    Attributes:
        integration: ``<app_id>/<name>``.
        window: of :data:`WINDOWS`.
        since: its first µs.
        until: now.
        total: all its events.
        bars: the same in parts, the first hour first; at most :data:`MOST_BARS`.
        types: the same by type: the chosen ones, and others that were.
        newest_delivered: when Amplitude acknowledged the last request, in µs since the epoch; None if it never did.
        counted_since: since when there are such counts, if that is within the window.
        marks: what was changed in the window, halts and their ends, and outages; the oldest first.
        skipped_by, dead_by: reasons, of all events since the integration was added.
    """

    integration: str
    window: str
    since: int
    until: int
    total: Tally
    bars: Sequence[Bar]
    types: Sequence[TypeRow]
    newest_delivered: int | None
    counted_since: int | None
    marks: Sequence[Mark]
    skipped_by: Mapping[str, int]
    dead_by: Mapping[str, int]

    @property
    def bar_hours(self) -> int:
        """How many hours a part has."""
        return (self.bars[0].until - self.bars[0].since) // HOUR

    def to_json(self) -> dict[str, Any]:
        """The object of ``deliveries --json``."""
        return {
            "integration": self.integration,
            "window": self.window,
            "from": to_text(self.since),
            "to": to_text(self.until),
            **self.total.to_json(),
            "newest_delivered": to_text(self.newest_delivered),
            "counted_since": to_text(self.counted_since),
            "hours": [bar.to_json() for bar in self.bars],
            "types": [row.to_json() for row in self.types],
            "marks": [mark.to_json() for mark in self.marks],
            "since_it_was_added": {"skipped": dict(self.skipped_by), "dead_letters": dict(self.dead_by)},
        }


def since_of(window: str, now: int) -> int:
    """The first µs of a window that ends now.

    Raises:
        Misconfigured: there is no such window.
    """
    if window not in WINDOWS:
        raise Misconfigured(f"{window!r} is no window: take one of {', '.join(WINDOWS)}")
    return hour_of(now) - WINDOWS[window] * HOUR


def deliveries(context: Context, integration: Integration, window: str = "24h") -> Deliveries:
    """What became of the events of an integration that were captured in a window.

    Raises:
        Misconfigured: there is no such window.
        StoreUnavailable: the state store cannot be read.
    """
    now = context.now()
    since = since_of(window, now)
    hours: dict[int, Tally] = defaultdict(Tally)
    types = {name: TypeRow(name, is_chosen=True) for name in integration.events}
    total = Tally()
    with context.store.reading() as tx:
        # As it is now: what a run has prepared meanwhile is counted once.
        (integration,) = refreshed(tx, [integration]) or [integration]
        for hour, event_type, numbers in _counted(context, tx, integration, since):
            row = types.setdefault(event_type, TypeRow(event_type, is_chosen=False))
            for tally in (total, hours[hour], row.tally):
                tally.add(*numbers)
            if numbers[0] > 0:
                row.last = max(row.last or hour, hour)
        newest = _newest_delivered(tx, integration.id)
        counted = _counted_since(tx, integration.id)
        marks = marks_of(tx, integration, since, now)
        reasons = _reasons(tx, integration.id)
    return Deliveries(
        integration.key,
        window,
        since,
        now,
        total,
        _bars(hours, since, now),
        list(types.values()),
        newest,
        counted if counted is not None and counted > since else None,
        marks,
        reasons["skipped"],
        reasons["dead"],
    )


def totals(context: Context, integrations: Sequence[Integration], window: str = "24h") -> dict[str, Tally]:
    """The same of several integrations by key, without parts.

    Raises:
        Misconfigured: there is no such window.
        StoreUnavailable: the state store cannot be read.
    """
    since = since_of(window, context.now())
    found = {integration.key: Tally() for integration in integrations}
    with context.store.reading() as tx:
        for integration in refreshed(tx, integrations):
            for _, _, numbers in _counted(context, tx, integration, since):
                found[integration.key].add(*numbers)
    return found


def by_hour(context: Context, integrations: Sequence[Integration], window: str = "24h") -> dict[str, list[Tally]]:
    """The same of several integrations by key, hour by hour: for a small picture.

    Raises:
        Misconfigured: there is no such window.
        StoreUnavailable: the state store cannot be read.
    """
    now = context.now()
    since = since_of(window, now)
    found = {integration.key: [Tally() for _ in range(since, now + 1, HOUR)] for integration in integrations}
    with context.store.reading() as tx:
        for integration in refreshed(tx, integrations):
            for hour, _, numbers in _counted(context, tx, integration, since):
                hours = found[integration.key]
                hours[min((hour - since) // HOUR, len(hours) - 1)].add(*numbers)  # an hour may have begun meanwhile
    return found


def _counted(
    context: Context, tx: Transaction, integration: Integration, since: int
) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Hour, type and (captured, delivered, skipped, dead) of what is in outboxes, then of what is in none yet."""
    table = tables.hourly_counts
    query = sa.select(
        table.c.hour, table.c.event_type, table.c.captured, table.c.delivered, table.c.skipped, table.c.dead
    )
    for hour, event_type, *numbers in tx.execute(
        query.where(table.c.integration_id == integration.id, table.c.hour >= since)
    ):
        yield hour, event_type, tuple(numbers)
    parts, segments = tables.segment_apps, tables.segments
    rows = tx.execute(
        sa.select(parts, segments.c.file, segments.c.captured_at)
        .join(segments, segments.c.id == parts.c.segment_id)
        .where(
            parts.c.app_id == integration.app_id,
            parts.c.segment_id > integration.prepared_through,
            segments.c.captured_at >= since,
        )
    )
    for row in rows:
        for event_type, events in selected_types(context, integration, row).items():
            yield hour_of(row.captured_at), event_type, (events,)


def _bars(hours: Mapping[int, Tally], since: int, now: int) -> list[Bar]:
    step = HOUR * -(-((now - since) // HOUR + 1) // MOST_BARS)
    bars = []
    for start in range(since, now + 1, step):
        tally = Tally()
        for hour in range(start, start + step, HOUR):
            if hour in hours:
                mine = hours[hour]
                tally.add(mine.captured, mine.delivered, mine.skipped, mine.dead_letters)
        bars.append(Bar(start, start + step, tally))
    return bars


def _newest_delivered(tx: Transaction, integration_id: int) -> int | None:
    table = tables.requests
    query = (
        sa.select(table.c.answered_at)
        .where(table.c.integration_id == integration_id, table.c.outcome == "delivered")
        .order_by(table.c.sent_at.desc())
        .limit(1)
    )
    at: int | None = tx.execute(query).scalar()
    return at


def _counted_since(tx: Transaction, integration_id: int) -> int | None:
    table = tables.integrations
    at: int | None = tx.execute(sa.select(table.c.counted_since).where(table.c.id == integration_id)).scalar()
    return at


def _reasons(tx: Transaction, integration_id: int) -> dict[str, dict[str, int]]:
    table = tables.counts
    found: dict[str, dict[str, int]] = {"skipped": {}, "dead": {}}
    rows = tx.execute(sa.select(table).where(table.c.integration_id == integration_id).order_by(table.c.reason))
    for row in rows:
        if row.state in found and row.events:
            found[row.state][row.reason] = row.events
    return found
