"""The record of an integration's changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction


@dataclass(frozen=True)
class ChangeRecord:
    """One change of an integration.

    Attributes:
        version: the integration's version after it.
        at: when, in µs since the epoch.
        by: who.
        what: by field, the value before and after; for keys only that they were set or changed.
    """

    version: int
    at: int
    by: str
    what: Mapping[str, tuple[Any, Any]]


def history(store: Store, key: str) -> list[ChangeRecord]:
    """The changes of an integration, the oldest first; also of a removed integration."""
    with store.begin() as tx:
        return records_of(tx, key)


def records_of(tx: Transaction, key: str) -> list[ChangeRecord]:
    """The changes of an integration, in a transaction that is open already."""
    table = tables.integration_changes
    rows = tx.execute(sa.select(table).where(table.c.integration == key).order_by(table.c.id))
    return [record_of(row) for row in rows]


def record_of(row: Any) -> ChangeRecord:
    """A row of the table as a record."""
    what = {name: tuple(pair) for name, pair in orjson.loads(row.what).items()}
    return ChangeRecord(row.version, row.at, row.by, what)


def note(store: Store, tx: Transaction, key: str, version: int, by: str, what: Mapping[str, tuple[Any, Any]]) -> None:
    """Records a change, in the transaction that makes it."""
    tx.execute(
        sa.insert(tables.integration_changes).values(
            integration=key, version=version, at=micros(store.clock), by=by, what=orjson.dumps(dict(what)).decode()
        )
    )


def removed_since(store: Store, seen: int, limit: int) -> tuple[list[str], int]:
    """The integrations that were removed since the last look.

    Args:
        store: the store.
        seen: the number of the last change that was looked at; 0 at first.
        limit: how many changes are looked at.

    Returns:
        ``<app_id>/<name>`` of the removed integrations, and the number of the last change.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    table = tables.integration_changes
    query = sa.select(table.c.id, table.c.integration, table.c.what).where(table.c.id > seen)
    with store.reading() as tx:
        rows = tx.execute(query.order_by(table.c.id).limit(limit)).all()
    return [row.integration for row in rows if "removed" in orjson.loads(row.what)], rows[-1].id if rows else seen
