"""How far each app is read: from where a reading begins, and how its end is noted; ``capture`` says what that means."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.state import bulk, tables
from nami_amp_pipeline.state.among import among
from nami_amp_pipeline.state.store import Store, Transaction

_MOST_STATEMENTS: Final = 20
"""Apps without news mostly share one position; where they have more than this, rows are written instead."""

_ADVANCED: Final = """
ON CONFLICT (app_id) DO UPDATE SET
    captured_at = excluded.captured_at,
    frontier = coalesce(excluded.frontier, s.frontier),
    watermark = CASE WHEN s.watermark >= excluded.watermark THEN s.watermark
        ELSE coalesce(excluded.watermark, s.watermark) END
"""


@dataclass(frozen=True)
class Frontiers:
    """Where apps are read from, by app id; in µs since the epoch.

    Attributes:
        stored: the frontiers as the store has them; None for an app that was never read.
        starts: the same, and for an app that was never read the earliest start of its integrations; None: any.
    """

    stored: Mapping[str, int | None]
    starts: Mapping[str, int | None]


def frontiers_of(store: Store, tx: Transaction, app_ids: Collection[str], *, lock: bool = False) -> Frontiers:
    """From where each of these apps is read.

    Args:
        store: of the transaction.
        tx: the transaction.
        app_ids: which apps.
        lock: whether nobody else may move them until the transaction ends, by an integration that is added either.
    """
    apps, integrations = tables.apps, tables.integrations
    query = sa.select(apps.c.app_id, apps.c.frontier).where(among(store, apps.c.app_id, app_ids))
    query = query.order_by(apps.c.app_id).with_for_update(key_share=True) if lock else query
    known = dict(tx.execute(query).tuples().all())
    stored = {app_id: known.get(app_id) for app_id in app_ids}
    new = [app_id for app_id, frontier in stored.items() if frontier is None]
    given: dict[str, list[int | None]] = {}
    if new:
        mine = sa.and_(integrations.c.backfill_of.is_(None), among(store, integrations.c.app_id, new))
        for app_id, start in tx.execute(sa.select(integrations.c.app_id, integrations.c.start_from).where(mine)):
            given.setdefault(app_id, []).append(start)
    # None among the starts is the beginning.
    earliest = {app_id: min(some) for app_id, starts in given.items() if (some := _whole(starts))}
    return Frontiers(stored, stored | earliest)


def _whole(starts: list[int | None]) -> list[int]:
    """The starts if all are set; nothing otherwise."""
    some = [start for start in starts if start is not None]
    return some if len(some) == len(starts) else []


def advance(
    store: Store,
    tx: Transaction,
    read: Frontiers,
    reached: Mapping[str, int | None],
    newest: Mapping[str, int],
    started: int,
) -> None:
    """Notes how far apps were read; many have nothing new, and share a statement.

    A frontier that an integration with an earlier start has set back meanwhile stays where that put it.

    Args:
        store: of the transaction.
        tx: the transaction.
        read: from where they were read.
        reached: to where, by app id; None if that is not known yet.
        newest: the newest ``ingested_at`` of the apps with new rows, by app id.
        started: when the reading began. All in µs since the epoch.
    """
    apps = tables.apps
    quiet: dict[tuple[int, int], list[str]] = {}
    for app_id, at in reached.items():
        before = read.stored[app_id]
        if before is not None and at is not None and app_id not in newest:
            quiet.setdefault((before, at), []).append(app_id)
    if len(quiet) > _MOST_STATEMENTS:
        quiet = {}
    done = {app_id for some in quiet.values() for app_id in some}
    _write(store, tx, read, {app_id: at for app_id, at in reached.items() if app_id not in done}, newest, started)
    for (before, at), some in quiet.items():
        still = sa.and_(among(store, apps.c.app_id, some), apps.c.frontier == before)
        tx.execute(sa.update(apps).where(still).values(frontier=at, captured_at=started))


def _write(
    store: Store,
    tx: Transaction,
    read: Frontiers,
    reached: Mapping[str, int | None],
    newest: Mapping[str, int],
    started: int,
) -> None:
    """Notes the same row by row."""
    if not reached:
        return
    now = frontiers_of(store, tx, reached.keys(), lock=True)
    app_ids = sorted(reached)
    ends = [reached[app_id] if now.starts[app_id] == read.starts[app_id] else None for app_id in app_ids]
    rows = pa.table(
        {
            "app_id": pa.array(app_ids, pa.string()),
            "frontier": pa.array(ends, pa.int64()),
            "watermark": pa.array([newest.get(app_id) for app_id in app_ids], pa.int64()),
            "captured_at": pa.array([started] * len(app_ids), pa.int64()),
        }
    )
    bulk.insert(store, tx, tables.apps, rows, on_conflict=_ADVANCED)
