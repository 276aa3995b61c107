"""The current snapshot of each user, and the state that each integration was sent; read and written in bulk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nami_amp_pipeline.contract import ENRICHED, GROUPS
from nami_amp_pipeline.state import bulk
from nami_amp_pipeline.state.among import is_among, together
from nami_amp_pipeline.state.store import Store, Transaction
from nami_amp_pipeline.state.tables import sent_states, user_property_snapshots

if TYPE_CHECKING:
    import pyarrow as pa

STORED = ("external_id", *GROUPS, ENRICHED)
"""The groups that move independently, each with its source event: ``<name>_date`` (creation) and ``<name>_event`` (id).

A group of properties is one JSON text, so that all its properties come from that event, whichever program wrote it: a
program that does not know a property drops it, so it cannot become stale.
"""


COLUMNS = tuple(column.name for column in user_property_snapshots.columns)
"""All columns of ``user_property_snapshots``: texts, and times in µs since the epoch."""


def read_snapshots(
    store: Store, tx: Transaction, app_id: str, user_ids: Sequence[str], columns: Iterable[str]
) -> list[tuple[Any, ...]]:
    """The rows of these users of an app; users without one are left out.

    Args:
        store: for its kind.
        tx: the transaction to read in.
        app_id: the app.
        user_ids: any number of them.
        columns: of ``user_property_snapshots``.
    """
    query = _snapshots_of(store.is_sqlite, tuple(columns))
    return _all(tx, query, {"of": app_id, "among": together(user_ids, is_sqlite=store.is_sqlite)})


def read_app(tx: Transaction, app_id: str, most: int | None = None) -> list[tuple[Any, ...]]:
    """The rows of all users of an app, or of some, with all :data:`COLUMNS`."""
    table = user_property_snapshots
    return _all(tx, sa.select(table).where(table.c.app_id == app_id).limit(most))


def move_forward(store: Store, tx: Transaction, rows: pa.Table) -> None:
    """Moves current snapshots forward; a group older than the stored group changes nothing.

    Args:
        store: for its kind.
        tx: the transaction to write in.
        rows: one per user, with the columns of ``user_property_snapshots``, sorted by key (twice as fast as unsorted);
            without those of enrichments where there are none.
    """
    changes = []
    for what in ("as_of", *(name for name in STORED if name in rows.column_names)):
        date, event = f"{what}_date", f"{what}_event"
        newer = _newer(date, event, store)
        changes += [
            f"{name} = CASE WHEN {newer} THEN excluded.{name} ELSE s.{name} END"
            for name in (*([what] if what in STORED else []), date, event)
        ]
    bulk.insert(
        store,
        tx,
        user_property_snapshots,
        rows,
        on_conflict=f"ON CONFLICT (app_id, user_id) DO UPDATE SET {', '.join(changes)}",
    )


def read_sent(
    store: Store, tx: Transaction, integration_id: int, user_ids: Sequence[str]
) -> list[tuple[str, int, str]]:
    """The newest event (creation in µs, id) whose state an integration was sent, for these Amplitude users."""
    query = _sent_of(store.is_sqlite, ("user_id", "as_of_date", "as_of_event"))
    return _all(tx, query, {"of": integration_id, "among": together(user_ids, is_sqlite=store.is_sqlite)})


def read_sent_states(store: Store, tx: Transaction, integration_id: int, user_ids: Sequence[str]) -> pa.Table:
    """The same as :func:`read_sent`, as a table with ``identify_id``: the insert id of the identify that sent it."""
    import pyarrow as pa

    kinds = {"user_id": pa.string(), "as_of_date": pa.int64(), "as_of_event": pa.string(), "identify_id": pa.string()}
    query = _sent_of(store.is_sqlite, tuple(kinds))
    rows = _all(tx, query, {"of": integration_id, "among": together(user_ids, is_sqlite=store.is_sqlite)})
    return pa.table(
        [pa.array([row[number] for row in rows], kind) for number, kind in enumerate(kinds.values())],
        schema=pa.schema(kinds.items()),
    )


def read_users(tx: Transaction, app_id: str, after: str | None, most: int) -> list[tuple[str, str | None]]:
    """(Nami user, External ID) of the users of an app who have state, in the order of the store's index.

    Args:
        tx: the transaction to read in.
        app_id: the app.
        after: the user to go on behind; None for the beginning.
        most: so many at most.
    """
    table = user_property_snapshots
    query = sa.select(table.c.user_id, table.c.external_id).where(
        table.c.app_id == app_id,
        table.c.as_of_date.is_not(None),
        *([table.c.user_id > after] if after is not None else []),
    )
    return _all(tx, query.order_by(table.c.user_id).limit(most))


def _all(tx: Transaction, query: sa.Select[Any], given: Mapping[str, object] | None = None) -> list[tuple[Any, ...]]:
    """The driver's rows: SQLAlchemy's work per row would cost more than reading them."""
    cursor = tx.execute(query, given).cursor
    assert cursor is not None
    return [*cursor.fetchall()]


def move_sent(store: Store, tx: Transaction, rows: pa.Table) -> None:
    """Notes the newest event whose state Amplitude users were sent; older events change nothing.

    Args:
        store: for its kind.
        tx: the transaction to write in.
        rows: one per user, with the columns of ``sent_states``, sorted by key; without ``identify_id`` where it was the
            event itself that had the state. An identify counts also if the event was sent before.
    """
    moves = _newer("as_of_date", "as_of_event", store)
    if "identify_id" in rows.column_names:
        same = "excluded.as_of_date = s.as_of_date AND excluded.as_of_event = s.as_of_event"
        moves += f" OR (excluded.identify_id IS NOT NULL AND {same})"
    bulk.insert(
        store,
        tx,
        sent_states,
        rows,
        on_conflict="ON CONFLICT (integration_id, user_id) DO UPDATE SET as_of_date = excluded.as_of_date, "
        "as_of_event = excluded.as_of_event, identify_id = excluded.identify_id "
        f"WHERE {moves}",
    )


def _newer(date: str, event: str, store: Store) -> str:
    """Whether a new row's event is after the old one's: ids by code point, as everywhere."""
    collate = "" if store.is_sqlite else ' COLLATE "C"'
    return (
        f"(excluded.{date} IS NOT NULL AND (s.{date} IS NULL OR excluded.{date} > s.{date} OR "
        f"(excluded.{date} = s.{date} AND excluded.{event}{collate} > s.{event}{collate})))"
    )


# Made once: there is one for each app with news, and making a statement takes longer than reading a few users.


@cache
def _snapshots_of(is_sqlite: bool, columns: tuple[str, ...]) -> sa.Select[Any]:
    table = user_property_snapshots
    chosen = [table.c[name] for name in columns]
    return sa.select(*chosen).where(
        table.c.app_id == sa.bindparam("of"), is_among(table.c.user_id, is_sqlite=is_sqlite)
    )


@cache
def _sent_of(is_sqlite: bool, columns: tuple[str, ...]) -> sa.Select[Any]:
    table = sent_states
    chosen = [table.c[name] for name in columns]
    return sa.select(*chosen).where(
        table.c.integration_id == sa.bindparam("of"), is_among(table.c.user_id, is_sqlite=is_sqlite)
    )
