"""Stage 4, ``amplitude_deliveries``: posts the outboxes and records every answer before the lane's next request."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush

import pyarrow as pa

from nami_amp_pipeline.amplitude.answers import Outcome
from nami_amp_pipeline.amplitude.transport import HttpAnswer, HttpTransport, NoAnswer
from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Attempt, Delivered
from nami_amp_pipeline.delivery.channel import Channel
from nami_amp_pipeline.delivery.channel_loader import ChannelLoader
from nami_amp_pipeline.delivery.fair_queue import FairQueue
from nami_amp_pipeline.delivery.outbox_finisher import TRY_AGAIN_MICROS, AtOnce, Background, InThread, OutboxFinisher
from nami_amp_pipeline.delivery.receipts import finish_outbox
from nami_amp_pipeline.delivery.request_threads import MAX_REQUESTS, ThreadedWire, Wire
from nami_amp_pipeline.errors import Halted, Misconfigured, NamiAmpError, StoreUnavailable
from nami_amp_pipeline.stages.window import Window, refuse
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease

STORE_PATIENCE_SECONDS = 60.0
"""How long answers wait to be recorded before the run ends."""

STOP_SECONDS = 7.0
"""How long a run that is told to stop waits for the answers under way; without one their outcome is unknown."""

MAX_BYTES_UNDER_WAY = 100_000_000


def deliver(
    context: Context,
    integrations: Sequence[Integration],
    leases: Mapping[int, Lease],
    *,
    wire: Wire | None = None,
    background: Background | None = None,
    rng: random.Random | None = None,
    stop: Callable[[], bool] = lambda: False,
    window: Window | None = None,
) -> dict[int, Delivered]:
    """Posts what is pending of the integrations under lease.

    Args:
        context: the process at work.
        integrations: those to deliver for.
        leases: by integration id.
        wire: where requests go; HTTP in threads by default.
        background: where receipts are written; a thread by default, or at once where a wire is given.
        rng: for jitter.
        stop: asked often; once true, nothing new starts and what is under way is recorded.
        window: refused.

    Returns:
        By integration id, also for those that had nothing pending.

    Raises:
        StoreUnavailable: answers could not be recorded; the next run sends those requests again, byte for byte.
    """
    refuse(window, "amplitude_deliveries")
    rng = rng or random.Random()  # noqa: S311 - jitter
    opener = ChannelLoader(context, rng)
    pending = opener.pending()
    done: dict[int, Delivered] = {}
    channels: dict[int, Channel] = {}
    for one in integrations:
        if one.id not in leases or not one.enabled:
            continue
        done[one.id] = Delivered(error=one.halted_reason)
        if one.halted_reason or one.id not in pending:
            continue
        try:
            channels[one.id] = opener.open(one)
        except (Misconfigured, Halted) as error:
            if isinstance(error, StoreUnavailable):
                raise
            done[one.id].error = str(error)
            continue
        done[one.id] = channels[one.id].done
    if not channels:
        return done
    if wire is None:
        transport = HttpTransport(context.settings.http_timeout_seconds, compress=context.settings.gzip)
        wire = ThreadedWire(transport, stop=stop)
        background = background or InThread()
    finishing = OutboxFinisher(
        lambda channel_id, outbox_id: finish_outbox(context, outbox_id, leases[channel_id]),
        background or AtOnce(),
        int(STORE_PATIENCE_SECONDS * 1e6),
    )
    try:
        _Run(context, opener, wire, finishing, leases, channels, stop).loop()
    finally:
        finishing.close()
        wire.close()
    for channel_id, failure in finishing.settle(micros(context.clock)):
        channels[channel_id].done.error = str(failure)
    for channel in channels.values():
        if channel.done.error is None and (channel.has_pending or channel.outbox_id is not None):
            trouble = channel.last_trouble or ("throttled" if channel.held else "")
            channel.done.error = f"not everything was delivered in time{f' ({trouble})' if trouble else ''}"
    return done


class _Run:
    """One run of the delivery loop: its work for an answer does not grow with the number of integrations."""

    def __init__(
        self,
        context: Context,
        opener: ChannelLoader,
        wire: Wire,
        finishing: OutboxFinisher,
        leases: Mapping[int, Lease],
        channels: Mapping[int, Channel],
        stop: Callable[[], bool],
    ) -> None:
        self._context = context
        self._opener = opener
        self._wire = wire
        self._finishing = finishing
        self._leases = leases
        self._stop = stop
        self._channels = dict(channels)
        self._endpoints = FairQueue()
        self._wakes: list[tuple[int, int]] = []
        self._wake_of: dict[int, int] = {}
        self._unfinished: dict[int, int] = {}
        self._away_since: dict[int, int] = {}
        self._changed: dict[int, Channel] = {}
        self._under_way: dict[int, tuple[Channel, Attempt]] = {}
        self._bytes = 0
        self._number = 0
        self._patience = int(context.settings.run_retry_seconds * 1e6)
        self._lease_micros = int(context.settings.lease_seconds * 1e6)
        self._clock_was = micros(context.clock)
        self._clock_ahead = 0
        self._renewed_at = self._now()
        self._expires_at = 1

    def _now(self) -> int:
        """The clock, but never back: what waits for a time must not wait longer because the clock was set."""
        now = micros(self._context.clock)
        self._clock_ahead += max(0, self._clock_was - now)
        self._clock_was = now
        return now + self._clock_ahead

    def loop(self) -> None:
        """Runs until nothing is left, or nothing is left that makes progress."""
        for channel in list(self._channels.values()):
            self._finish_outboxes(channel)
            self._enqueue(channel)
        came: list[tuple[int, HttpAnswer | NoAnswer]] = []
        stopping_until: int | None = None
        while True:
            now = self._now()
            finished = self._take_in(came, now)
            if any(channel.waits_for_commit for channel in finished):
                self._commit()  # what waits is read from the store
            if stopping_until is None and self._stop():
                stopping_until = now + int(STOP_SECONDS * 1e6)
            starting = [] if stopping_until is not None else self._start(now)
            self._renew(now)
            changed = list(self._changed.values())
            self._commit()
            self._post(starting)
            if stopping_until is None:
                self._turn([*changed, *self._overdue(now)])
            for channel_id, error in self._finishing.settle(self._now()):
                if channel_id in self._channels:
                    self._drop(self._channels[channel_id], str(error))
            wait = self._wait_micros(self._now(), stopping_until)
            if wait is None:
                return
            came = self._wire.wait(wait / 1e6)
            if came:
                self._context.step("deliver.answered")

    # -- answers ---------------------------------------------------------------------------------------------------

    def _take_in(self, came: Iterable[tuple[int, HttpAnswer | NoAnswer]], now: int) -> list[Channel]:
        touched: dict[int, Channel] = {}
        for number, answer in came:
            channel, attempt = self._under_way.pop(number)
            self._bytes -= len(attempt.body)
            if channel.id not in self._channels:  # lost its lease meanwhile: whoever has it sends this again
                self._endpoints.left(channel.target.endpoint, failed=False)
                continue
            verdict = channel.finish(attempt, answer, now)
            failed = verdict.outcome is Outcome.AGAIN and not verdict.whole_project and verdict.reason != "throttled"
            self._endpoints.left(channel.target.endpoint, failed=failed)
            self._changed[channel.id] = channel
            touched[channel.id] = channel
            self._enqueue(channel)
        return list(touched.values())

    def _turn(self, channels: Iterable[Channel]) -> None:
        """Turns channels whose outbox is done, and of which all is recorded, to the next one."""
        for channel in channels:
            if channel.id in self._channels and (channel.outbox_done or channel.id in self._unfinished):
                self._finish_outboxes(channel)
                self._enqueue(channel)

    def _overdue(self, now: int) -> list[Channel]:
        """Channels that could not be turned because the store was away; it gets as long as the answers do."""
        due = [one for one, at in self._unfinished.items() if at <= now and one in self._channels]
        return [self._channels[one] for one in due]

    def _finish_outboxes(self, channel: Channel) -> None:
        """Has the receipts of outboxes that are done written, and turns the channel to the next one."""
        self._unfinished.pop(channel.id, None)
        try:
            while channel.outbox_id is None or channel.outbox_done:
                if channel.outbox_id is not None:
                    self._finishing.start(channel.id, channel.outbox_id, self._now())
                if not self._opener.load_next(channel):
                    return
        except StoreUnavailable:
            now = self._now()
            since = self._away_since.setdefault(channel.id, now)
            if now - since < STORE_PATIENCE_SECONDS * 1e6:
                self._unfinished[channel.id] = now + TRY_AGAIN_MICROS
        except NamiAmpError as error:
            self._drop(channel, str(error))
        else:
            self._away_since.pop(channel.id, None)

    def _drop(self, channel: Channel, error: str) -> None:
        channel.done.error = error
        self._channels.pop(channel.id, None)
        self._changed.pop(channel.id, None)

    # -- requests --------------------------------------------------------------------------------------------------

    def _enqueue(self, channel: Channel) -> None:
        if channel.id in self._channels and not channel.halted:
            self._endpoints.enqueue(channel.target.endpoint, channel.id)

    def _start(self, now: int) -> list[tuple[Channel, Attempt]]:
        while self._wakes and self._wakes[0][0] <= now:
            woken_at, woken = heappop(self._wakes)
            if self._wake_of.get(woken) == woken_at:
                del self._wake_of[woken]
                if woken in self._channels:
                    self._enqueue(self._channels[woken])
        starting: list[tuple[Channel, Attempt]] = []
        while len(self._under_way) + len(starting) < MAX_REQUESTS and self._bytes < MAX_BYTES_UNDER_WAY:
            integration_id = self._endpoints.next()
            if integration_id is None:
                break
            channel = self._channels.get(integration_id)
            if channel is None or channel.halted:
                continue
            at = channel.next_at(now)
            since = now if channel.progress_at is None else channel.progress_at
            if at is None or max(at, now) > since + self._patience:
                continue  # an answer wakes it, or it is given up
            attempt = self._attempt(channel, now) if at <= now else None
            if channel.changes:
                self._changed[channel.id] = channel
            if attempt is None:
                if channel.id in self._channels:
                    self._wake_up(channel, now)
                continue
            self._endpoints.entered(channel.target.endpoint)
            self._bytes += len(attempt.body)
            starting.append((channel, attempt))
            self._enqueue(channel)
        return starting

    def _attempt(self, channel: Channel, now: int) -> Attempt | None:
        try:
            return channel.start(now)
        except StoreUnavailable:
            channel.held.ready_at = now + TRY_AGAIN_MICROS  # what waits is read later; answers are recorded first
            return None
        except (OSError, pa.ArrowException) as error:
            self._drop(channel, f"an outbox file cannot be read: {type(error).__name__}")
            return None

    def _wake_up(self, channel: Channel, now: int) -> None:
        at = channel.next_at(now)
        since = now if channel.progress_at is None else channel.progress_at
        if at is None or at > since + self._patience:
            return
        known = self._wake_of.get(channel.id)
        if known is None or at < known:
            self._wake_of[channel.id] = at
            heappush(self._wakes, (at, channel.id))

    def _post(self, starting: Sequence[tuple[Channel, Attempt]]) -> None:
        for channel, attempt in starting:
            self._context.step("deliver.post")
            if self._now() - self._renewed_at > self._lease_micros // 2:
                # The process was stopped since it recorded that it will post: are the leases still ours?
                self._renewed_at = 0
                self._renew(self._now())
                self._commit()
            if channel.id not in self._channels:
                self._endpoints.left(channel.target.endpoint, failed=False)
                self._bytes -= len(attempt.body)
                continue
            self._number += 1
            self._under_way[self._number] = (channel, attempt)
            self._wire.start(self._number, channel.target.endpoint, attempt.body)

    def _wait_micros(self, now: int, stopping_until: int | None) -> int | None:
        """How long to wait for answers; None if the run is over."""
        if stopping_until is not None:
            if not self._under_way or now >= stopping_until:
                return None
            return min(stopping_until - now, self._lease_micros // 4)
        while self._wakes and self._wake_of.get(self._wakes[0][1]) != self._wakes[0][0]:
            heappop(self._wakes)
        wakes = [at for one, at in self._unfinished.items() if one in self._channels]
        looks = self._finishing.next_at(now)
        if looks is not None and not self._under_way:  # an answer is soon enough otherwise
            wakes.append(looks)
        wake = min([*wakes, *(at for at, _ in self._wakes[:1])], default=None)
        if self._endpoints.has_next and len(self._under_way) < MAX_REQUESTS and self._bytes < MAX_BYTES_UNDER_WAY:
            return 0
        if wake is None and not self._under_way:
            return None
        most = self._lease_micros // 4
        return most if wake is None else max(0, min(most, wake - now))

    # -- the store -------------------------------------------------------------------------------------------------

    def _renew(self, now: int) -> None:
        """Says that this process still works, for the integrations that have nothing to record."""
        if now - self._renewed_at >= self._lease_micros // 4:
            self._changed.update(self._channels)

    def _commit(self) -> None:
        """Records the changes; integrations whose lease is lost are left alone from now on."""
        if not self._changed:
            return
        context = self._context
        changed = list(self._changed.values())
        begun = self._now()
        renewed_at, tried = begun, False
        lost: set[int] = set()
        whole = len(changed) == len(self._channels)
        while True:
            context.step("deliver.commit")
            try:
                if tried and self._went_through(changed, lost):
                    break
                renewed_at = self._now()
                # Odd, and never the same again: it tells which transaction was committed.
                self._expires_at = max(self._expires_at + 2, (micros(context.clock) + self._lease_micros) | 1)
                tried = True
                with context.store.begin() as tx:
                    leases = {self._leases[channel.id]: channel for channel in changed}
                    gone = context.store.lost(tx, list(leases), expires_at=self._expires_at)
                    lost = {leases[lease].id for lease in gone}
                    for channel in changed:
                        if channel.id not in lost and channel.changes:
                            channel.changes.write(context.store, tx)
                break
            except StoreUnavailable:
                # Nothing may be posted before this is recorded; what was answered meanwhile waits in memory.
                if self._now() - begun > STORE_PATIENCE_SECONDS * 1e6:
                    raise
                context.log.warning("the state store cannot be written; trying again")
                context.sleep(1.0)
        for channel in changed:
            channel.changes.clear()
            channel.waits_for_commit = False
        self._changed.clear()
        if whole:
            self._renewed_at = renewed_at
        context.step("deliver.committed")
        for integration_id in lost:
            self._drop(self._channels[integration_id], "another process took this integration over")

    def _went_through(self, changed: Sequence[Channel], lost: set[int]) -> bool:
        """Whether a transaction that ended in an error was committed all the same, the connection lost just then."""
        kept = [channel for channel in changed if channel.id not in lost]
        return bool(kept) and self._context.store.expiry(self._leases[kept[0].id]) == self._expires_at
