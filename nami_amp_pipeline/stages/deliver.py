"""Stage 4, ``amplitude_deliveries``: posts the outboxes and records every answer before the lane's next request."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Attempt, Delivered
from nami_amp_pipeline.delivery.channel import Channel
from nami_amp_pipeline.delivery.channel_loader import ChannelLoader
from nami_amp_pipeline.delivery.destination import TOO_LARGE, Outcome
from nami_amp_pipeline.delivery.fair_queue import FairQueue
from nami_amp_pipeline.delivery.outbox_finisher import TRY_AGAIN_MICROS, AtOnce, Background, InThread, OutboxFinisher
from nami_amp_pipeline.delivery.outbox_turner import OutboxTurner
from nami_amp_pipeline.delivery.rate_limit import ProjectRates
from nami_amp_pipeline.delivery.receipts import Ending, finish_outboxes
from nami_amp_pipeline.delivery.recorder import STORE_PATIENCE_SECONDS, Recorder
from nami_amp_pipeline.delivery.request_threads import MAX_REQUESTS, ThreadedWire, Wire
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer
from nami_amp_pipeline.delivery.wake_ups import WakeUps
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.errors import Blocked, LostLease, StoreUnavailable, Unexpected, in_words
from nami_amp_pipeline.stages.window import Window, refuse
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease

STOP_SECONDS = 7.0
"""How long a stopping run waits for answers; the outcome of a request without an answer is unknown."""

MAX_BYTES_UNDER_WAY = 100_000_000

LEASE_LOST = "lease lost: another process now delivers for this integration"


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Means:
    """The means of a delivery run.

    Attributes:
        wire: where requests go; HTTP in threads by default.
        background: where receipts are written; a thread by default, or at once if a wire is given.
        rng: for jitter.
        rates: of the projects, where a process delivers several times and wants each to know of the others.
        stop: asked often; once true, no request starts, and answers under way are recorded.
    """

    wire: Wire | None = None
    background: Background | None = None
    rng: random.Random | None = None
    rates: ProjectRates | None = None
    stop: Callable[[], bool] = _never


def deliver(
    context: Context,
    integrations: Sequence[Integration],
    leases: Mapping[int, Lease],
    means: Means | None = None,
    *,
    window: Window | None = None,
) -> dict[int, Delivered]:
    """Posts the pending events of the integrations under lease.

    Args:
        context: the process at work.
        integrations: those to deliver for.
        leases: by integration id.
        means: the means of the delivery.
        window: refused.

    Returns:
        Results by integration id, also for integrations without pending events.

    Raises:
        StoreUnavailable: answers could not be recorded; the next run sends those requests again, byte for byte.
    """
    refuse(window, "amplitude_deliveries")
    means = means or Means()
    opener = ChannelLoader(context, means.rng or random.Random(), DESTINATIONS, means.rates)  # noqa: S311 - jitter
    done, channels = _open(
        context,
        opener,
        [integration for integration in integrations if integration.id in leases and integration.enabled],
    )
    if not channels:
        return done
    wire, background = means.wire, means.background
    if wire is None:
        transport = HttpTransport(context.settings.http_timeout_seconds, compress=context.settings.gzip)
        wire = ThreadedWire(transport, stop=means.stop)
        background = background or InThread()
    patience = int(STORE_PATIENCE_SECONDS * 1e6)

    def finish(done_ones: Sequence[tuple[int, int]]) -> Mapping[int, Exception]:
        return finish_outboxes(
            context,
            [Ending(number, leases[channel_id], channels[channel_id].target.destination)
             for channel_id, number in done_ones],
        )  # fmt: skip

    finishing = OutboxFinisher(finish, background or AtOnce(), patience)
    turner = OutboxTurner(opener, finishing, patience)
    try:
        _Delivery(context, wire, finishing, turner, leases, channels, means.stop).loop()
    finally:
        finishing.close()
        wire.close()
    for channel_id, failure in finishing.settle(micros(context.clock)):
        _note_failure(context, channels[channel_id].done, failure)
    for channel in channels.values():
        _conclude(context, channel)
    return done


def _open(
    context: Context, opener: ChannelLoader, integrations: Sequence[Integration]
) -> tuple[dict[int, Delivered], dict[int, Channel]]:
    """The channels of the integrations with pending events, and the results of all, both by integration id."""
    pending = opener.pending([integration.id for integration in integrations])
    done: dict[int, Delivered] = {}
    channels: dict[int, Channel] = {}
    for integration in integrations:
        done[integration.id] = Delivered(error=integration.halted_reason)
        if integration.halted_reason or integration.id not in pending:
            continue
        try:
            channels[integration.id] = opener.open(integration)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the others have their turn
            _note_failure(context, done[integration.id], error)
            continue
        done[integration.id] = channels[integration.id].done
    return done, channels


def _note_failure(context: Context, done: Delivered, error: Exception) -> None:
    failure = in_words(context.log, error)
    done.error, done.is_bug = str(failure), isinstance(failure, Unexpected)


def _conclude(context: Context, channel: Channel) -> None:
    """Logs the errors and warnings of each integration."""
    done = channel.done
    for text, times in done.warnings.items():
        context.log.warning("integration %s: %s (%s requests)", channel.id, text, times)
    if done.error is None and (channel.has_pending or channel.outbox_id is not None):
        trouble = channel.last_trouble or ("throttled" if channel.held else "")
        done.error = f"some events were not delivered in time{f' ({trouble})' if trouble else ''}"


class _SteadyClock:
    """A clock that never goes back: a wait must not become longer because the clock was set."""

    def __init__(self, context: Context) -> None:
        self._clock = context.clock
        self._was = micros(self._clock)
        self._ahead = 0

    def __call__(self) -> int:
        now = micros(self._clock)
        self._ahead += max(0, self._was - now)
        self._was = now
        return now + self._ahead


class _Delivery:
    """The delivery loop of one run: its work per answer does not grow with the number of integrations."""

    def __init__(
        self,
        context: Context,
        wire: Wire,
        finishing: OutboxFinisher,
        turner: OutboxTurner,
        leases: Mapping[int, Lease],
        channels: Mapping[int, Channel],
        stop: Callable[[], bool],
    ) -> None:
        self._context = context
        self._wire = wire
        self._finishing = finishing
        self._turner = turner
        self._stop = stop
        self._channels = dict(channels)
        self._now = _SteadyClock(context)
        self._recorder = Recorder(context, leases, self._channels, self._now)
        self._endpoints = FairQueue()
        self._wakes = WakeUps()
        self._under_way: dict[int, tuple[Channel, Attempt]] = {}
        self._bytes = 0
        self._number = 0
        self._patience = int(context.settings.run_retry_seconds * 1e6)
        self._longest_wait = int(context.settings.lease_seconds * 1e6) // 4

    def loop(self) -> None:
        """Runs until nothing is pending, or nothing makes progress any more."""
        self._turn(list(self._channels.values()), all_of_them=True)
        for channel in list(self._channels.values()):
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
            self._recorder.renew(now)
            changed = self._recorder.changed
            self._commit()
            self._post(starting)
            if stopping_until is None:
                overdue = [
                    self._channels[integration_id]
                    for integration_id in self._turner.overdue(now)
                    if integration_id in self._channels
                ]
                self._turn([*changed, *overdue])
            for channel_id, error in self._finishing.settle(self._now()):
                if channel_id in self._channels:
                    self._drop(self._channels[channel_id], error)
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
            if channel.id not in self._channels:  # its lease was lost meanwhile: the new holder sends this again
                attempt.source.settle(attempt, now, maybe_stored=True)
                self._endpoints.left(channel.target.endpoint, failed=False)
                continue
            try:
                verdict = channel.finish(attempt, answer, now)
            except Exception as error:  # noqa: BLE001 - as in a crash: the next run sends this again
                self._endpoints.left(channel.target.endpoint, failed=False)
                self._drop(channel, error)
                continue
            if verdict.whole_project:
                self._pause_mates(channel, verdict.reason)
            failed = verdict.outcome is Outcome.AGAIN and not verdict.whole_project
            failed = failed and verdict.reason not in ("throttled", TOO_LARGE)
            self._endpoints.left(channel.target.endpoint, failed=failed)
            self._recorder.note(channel)
            touched[channel.id] = channel
            self._enqueue(channel)
        return list(touched.values())

    def _pause_mates(self, channel: Channel, reason: str) -> None:
        """What one channel was told of its project holds for the others that post to it."""
        for mate in self._channels.values():
            if mate is not channel and mate.rate is channel.rate:
                mate.pause_with_project(reason)
                self._recorder.note(mate)

    def _turn(self, channels: Iterable[Channel], *, all_of_them: bool = False) -> None:
        """Turns channels whose outbox is done and recorded to their next outbox."""
        due = [
            channel
            for channel in channels
            if channel.id in self._channels and (all_of_them or self._turner.is_due(channel))
        ]
        self._turner.look_ahead(due)
        for channel in due:
            try:
                self._turner.turn(channel, self._now())
            except Exception as error:  # noqa: BLE001 - the other integrations go on
                self._drop(channel, error)
            self._enqueue(channel)

    def _drop(self, channel: Channel, error: Exception) -> None:
        """Gives an integration up for this run; nothing of it is recorded that was not before."""
        _note_failure(self._context, channel.done, error)
        self._channels.pop(channel.id, None)
        self._recorder.forget(channel.id)

    # -- requests --------------------------------------------------------------------------------------------------

    def _enqueue(self, channel: Channel) -> None:
        if channel.id in self._channels and not channel.halted:
            self._endpoints.enqueue(channel.target.endpoint, channel.id)

    @property
    def _has_room(self) -> bool:
        return len(self._under_way) < MAX_REQUESTS and self._bytes < MAX_BYTES_UNDER_WAY

    def _start(self, now: int) -> list[tuple[Channel, Attempt]]:
        for channel_id in self._wakes.due(now):
            if channel_id in self._channels:
                self._enqueue(self._channels[channel_id])
        starting: list[tuple[Channel, Attempt]] = []
        while len(self._under_way) + len(starting) < MAX_REQUESTS and self._bytes < MAX_BYTES_UNDER_WAY:
            integration_id = self._endpoints.next()
            if integration_id is None:
                break
            channel = self._channels.get(integration_id)
            if channel is None or channel.halted:
                continue
            at = channel.next_at(now)
            if at is None or self._is_given_up(channel, max(at, now), now):
                continue  # an answer wakes it, or it is given up
            attempt = self._attempt(channel, now) if at <= now else None
            if channel.changes and channel.id in self._channels:
                self._recorder.note(channel)
            if attempt is None:
                self._wake_up(channel, now)
                continue
            self._endpoints.entered(channel.target.endpoint)
            self._bytes += len(attempt.body)
            starting.append((channel, attempt))
            self._enqueue(channel)
        return starting

    def _is_given_up(self, channel: Channel, at: int, now: int) -> bool:
        """Whether a channel's next request comes too late for this run."""
        since = now if channel.progress_at is None else channel.progress_at
        return at > since + self._patience

    def _attempt(self, channel: Channel, now: int) -> Attempt | None:
        try:
            return channel.start(now)
        except StoreUnavailable:
            channel.held.ready_at = now + TRY_AGAIN_MICROS  # what waits is read later; answers are recorded first
            return None
        except (OSError, pa.ArrowException) as error:
            self._drop(channel, Blocked(f"an outbox file cannot be read: {type(error).__name__}"))
        except Exception as error:  # noqa: BLE001 - the other integrations go on
            self._drop(channel, error)
        return None

    def _wake_up(self, channel: Channel, now: int) -> None:
        at = channel.next_at(now) if channel.id in self._channels else None
        if at is not None and not self._is_given_up(channel, at, now):
            self._wakes.add(channel.id, at)

    def _post(self, starting: Sequence[tuple[Channel, Attempt]]) -> None:
        for channel, attempt in starting:
            self._context.step("deliver.post")
            if channel.id in self._channels and self._recorder.renew_for(channel):
                # The process was slow, or stopped, since it recorded that it will post: is the lease still ours?
                self._commit()
            if channel.id not in self._channels:
                self._left_unposted(channel, attempt)
                continue
            if self._stop():  # the store was slow to record it, or away, and meanwhile nothing is to start any more
                self._take_back(channel, attempt)
                continue
            try:
                request = channel.target.request(attempt.body, self._context.clock(), channel.send_until)
            except Exception as error:  # noqa: BLE001 - the other integrations go on
                self._drop(channel, error)
                self._left_unposted(channel, attempt)
                continue
            self._number += 1
            self._under_way[self._number] = (channel, attempt)
            self._wire.start(self._number, request)

    def _left_unposted(self, channel: Channel, attempt: Attempt) -> None:
        attempt.source.settle(attempt, self._now(), maybe_stored=False)
        self._left(channel, attempt)

    def _take_back(self, channel: Channel, attempt: Attempt) -> None:
        channel.take_back(attempt, self._now())
        self._left(channel, attempt)
        self._recorder.note(channel)
        self._enqueue(channel)  # the loop goes round once more, and records it

    def _left(self, channel: Channel, attempt: Attempt) -> None:
        self._endpoints.left(channel.target.endpoint, failed=False)
        self._bytes -= len(attempt.body)

    def _wait_micros(self, now: int, stopping_until: int | None) -> int | None:
        """How long to wait for answers; None if the delivery is over."""
        if stopping_until is not None:
            if not self._under_way or now >= stopping_until:
                return None
            return min(stopping_until - now, self._longest_wait)
        wakes = [self._turner.next_at(self._channels), self._wakes.next_at()]
        if not self._under_way:  # an answer is soon enough otherwise
            wakes.append(self._finishing.next_at(now))
        wake = min((at for at in wakes if at is not None), default=None)
        if self._endpoints.has_next and self._has_room:
            return 0
        if wake is None:
            return self._longest_wait if self._under_way else None
        return max(0, min(self._longest_wait, wake - now))

    # -- the store -------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Records the changes; integrations whose lease is lost are dropped from the run."""
        for channel_id in self._recorder.commit():
            self._drop(self._channels[channel_id], LostLease(LEASE_LOST))
