"""Runs a stage: takes leases, keeps one partition's error from the others, and releases the leases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Final

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Delivered
from nami_amp_pipeline.delivery.outbox_finisher import Background
from nami_amp_pipeline.delivery.request_threads import Wire
from nami_amp_pipeline.errors import (
    Busy,
    FilesUnavailable,
    LostLease,
    Misconfigured,
    NamiAmpError,
    PartsBlocked,
    StoreUnavailable,
    WarehouseUnavailable,
    in_words,
)
from nami_amp_pipeline.stages.capture import Captured
from nami_amp_pipeline.stages.outbox_writer import Prepared
from nami_amp_pipeline.stages.snapshots import Snapshotted
from nami_amp_pipeline.stages.stage import Stage, Stop, Subject, partition_key
from nami_amp_pipeline.stages.table import CAPTURE, DELIVER, PREPARE, SNAPSHOTS, delivering
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import live_first
from nami_amp_pipeline.state.heartbeat import kept
from nami_amp_pipeline.state.integrations import Integration, apps_with_integrations
from nami_amp_pipeline.state.store import Lease

Failed = Callable[[Subject, NamiAmpError], None]
"""Called with each app or integration for which a stage failed."""

MOST_APART: Final = 20
"""If more partitions than this fail in one stage, isolation stops: most likely they share one cause."""

MOST_LOST: Final = 5
"""How often a stage starts again because another process took one of its leases over."""

_SHARED = (StoreUnavailable, FilesUnavailable, WarehouseUnavailable, LostLease, Misconfigured, Busy)


def never() -> bool:
    """For a run that cannot be stopped."""
    return False


def run_stage(
    context: Context,
    stage: Stage,
    subjects: Sequence[Subject],
    *,
    window: Window | None = None,
    stop: Stop = never,
    failed: Failed | None = None,
) -> dict[str, Any]:
    """Runs a stage for some apps or integrations, except those that another process works on.

    Args:
        context: the process at work.
        stage: which one.
        subjects: app ids or integrations, depending on the stage.
        window: what to work on; None for what is new.
        stop: whether the process was asked to end.
        failed: called with each subject that fails while others succeed; without it, the first error is raised.

    Returns:
        Results by partition key; subjects without new data, and failed subjects, are left out.

    Raises:
        Misconfigured: a setting cannot be used, or the stage cannot work on a window.
        WarehouseUnavailable: the warehouse cannot be read; nobody's partition is to blame.
        StoreUnavailable: the state store cannot be read or written.
    """

    def act(some: Sequence[Subject]) -> dict[str, Any]:
        keys = {_lease_id(subject): partition_key(subject) for subject in some}
        with (
            _leases(context, {f"{stage.per}:{lease_id}": lease_id for lease_id in keys}) as leases,
            nullcontext() if stage.renews_leases else kept(context.store, leases.values()),
        ):
            try:
                done = stage.run(context, some, leases, window, stop)
            except PartsBlocked as error:
                if failed is None:
                    raise
                waits = error.waits
                for subject in some:
                    if (lease_id := _lease_id(subject)) in waits:
                        failed(subject, waits[lease_id])
                done = error.done
        return {keys[lease_id]: result for lease_id, result in done.items()}

    if stage.with_work is None or window is not None:
        return _apart(context, subjects, act, failed)
    context.store.cap_all()
    with_work = stage.with_work(context)
    some = [subject for subject in subjects if _lease_id(subject) in with_work]
    return _apart(context, some, act, failed) if some else {}


def _lease_id(subject: Subject) -> str | int:
    return subject if isinstance(subject, str) else subject.id


def capture_apps(context: Context, app_ids: Sequence[str] | None = None) -> dict[str, Captured]:
    """Stage 1 for these apps, or for all apps with an enabled integration; results by app id."""
    return run_stage(context, CAPTURE, apps_with_integrations(context.store) if app_ids is None else app_ids)


def snapshot_apps(context: Context, app_ids: Sequence[str] | None = None) -> dict[str, Snapshotted]:
    """Stage 2 for these apps, or for all apps with an enabled integration; results by app id."""
    return run_stage(context, SNAPSHOTS, apps_with_integrations(context.store) if app_ids is None else app_ids)


def prepare_integrations(context: Context, integrations: Sequence[Integration]) -> dict[int, Prepared]:
    """Stage 3 for these integrations; results by integration id."""
    return _by_id(integrations, run_stage(context, PREPARE, integrations))


def deliver_integrations(
    context: Context,
    integrations: Sequence[Integration],
    *,
    wire: Wire | None = None,
    background: Background | None = None,
    rng: random.Random | None = None,
    stop: Stop = never,
) -> dict[int, Delivered]:
    """Stage 4 for these integrations; results by integration id. See :func:`deliver.deliver`."""
    stage = replace(DELIVER, run=delivering(wire=wire, background=background, rng=rng))
    return _by_id(integrations, run_stage(context, stage, integrations, stop=stop))


def _by_id(integrations: Sequence[Integration], done: Mapping[str, Any]) -> dict[int, Any]:
    return {
        integration.id: done[integration.partition_key]
        for integration in integrations
        if integration.partition_key in done
    }


def _apart(
    context: Context,
    subjects: Sequence[Subject],
    act: Callable[[Sequence[Subject]], dict[str, Any]],
    failed: Failed | None,
) -> dict[str, Any]:
    """Acts for all subjects at once; after an error, for each half, until the failing subjects are found.

    An error that is no subject's fault, such as an unreadable warehouse, is raised unchanged.
    """
    isolated = lost = 0

    def some(part: Sequence[Subject]) -> dict[str, Any]:
        nonlocal isolated, lost
        try:
            return act(part)
        except LostLease as error:
            # Nothing of it was committed. What the other process has now is left to it; the rest is done again.
            lost += 1
            if lost > MOST_LOST:
                raise
            context.log.info("%s; continuing with the others", error)
            return some(part)
        except _SHARED:
            raise
        except Exception as error:
            if failed is None or not part:
                raise
            if len(part) > 1 and isolated < MOST_APART:
                context.log.info("%s: trying again in two halves", type(error).__name__)
                middle = len(part) // 2
                return some(part[:middle]) | some(part[middle:])
            isolated += len(part)
            for subject in part:
                failed(subject, in_words(context.log, error))
            return {}

    return some(subjects)


@contextmanager
def _leases(context: Context, names: Mapping[str, str | int]) -> Iterator[dict[str | int, Lease]]:
    taken = live_first.acquire(context.store, list(names), sleep=context.sleep, monotonic=context.monotonic)
    for name in names.keys() - taken.keys():
        context.log.info("skipped %s: another process is working on it", name)
    try:
        yield {names[name]: lease for name, lease in taken.items()}
    finally:
        with suppress(NamiAmpError):  # a lease that is not given back runs out by itself
            context.store.release(taken.values())
