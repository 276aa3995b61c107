"""A copy in memory of what a plan looks at: the plan changes the copy, by the functions that change the store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline.state import Store, tables
from nami_amp_pipeline.state.migrate import create_or_upgrade

_COPIED: Final = (tables.apps, tables.integrations, tables.rereads, tables.counts)
"""All that adding and changing an integration reads; of segments only the newest number."""


@contextmanager
def scratch_of(store: Store) -> Iterator[Store]:
    """A store in this process's memory, as the store is now; it is gone after the block.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    with store.reading() as tx:
        rows = {table: [dict(row) for row in tx.execute(sa.select(table)).mappings()] for table in _COPIED}
        newest = tx.execute(sa.select(tables.segments).order_by(tables.segments.c.id.desc()).limit(1)).mappings().all()
    rows[tables.segments] = [dict(row) for row in newest]
    scratch = Store("sqlite:///:memory:", store.clock, store.lease_seconds)
    try:
        create_or_upgrade(scratch)
        with scratch.begin() as tx:
            for table, found in rows.items():
                if found:
                    tx.execute(sa.insert(table), found)
        yield scratch
    finally:
        scratch.close()
