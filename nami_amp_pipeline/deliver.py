"""Stage 4, ``amplitude_deliveries``: posts the outboxes and records every answer before the lane's next request."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from nami_amp_pipeline.amplitude.channel import Attempt, Change, Channel, Delivered, Held, Lane
from nami_amp_pipeline.amplitude.outbox import OutboxFile
from nami_amp_pipeline.amplitude.transport import HttpAnswer, HttpTransport, NoAnswer
from nami_amp_pipeline.amplitude.wire import MAX_REQUESTS, ThreadedWire, Wire
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import LostLease, Misconfigured, StoreUnavailable
from nami_amp_pipeline.receipts import finish_outbox
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease

STORE_PATIENCE_SECONDS = 60.0
"""How long an answer waits to be recorded before the run ends."""


@dataclass
class _Run:
    """One run of the delivery loop."""

    context: Context
    wire: Wire
    leases: Mapping[int, Lease]
    channels: dict[int, Channel] = field(default_factory=dict)
    under_way: dict[int, Attempt] = field(default_factory=dict)
    changes: list[tuple[Channel, Change]] = field(default_factory=list)
    started: int = 0
    renewed_at: int = 0


def deliver(
    context: Context,
    integrations: Sequence[Integration],
    leases: Mapping[int, Lease],
    *,
    wire: Wire | None = None,
    rng: random.Random | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, Delivered]:
    """Posts what is pending of the integrations under lease.

    Args:
        context: the process at work.
        integrations: those to deliver for.
        leases: by integration id.
        wire: where requests go; HTTP in threads by default.
        rng: for jitter.
        stop: asked often; once true, nothing new starts and what is under way is recorded.

    Returns:
        By integration id, also for those that had nothing pending.

    Raises:
        StoreUnavailable: answers could not be recorded; the next run sends those requests again, byte for byte.
    """
    rng = rng or random.Random()  # noqa: S311 - jitter
    wire = wire or ThreadedWire(
        HttpTransport(context.settings.http_timeout_seconds, compress=context.settings.gzip)
    )
    run = _Run(context, wire, leases, renewed_at=context.now())
    done: dict[int, Delivered] = {}
    for one in integrations:
        if one.id not in leases or not one.enabled:
            continue
        if one.halted_reason:
            done[one.id] = Delivered(error=one.halted_reason)
            continue
        try:
            channel = _open(context, one, rng)
        except Misconfigured as error:
            done[one.id] = Delivered(error=str(error))
            continue
        done[one.id] = channel.done
        channel.progress_at = context.now()
        run.channels[one.id] = channel
        _next_outbox(run, channel)
    try:
        _loop(run, stop)
    finally:
        wire.close()
    for channel in run.channels.values():
        if channel.done.error is None and channel.wake_at(context.now()) is not None:
            trouble = channel.last_trouble or ("throttled" if channel.held else "")
            channel.done.error = f"not everything was delivered in time{f' ({trouble})' if trouble else ''}"
    return done


def _open(context: Context, one: Integration, rng: random.Random) -> Channel:
    channel = Channel(
        context.store,
        one.id,
        one.endpoint,
        context.cipher.decrypt(one.api_key),
        batch_events=context.settings.batch_events,
        batch_bytes=context.settings.batch_bytes,
        max_lanes=context.settings.max_lanes,
        run_id=context.run_id,
        rng=rng,
    )
    table, pauses = tables.exceptions, tables.pauses
    now = context.now()
    with context.store.begin() as tx:
        waiting = tx.execute(
            sa.select(table.c.identity, sa.func.max(pauses.c.until))
            .outerjoin(
                pauses,
                sa.and_(pauses.c.integration_id == table.c.integration_id, pauses.c.identity == table.c.identity),
            )
            .where(table.c.integration_id == one.id, table.c.state == "held")
            .group_by(table.c.identity)
        ).all()
    channel.held = {identity: Held(until if until is not None else now) for identity, until in waiting}
    return channel


def _next_outbox(run: _Run, channel: Channel) -> None:
    """Turns a channel to its oldest outbox that is not done."""
    boxes, lanes, exceptions = tables.outboxes, tables.lanes, tables.exceptions
    channel.lanes = []
    channel.outbox_id = None
    with run.context.store.begin() as tx:
        box = tx.execute(
            sa.select(boxes)
            .where(boxes.c.integration_id == channel.id, boxes.c.done_at.is_(None))
            .order_by(boxes.c.id)
            .limit(1)
        ).one_or_none()
        if box is None:
            return
        rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == box.id).order_by(lanes.c.id)).all()
        taken: dict[int, set[int]] = {}
        for lane_id, lane_row in tx.execute(
            sa.select(exceptions.c.lane_id, exceptions.c.lane_row)
            .join(lanes, lanes.c.id == exceptions.c.lane_id)
            .where(lanes.c.outbox_id == box.id, exceptions.c.lane_row >= lanes.c.next_row)
        ):
            taken.setdefault(lane_id, set()).add(lane_row)
    channel.load(
        box.id,
        box.segment_id,
        OutboxFile(run.context.folder.open_ipc(box.file)),
        [
            Lane(
                row.id,
                row.batch,
                row.rows,
                row.next_row,
                row.attempt_end,
                row.unknown_since,
                taken=taken.get(row.id, set()),
            )
            for row in rows
        ],
    )


def _loop(run: _Run, stop: Callable[[], bool]) -> None:
    context = run.context
    number = 0
    came: list[tuple[int, HttpAnswer | NoAnswer]] = []
    while True:
        now = context.now()
        for finished, answer in came:
            attempt = run.under_way.pop(finished)
            _with_changes(run, attempt.channel, lambda changes, a=attempt, b=answer: a.channel.finish(a, b, now, changes))  # type: ignore[misc]
        if any(channel.held_changed for channel in run.channels.values()):
            _commit(run)  # what is held is read from the store
        _renew(run, now)
        starting: list[Attempt] = []
        stopping = stop()
        for channel in list(run.channels.values()):
            _finish_outboxes(run, channel)
            if stopping or _gives_up(run, channel, now):
                continue
            changes: list[Change] = []
            starting += channel.start(now, MAX_REQUESTS - len(run.under_way) - len(starting), changes)
            run.changes += [(channel, change) for change in changes]
        lost = _commit(run)
        for attempt in starting:
            if attempt.channel.id in lost:
                continue
            number += 1
            run.under_way[number] = attempt
            context.step("deliver.post")
            run.wire.start(number, attempt.channel.endpoint, attempt.body)
        if not run.under_way:
            wake = _wake(run, now, stopping)
            if wake is None:
                return
            came = run.wire.wait(max(0.0, min((wake - now) / 1e6, context.settings.lease_seconds / 4)))
        else:
            wake = _wake(run, now, stopping)
            most = context.settings.lease_seconds / 4
            came = run.wire.wait(most if wake is None or wake <= now else min(most, (wake - now) / 1e6))
        if came:
            context.step("deliver.answered")


def _with_changes(run: _Run, channel: Channel, act: Callable[[list[Change]], None]) -> None:
    if channel.id not in run.channels:
        return  # lost its lease meanwhile: somebody else sends this again and records it
    changes: list[Change] = []
    act(changes)
    run.changes += [(channel, change) for change in changes]


def _finish_outboxes(run: _Run, channel: Channel) -> None:
    while channel.outbox_id is not None and channel.outbox_done:
        if _commit(run) & {channel.id}:
            return
        finish_outbox(run.context, channel.outbox_id, run.leases[channel.id])
        _next_outbox(run, channel)


def _gives_up(run: _Run, channel: Channel, now: int) -> bool:
    patience = int(run.context.settings.run_retry_seconds * 1e6)
    return now - channel.progress_at > patience


def _wake(run: _Run, now: int, stopping: bool) -> int | None:
    """When the next request can start; None if none will in this run."""
    if stopping:
        return None
    patience = int(run.context.settings.run_retry_seconds * 1e6)
    times = []
    for channel in run.channels.values():
        wake = channel.wake_at(now)
        if wake is not None and wake <= channel.progress_at + patience:
            times.append(wake)
    return min(times) if times else None


def _renew(run: _Run, now: int) -> None:
    """Says that this process still works, where it has nothing to record."""
    if now - run.renewed_at < run.context.settings.lease_seconds * 250_000:
        return
    for channel in run.channels.values():
        run.changes.append((channel, lambda tx: None))
    run.renewed_at = now


def _commit(run: _Run) -> set[int]:
    """Records the changes; returns the integrations whose lease is lost, which are left alone from now on."""
    for channel in run.channels.values():
        channel.held_changed = False
    if not run.changes:
        return set()
    context = run.context
    begun = context.now()
    while True:
        lost: set[int] = set()
        confirmed: set[int] = set()
        context.step("deliver.commit")
        try:
            with context.store.begin() as tx:
                for channel, change in run.changes:
                    if channel.id in lost:
                        continue
                    if channel.id not in confirmed:
                        try:
                            context.store.confirm(tx, [run.leases[channel.id]])
                        except LostLease:
                            lost.add(channel.id)
                            continue
                        confirmed.add(channel.id)
                    change(tx)
            break
        except StoreUnavailable:
            # Nothing may be posted before this is recorded; what was answered meanwhile waits in memory.
            if context.now() - begun > STORE_PATIENCE_SECONDS * 1e6:
                raise
            context.log.warning("the state store cannot be written; trying again")
            context.sleep(1.0)
    run.changes.clear()
    context.step("deliver.committed")
    for integration_id in lost:
        channel = run.channels.pop(integration_id)
        channel.halted = True
        channel.done.error = "another process took this integration over"
    return lost


__all__ = ["Delivered", "deliver"]
