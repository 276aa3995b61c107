"""Dead letters that people had sent again, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction

_AT_MOST = 20


@dataclass(frozen=True)
class Resent:
    """What became of dead letters that were sent again at once.

    Attributes:
        id: grows with each.
        integration: ``<app_id>/<name>``.
        at: when a person asked for it, in µs since the epoch.
        by: who did.
        events: how many there were.
        waiting: without an end yet.
        refused: dead letters again, those that were sent once more since included.
    """

    id: int
    integration: str
    at: int
    by: str
    events: int
    waiting: int
    refused: int

    @property
    def arrived(self) -> int:
        """Acknowledged by Amplitude."""
        return self.events - self.waiting - self.refused

    @property
    def result(self) -> str:
        """What became of them: ``29 arrived, 2 rejected again``."""
        parts = {"arrived": self.arrived, "rejected again": self.refused, "waiting for the next run": self.waiting}
        return ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)

    @property
    def said(self) -> str:
        """The same with how many there were, without a full stop."""
        return f"{self.events:,} dead letter{'s' * (self.events != 1)} sent again: {self.result}"


def add(tx: Transaction, integration_id: int, ids: Sequence[int], now: int, by: str, known: dict[int, int]) -> int:
    """Registers dead letters that are about to be sent again.

    Args:
        tx: the transaction that makes them wait.
        integration_id: the integration that sends them.
        ids: of the exceptions.
        now: in µs since the epoch.
        by: who asked for it.
        known: by integration, the resend to which these belong, if there is one; it is added here where there is none.

    Returns:
        The number of the resend.
    """
    table, letters = tables.resends, tables.exceptions
    number = known.get(integration_id)
    if number is None:
        row = {"integration_id": integration_id, "at": now, "by": by, "events": 0, "moved": 0}
        key = tx.execute(sa.insert(table).values(row)).inserted_primary_key
        assert key is not None
        number = known[integration_id] = int(key[0])
    tx.execute(sa.update(table).where(table.c.id == number).values(events=table.c.events + len(ids)))
    earlier = sa.select(letters.c.resend_id, sa.func.count()).where(
        letters.c.id.in_(ids), letters.c.resend_id.is_not(None), letters.c.resend_id != number
    )
    for before, events in tx.execute(earlier.group_by(letters.c.resend_id)).all():
        tx.execute(sa.update(table).where(table.c.id == before).values(moved=table.c.moved + events))
    return number


def of_app(store: Store, app_id: str, since: int) -> list[Resent]:
    """What became of the dead letters of an app that were sent again since a time, the newest first.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    table, integrations = tables.resends, tables.integrations
    with store.reading() as tx:
        return read(tx, integrations.c.app_id == app_id, table.c.at >= since, most=_AT_MOST)


def read(tx: Transaction, *conditions: sa.ColumnElement[bool], most: int) -> list[Resent]:
    """The newest that meet conditions on resends and integrations, in a transaction that is open already."""
    table, integrations, letters = tables.resends, tables.integrations, tables.exceptions
    query = (
        sa.select(table, (integrations.c.app_id + "/" + integrations.c.name).label("key"))
        .join(integrations, integrations.c.id == table.c.integration_id)
        .where(*conditions)
        .order_by(table.c.at.desc(), table.c.id.desc())
        .limit(most)
    )
    rows = tx.execute(query).all()
    left: dict[tuple[int, str], int] = {}
    numbers = [row.id for row in rows]
    counted = (
        sa.select(letters.c.resend_id, letters.c.state, sa.func.count())
        .where(letters.c.resend_id.in_(numbers), letters.c.state.in_(("held", "dead")))
        .group_by(letters.c.resend_id, letters.c.state)
    )
    for number, state, events in tx.execute(counted).all() if numbers else ():
        left[number, state] = events
    return [_resent(row, left) for row in rows]


def _resent(row: Any, left: dict[tuple[int, str], int]) -> Resent:
    refused = left.get((row.id, "dead"), 0) + row.moved
    return Resent(row.id, row.key, row.at, row.by, row.events, left.get((row.id, "held"), 0), refused)
