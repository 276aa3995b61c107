"""Gives up events that have waited too long for their user's login."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import hourly_counts, tables
from nami_amp_pipeline.state.store import Lease


def is_expired(context: Context) -> sa.ColumnElement[bool]:
    """The condition that an exception has waited for a login longer than ``NAMI_AMP_HOLD_DAYS``."""
    before = context.now() - context.settings.hold_days * 86_400_000_000
    return sa.and_(tables.exceptions.c.state == "waiting", tables.exceptions.c.at <= before)


def expire_waiting(context: Context, leases: Mapping[int, Lease]) -> dict[int, int]:
    """Skips the events that have waited for a login longer than ``NAMI_AMP_HOLD_DAYS``.

    Returns:
        Skipped events by integration id.
    """
    table, expired = tables.exceptions, is_expired(context)
    gone: dict[int, int] = {}
    with context.store.begin(under=leases.values()) as tx:
        late = set(tx.execute(sa.select(table.c.integration_id).where(expired).distinct()).scalars())
        for integration_id in late & leases.keys():
            mine = sa.and_(table.c.integration_id == integration_id, expired)
            hourly_counts.add_exceptions(context.store, tx, mine, "skipped")
            result = tx.execute(sa.delete(table).where(mine))
            if result.rowcount:
                gone[integration_id] = result.rowcount
                context.store.count(tx, integration_id, "skipped", {"no_external_id": result.rowcount})
    return gone
