"""The stages of a micro-batch, each taking what it may work on under a lease and giving it back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import sqlalchemy as sa

from nami_amp_pipeline.amplitude.attempt import Delivered
from nami_amp_pipeline.amplitude.wire import Wire
from nami_amp_pipeline.capture import Captured, capture, due_apps
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.deliver import deliver
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.finishing import Background
from nami_amp_pipeline.prepare import Prepared, prepare
from nami_amp_pipeline.snapshots import Snapshotted, snapshot
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease

K = TypeVar("K")


def capture_apps(context: Context, app_ids: Sequence[str] | None = None) -> dict[str, Captured]:
    """Stage 1 for these apps, or for all that have an integration switched on.

    Apps that another process works on are left to it.
    """
    with _apps(context, app_ids) as leases:
        return capture(context, leases)


def snapshot_apps(context: Context, app_ids: Sequence[str] | None = None) -> dict[str, Snapshotted]:
    """Stage 2 for these apps, or for all that have an integration switched on."""
    with _apps(context, app_ids) as leases:
        return snapshot(context, leases)


def prepare_integrations(context: Context, integrations: Sequence[Integration]) -> dict[int, Prepared]:
    """Stage 3 for these integrations, by integration id."""
    with _integrations(context, integrations) as leases:
        expire_waiting(context, leases)
        return prepare(context, integrations, leases)


def deliver_integrations(
    context: Context,
    integrations: Sequence[Integration],
    *,
    wire: Wire | None = None,
    background: Background | None = None,
    rng: random.Random | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, Delivered]:
    """Stage 4 for these integrations, by integration id; see :func:`nami_amp_pipeline.deliver.deliver`."""
    with _integrations(context, integrations) as leases:
        return deliver(context, integrations, leases, wire=wire, background=background, rng=rng, stop=stop)


def expire_waiting(context: Context, leases: Mapping[int, Lease]) -> dict[int, int]:
    """Gives up on logins that did not come: what waited longer than the setting is skipped.

    Returns:
        Skipped events by integration id.
    """
    before = context.now() - context.settings.hold_days * 86_400_000_000
    table = tables.exceptions
    expired = sa.and_(table.c.state == "waiting", table.c.at <= before)
    gone: dict[int, int] = {}
    with context.store.begin(under=leases.values()) as tx:
        late = set(tx.execute(sa.select(table.c.integration_id).where(expired).distinct()).scalars())
        for integration_id in late & leases.keys():
            result = tx.execute(sa.delete(table).where(table.c.integration_id == integration_id, expired))
            if result.rowcount:
                gone[integration_id] = result.rowcount
                context.store.count(tx, integration_id, "skipped", {"no_external_id": result.rowcount})
    return gone


@contextmanager
def _apps(context: Context, app_ids: Sequence[str] | None) -> Iterator[dict[str, Lease]]:
    wanted = due_apps(context) if app_ids is None else list(app_ids)
    with _leases(context, {f"app:{app_id}": app_id for app_id in wanted}) as leases:
        yield leases


@contextmanager
def _integrations(context: Context, integrations: Sequence[Integration]) -> Iterator[dict[int, Lease]]:
    with _leases(context, {f"integration:{one.id}": one.id for one in integrations}) as leases:
        yield leases


@contextmanager
def _leases(context: Context, names: Mapping[str, K]) -> Iterator[dict[K, Lease]]:
    taken = context.store.acquire(list(names))
    for name in names.keys() - taken.keys():
        context.log.info("%s is worked on by another process; left to it", name)
    try:
        yield {names[name]: lease for name, lease in taken.items()}
    finally:
        with suppress(NamiAmpError):  # a lease that is not given back runs out by itself
            context.store.release(taken.values())
