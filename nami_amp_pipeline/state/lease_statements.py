"""The statements about leases, each for however many of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.among import is_among


@dataclass(frozen=True)
class LeaseStatements:
    """What is done with many leases at once; each is named in the parameter ``among``.

    Those that lock do it in the order of the names, so that no transaction waits for another that waits for it.

    Attributes:
        there: the names of those that exist.
        rows: all columns, locked.
        taken: makes them ours.
        ours: name, fence and commits of those that are ours, locked.
        prolonged: renews what is ours, and counts the transaction.
        given_back: ends what is ours.
    """

    there: sa.Select[Any]
    rows: sa.Select[Any]
    taken: sa.Update
    ours: sa.Select[Any]
    prolonged: sa.Update
    given_back: sa.Update


@cache
def lease_statements(is_sqlite: bool) -> LeaseStatements:
    """They are part of nearly every transaction: making them would cost more than what they do."""
    table = tables.leases
    me: sa.BindParameter[str] = sa.bindparam("me")
    until: sa.BindParameter[int] = sa.bindparam("until")
    named = is_among(table.c.name, is_sqlite=is_sqlite)
    mine = sa.and_(table.c.owner == me, named)
    return LeaseStatements(
        there=sa.select(table.c.name).where(named),
        rows=sa.select(table).where(named).order_by(table.c.name).with_for_update(),
        taken=sa.update(table).where(named).values(owner=me, fence=table.c.fence + 1, expires_at=until, commits=0),
        ours=sa.select(table.c.name, table.c.fence, table.c.commits)
        .where(mine)
        .order_by(table.c.name)
        .with_for_update(),
        prolonged=sa.update(table).where(mine).values(expires_at=until, commits=table.c.commits + 1),
        given_back=sa.update(table).where(mine).values(expires_at=0),
    )
