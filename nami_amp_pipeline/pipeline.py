"""The stages of a micro-batch, each taking what it may work on under a lease and giving it back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Delivered
from nami_amp_pipeline.delivery.outbox_finisher import Background
from nami_amp_pipeline.delivery.request_threads import Wire
from nami_amp_pipeline.errors import (
    Busy,
    LostLease,
    Misconfigured,
    NamiAmpError,
    StoreUnavailable,
    Unexpected,
    WarehouseUnavailable,
)
from nami_amp_pipeline.stages.capture import Captured, capture
from nami_amp_pipeline.stages.deliver import Means, deliver
from nami_amp_pipeline.stages.prepare import Prepared, prepare
from nami_amp_pipeline.stages.snapshots import Snapshotted, snapshot
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, apps_with_integrations
from nami_amp_pipeline.state.store import Lease

K = TypeVar("K")
R = TypeVar("R")
V = TypeVar("V")

Failed = Callable[[K, NamiAmpError], None]
"""Told of an app or integration that a stage could not be done for."""

MOST_APART: Final = 20
"""So many partitions that fail in one stage are told apart; more have one cause, most likely."""

_SHARED = (StoreUnavailable, WarehouseUnavailable, LostLease, Misconfigured, Busy)


def capture_apps(
    context: Context, app_ids: Sequence[str] | None = None, *, failed: Failed[str] | None = None
) -> dict[str, Captured]:
    """Stage 1 for these apps, or for all that have an integration switched on.

    Apps that another process works on are left to it.

    Args:
        context: the process at work.
        app_ids: the apps; None for all.
        failed: told of each app that the stage could not be done for, while it was done for the others; without it the
            first such error is raised.
    """

    def act(some: Sequence[str]) -> dict[str, Captured]:
        with _apps(context, some) as leases:
            return capture(context, leases)

    return _apart(context, apps_with_integrations(context.store) if app_ids is None else list(app_ids), act, failed)


def snapshot_apps(
    context: Context, app_ids: Sequence[str] | None = None, *, failed: Failed[str] | None = None
) -> dict[str, Snapshotted]:
    """Stage 2 for these apps, or for all that have an integration switched on; ``failed`` as in stage 1."""

    def act(some: Sequence[str]) -> dict[str, Snapshotted]:
        with _apps(context, some) as leases:
            return snapshot(context, leases)

    return _apart(context, apps_with_integrations(context.store) if app_ids is None else list(app_ids), act, failed)


def prepare_integrations(
    context: Context, integrations: Sequence[Integration], *, failed: Failed[Integration] | None = None
) -> dict[int, Prepared]:
    """Stage 3 for these integrations, by integration id; ``failed`` as in stage 1."""

    def act(some: Sequence[Integration]) -> dict[int, Prepared]:
        with _integrations(context, some) as leases:
            expire_waiting(context, leases)
            return prepare(context, some, leases)

    return _apart(context, integrations, act, failed)


def deliver_integrations(
    context: Context,
    integrations: Sequence[Integration],
    *,
    wire: Wire | None = None,
    background: Background | None = None,
    rng: random.Random | None = None,
    stop: Callable[[], bool] = lambda: False,
    failed: Failed[Integration] | None = None,
) -> dict[int, Delivered]:
    """Stage 4 for these integrations, by integration id; see :func:`nami_amp_pipeline.stages.deliver.deliver`.

    ``failed`` as in stage 1.
    """

    def act(some: Sequence[Integration]) -> dict[int, Delivered]:
        with _integrations(context, some) as leases:
            return deliver(context, some, leases, Means(wire, background, rng, stop))

    return _apart(context, integrations, act, failed)


def _apart(
    context: Context, keys: Sequence[K], act: Callable[[Sequence[K]], dict[R, V]], failed: Failed[K] | None
) -> dict[R, V]:
    """Acts for all keys at once; where that ends in an error, for each half, until it is known whose error it is.

    What no key is to blame for, such as a warehouse that cannot be read, is raised as it is.
    """
    told = 0

    def some(part: Sequence[K]) -> dict[R, V]:
        nonlocal told
        try:
            return act(part)
        except _SHARED:
            raise
        except Exception as error:
            if failed is None or not part:
                raise
            if len(part) > 1 and told < MOST_APART:
                context.log.info("%s: trying again in two halves", type(error).__name__)
                middle = len(part) // 2
                return some(part[:middle]) | some(part[middle:])
            told += len(part)
            for key in part:
                failed(key, _in_words(context, error))
            return {}

    return some(keys)


def _in_words(context: Context, error: Exception) -> NamiAmpError:
    if isinstance(error, NamiAmpError):
        return error
    context.log.error("an error that nobody expected", exc_info=error)
    first = (str(error).splitlines() or [""])[0][:200]
    return Unexpected(f"this is a bug, please report it: {type(error).__name__}: {first}")


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
def _apps(context: Context, app_ids: Sequence[str]) -> Iterator[dict[str, Lease]]:
    with _leases(context, {f"app:{app_id}": app_id for app_id in app_ids}) as leases:
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
