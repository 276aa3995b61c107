"""Live delivery before backfills: both work under the lease of the integration, and live may ask for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.owners import has_ended
from nami_amp_pipeline.state.store import Lease, Store

INTEGRATION: Final = "integration:"
TURN: Final = "backfill-turn:"
"""Held by a backfill beside the lease of the integration, so that others know who holds that."""

WISH: Final = "live-wish:"
"""Held by live delivery while it wants the lease of an integration from a backfill."""

LOOK_SECONDS: Final = 0.05
"""How often a backfill looks whether live delivery wants its lease, and how often live looks whether it is free."""

PATIENCE_SECONDS: Final = 30.0
"""How long live delivery waits for a backfill to end its requests under way."""


def acquire(
    store: Store,
    names: Sequence[str],
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> dict[str, Lease]:
    """Takes the free leases; those that a backfill holds are asked for, and waited for.

    Args:
        store: the state store.
        names: any names; those of integrations may be held by a backfill.
        sleep: waits so many seconds.
        monotonic: a clock that nobody sets, in seconds.

    Returns:
        The leases; those of other processes are left out.
    """
    taken = store.acquire(names)
    missing = [name for name in names if name not in taken and name.startswith(INTEGRATION)]
    asked = [name for name in missing if _is_held(store, _about(TURN, name))]
    if not asked:
        return taken
    wishes = store.acquire([_about(WISH, name) for name in asked])
    until = monotonic() + PATIENCE_SECONDS
    try:
        while asked and monotonic() < until:
            sleep(LOOK_SECONDS)
            taken |= store.acquire(asked)
            asked = [name for name in asked if name not in taken and _is_held(store, _about(TURN, name))]
    finally:
        with suppress(NamiAmpError):  # a wish that is not given back runs out by itself
            store.release(wishes.values())
    return taken


def take_turn(store: Store, integration_id: int, others: Sequence[int] = ()) -> dict[str, Lease] | None:
    """Takes the lease of an integration for a backfill; None while live delivery holds or wants it.

    Args:
        store: the state store.
        integration_id: of the backfill.
        others: integrations that post to the same project: None too while a live run holds the lease of one.
    """
    if is_wanted(store, integration_id) or is_delivering(store, others):
        return None
    names = [f"{INTEGRATION}{integration_id}", f"{TURN}{integration_id}"]
    taken = store.acquire(names)
    if len(taken) < len(names):
        store.release(taken.values())
        return None
    return taken


def fence_if_free(store: Store, integration_id: int) -> int | None:
    """The fence of the lease of an integration while no other process holds it; None while one does.

    If the next lease that this process takes has the next higher fence, nobody else has worked on the integration
    since.
    """
    name, table = f"{INTEGRATION}{integration_id}", tables.leases
    with store.reading() as tx:
        fence = tx.execute(sa.select(table.c.fence).where(table.c.name == name)).scalar()
    return None if _is_held(store, name) else fence or 0


def is_wanted(store: Store, integration_id: int) -> bool:
    """Whether live delivery wants the lease of an integration."""
    return _is_held(store, f"{WISH}{integration_id}")


def is_delivering(store: Store, integration_ids: Collection[int]) -> bool:
    """Whether live delivery of another process holds the lease of one of some integrations."""
    if not integration_ids:
        return False
    table = tables.leases
    kinds = (INTEGRATION, TURN)
    names = {f"{kind}{number}": (kind, number) for number in integration_ids for kind in kinds}
    holders: dict[tuple[str, int], str] = {}
    with store.reading() as tx:
        query = sa.select(table.c.name, table.c.owner).where(
            table.c.name.in_(names), table.c.owner.not_in(("", store.owner)), table.c.expires_at > micros(store.clock)
        )
        for row in tx.execute(query):
            holders[names[row.name]] = row.owner
    return any(
        kind == INTEGRATION and holders.get((TURN, number)) != owner and not has_ended(owner)
        for (kind, number), owner in holders.items()
    )


def _about(kind: str, name: str) -> str:
    return kind + name.removeprefix(INTEGRATION)


def _is_held(store: Store, name: str) -> bool:
    """Whether another process holds a lease."""
    table = tables.leases
    with store.reading() as tx:
        row = tx.execute(sa.select(table.c.owner, table.c.expires_at).where(table.c.name == name)).one_or_none()
    if row is None or row.owner in ("", store.owner):
        return False
    return row.expires_at > micros(store.clock) and not has_ended(row.owner)
