"""Rows of lanes that are still to come and have been dealt with already: each is an exception of its own."""

from __future__ import annotations

import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Transaction


def rows_aside(tx: Transaction, which: sa.ColumnElement[bool]) -> dict[int, set[int]]:
    """By lane: the rows from its next row on that are exceptions.

    Args:
        tx: reads.
        which: a condition on ``lanes`` or ``exceptions``.
    """
    lanes, exceptions = tables.lanes, tables.exceptions
    query = (
        sa.select(exceptions.c.lane_id, exceptions.c.lane_row)
        .join(lanes, lanes.c.id == exceptions.c.lane_id)
        .where(which, exceptions.c.lane_row >= lanes.c.next_row)
    )
    found: dict[int, set[int]] = {}
    for lane_id, lane_row in tx.execute(query):
        found.setdefault(lane_id, set()).add(lane_row)
    return found
