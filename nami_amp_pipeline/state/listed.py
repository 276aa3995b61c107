"""Integrations as lists of all of them show them: few columns of each, since there may be thousands without news."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration, only_of
from nami_amp_pipeline.state.store import Store, Transaction


class Listed(NamedTuple):
    """An integration without what it takes to work for it, such as its keys; times in µs since the epoch.

    Attributes:
        id: in the store; never reused.
        app_id: the Nami app.
        name: unique in its app.
        enabled: whether anything is sent.
        created_at: when it was added.
        halted_reason: why delivery stopped, until a person enables it.
        halted_at: when it halted.
        last_error: the last error, for people.
        destination: what receives the events.
        watermark: the newest ``ingested_at`` captured of its app; None before there is any.
    """

    id: int
    app_id: str
    name: str
    enabled: bool
    created_at: int
    halted_reason: str | None
    halted_at: int | None
    last_error: str | None
    destination: str
    watermark: int | None

    @property
    def key(self) -> str:
        """``<app_id>/<name>``, as people name it."""
        return f"{self.app_id}/{self.name}"

    @property
    def partition_key(self) -> str:
        """``<app_id>|<name>``, as Dagster names it."""
        return f"{self.app_id}|{self.name}"


def list_all(tx: Transaction) -> list[Listed]:
    """All integrations by key, as :func:`~nami_amp_pipeline.state.integration_rows.read_all` has them."""
    table = tables.integrations
    query = _listed().where(table.c.backfill_of.is_(None)).order_by(table.c.app_id, table.c.name)
    return [Listed._make(row) for row in tx.execute(query)]


def listed(tx: Transaction, integrations: Iterable[Integration | Listed]) -> list[Listed]:
    """These integrations as they are now, in their order; removed ones are left out."""
    ids = [integration.id for integration in integrations]
    rows = {row.id: row for row in tx.execute(_listed().where(only_of(tables.integrations.c.id, ids)))}
    return [Listed._make(rows[number]) for number in ids if number in rows]


def everything(store: Store) -> list[Listed]:
    """The same as :func:`list_all`, in a transaction of its own.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    with store.reading() as tx:
        return list_all(tx)


def _listed() -> sa.Select[tuple[object, ...]]:
    table, apps = tables.integrations, tables.apps
    columns = [table.c[name] for name in Listed._fields if name in table.c]
    return sa.select(*columns, apps.c.watermark).join(apps, apps.c.app_id == table.c.app_id)
