"""The statements about leases, each for however many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.among import is_among

if TYPE_CHECKING:
    from nami_amp_pipeline.state.store import Transaction


@dataclass(frozen=True)
class Changed:
    """A change of leases that says which it changed: their names and fences.

    Attributes:
        which: those that will be changed, where the database cannot say it afterwards.
        change: changes them; says which where it can.
    """

    which: sa.Select[Any] | None
    change: sa.Update

    def execute(self, tx: Transaction, given: Mapping[str, object]) -> dict[str, int]:
        """Makes the change; returns fences by name, as they are now where they are raised."""
        if self.which is None:
            rows = tx.execute(self.change, given).all()
        elif rows := list(tx.execute(self.which, given).all()):
            tx.execute(self.change, given)
        return {str(row[0]): int(row[1]) for row in rows}


@dataclass(frozen=True)
class LeaseStatements:
    """What is done with many leases at once; each is named in the parameter ``among``.

    Those that lock do it in the order of the names, so that no transaction waits for another that waits for it.

    Attributes:
        taken_if_free: makes those ours that have run out or are ours already.
        there: the names of those that exist.
        rows: all columns, locked.
        taken: makes them ours.
        ours: name, fence and commits of those that are ours, locked.
        prolonged: renews what is ours, and counts the transaction.
        given_back: ends what is ours.
    """

    taken_if_free: Changed
    there: sa.Select[Any]
    rows: sa.Select[Any]
    taken: sa.Update
    ours: sa.Select[Any]
    prolonged: sa.Update
    given_back: Changed


@cache
def lease_statements(is_sqlite: bool) -> LeaseStatements:
    """They are part of nearly every transaction: making them would cost more than what they do."""
    table = tables.leases
    me: sa.BindParameter[str] = sa.bindparam("me")
    now: sa.BindParameter[int] = sa.bindparam("now")
    until: sa.BindParameter[int] = sa.bindparam("until")
    named = is_among(table.c.name, is_sqlite=is_sqlite)
    # One that was given back is nobody's, although it still says whose it was.
    mine = sa.and_(table.c.owner == me, table.c.expires_at > 0, named)
    is_free = sa.and_(sa.or_(table.c.expires_at <= now, table.c.owner == me), named)
    take: dict[str, Any] = {"owner": me, "fence": table.c.fence + 1, "expires_at": until, "commits": 0}
    return LeaseStatements(
        taken_if_free=_changed(is_free, take, table.c.fence + 1, is_sqlite),
        there=sa.select(table.c.name).where(named),
        rows=sa.select(table).where(named).order_by(table.c.name).with_for_update(),
        taken=sa.update(table).where(named).values(**take),
        ours=sa.select(table.c.name, table.c.fence, table.c.commits)
        .where(mine)
        .order_by(table.c.name)
        .with_for_update(),
        prolonged=sa.update(table).where(mine).values(expires_at=until, commits=table.c.commits + 1),
        given_back=_changed(mine, {"expires_at": 0}, table.c.fence, is_sqlite),
    )


def _changed(
    of: sa.ColumnElement[bool], values: dict[str, Any], fence: sa.ColumnElement[int], is_sqlite: bool
) -> Changed:
    table = tables.leases
    if is_sqlite:  # there is one writer at a time, and older versions know no RETURNING
        return Changed(sa.select(table.c.name, fence).where(of), sa.update(table).where(of).values(**values))
    locked = sa.select(table.c.name).where(of).order_by(table.c.name).with_for_update().cte("locked")
    change = sa.update(table).where(table.c.name == locked.c.name).values(**values)
    return Changed(None, change.returning(table.c.name, table.c.fence))
