"""Flags events of the store that became history since their bodies were made, and that no request has stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.stages.history import SKIP_SYNC, can_be_flagged, flagged, is_history
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction
from nami_amp_pipeline.state.users import read_sent


def flag_held(
    store: Store, tx: Transaction, integration_id: int, *, profiles_of: int, maybe_stored: bool = False
) -> int:
    """Flags the held events whose users were sent newer state since; returns how many.

    Args:
        store: for its kind.
        tx: the transaction to write in; the lease of the integration is held.
        integration_id: whose held events.
        profiles_of: the integration whose sent states count.
        maybe_stored: also those that a request may have stored, which keep their bytes otherwise.
    """
    table = tables.exceptions
    held = sa.select(table.c.id, table.c.event_id, table.c.created_date, table.c.body, table.c.unknown_since).where(
        table.c.integration_id == integration_id, table.c.state == "held"
    )
    if not maybe_stored:
        held = held.where(table.c.unknown_since.is_(None))
    changed = 0
    for row_id, body in become_history(store, tx, profiles_of, tx.execute(held).all()):
        tx.execute(sa.update(table).where(table.c.id == row_id).values(body=body))
        changed += 1
    return changed


def become_history(
    store: Store, tx: Transaction, profiles_of: int, rows: Sequence[sa.Row[Any]]
) -> Iterator[tuple[int, str]]:
    """(id, new body) of events whose state is older than the state that their user was sent since.

    Args:
        store: for its kind.
        tx: the transaction to read in.
        profiles_of: the integration whose sent states count.
        rows: of ``exceptions``, with ``id``, ``event_id``, ``created_date`` and ``body``; none of them may be stored.
    """
    stateful: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    for row in rows:
        if not can_be_flagged(row.body):
            continue
        event = orjson.loads(row.body.removeprefix(","))
        if "user_properties" in event and "user_id" in event and SKIP_SYNC not in event:
            stateful[event["user_id"]].append(row)
    for user_id, created, event_id in read_sent(store, tx, profiles_of, sorted(stateful)):
        for row in stateful[user_id]:
            if is_history((created, event_id), (row.created_date, row.event_id)):
                yield row.id, flagged(row.body)
