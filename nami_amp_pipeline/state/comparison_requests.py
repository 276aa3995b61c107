"""Days that people want compared with what Amplitude holds; whoever runs reconciliations carries them out."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from nami_amp_pipeline.clock import micros, to_datetime
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction


@dataclass(frozen=True)
class ComparisonRequest:
    """A day that somebody wants compared; times in µs since the epoch.

    Attributes:
        id: grows with each.
        integration: ``<app_id>/<name>``.
        day: its first µs.
        asked_at, asked_by: when, and who.
        ended_at: when it was compared, or found that it cannot be; None until then.
        error: why it could not be compared; None if it was.
    """

    id: int
    integration: str
    day: int
    asked_at: int
    asked_by: str
    ended_at: int | None
    error: str | None

    @property
    def date(self) -> str:
        """The day as 2026-11-28."""
        return f"{to_datetime(self.day):%Y-%m-%d}"

    @property
    def said(self) -> str:
        """What became of it, in a sentence without a full stop."""
        if self.ended_at is None:
            return f"Comparison of {self.date}: asked for"
        return f"Comparison of {self.date}: {f'failed ({self.error})' if self.error else 'done'}"


def ask(store: Store, integration_id: int, day: int, *, by: str = "") -> None:
    """Asks for a day of an integration to be compared; a request for it that is still open stays the only one."""
    table = tables.comparison_requests
    with store.begin() as tx:
        open_one = sa.select(table.c.id).where(
            table.c.integration_id == integration_id, table.c.day == day, table.c.ended_at.is_(None)
        )
        if tx.execute(open_one).first() is None:
            now = micros(store.clock)
            tx.execute(sa.insert(table).values(integration_id=integration_id, day=day, asked_at=now, asked_by=by))


def read(tx: Transaction, *conditions: sa.ColumnElement[bool], newest: int | None = None) -> list[ComparisonRequest]:
    """The requests that fulfil conditions on them and on integrations, the newest first."""
    table, integrations = tables.comparison_requests, tables.integrations
    query = (
        sa.select(
            table.c.id,
            integrations.c.app_id + "/" + integrations.c.name,
            table.c.day,
            table.c.asked_at,
            table.c.asked_by,
            table.c.ended_at,
            table.c.error,
        )
        .join(integrations, integrations.c.id == table.c.integration_id)
        .where(*conditions)
        .order_by(table.c.asked_at.desc(), table.c.id.desc())
        .limit(newest)
    )
    return [ComparisonRequest(*row) for row in tx.execute(query).tuples()]


def open_ones(store: Store) -> list[ComparisonRequest]:
    """Those that nobody has carried out yet, the oldest first."""
    with store.reading() as tx:
        return read(tx, tables.comparison_requests.c.ended_at.is_(None))[::-1]


def end(store: Store, integration_id: int, day: int) -> None:
    """Notes that a day of an integration was compared, for those who asked for it."""
    table = tables.comparison_requests
    with store.begin() as tx:
        tx.execute(
            sa.update(table)
            .where(table.c.integration_id == integration_id, table.c.day == day, table.c.ended_at.is_(None))
            .values(ended_at=micros(store.clock))
        )


def fail(store: Store, integration_id: int, error: str) -> None:
    """Notes why no day of an integration that was asked for can be compared."""
    table = tables.comparison_requests
    with store.begin() as tx:
        tx.execute(
            sa.update(table)
            .where(table.c.integration_id == integration_id, table.c.ended_at.is_(None))
            .values(ended_at=micros(store.clock), error=error)
        )
