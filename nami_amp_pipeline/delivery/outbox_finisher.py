"""Finishes done outboxes in the background: their receipts are written while posting continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from nami_amp_pipeline.errors import FilesUnavailable, StoreUnavailable

TRY_AGAIN_MICROS: Final = 1_000_000

TOGETHER: Final = 64
"""Outboxes are finished in one transaction, at most."""

Finish = Callable[[Sequence[tuple[int, int]]], Mapping[int, Exception]]

_LOOK_AGAIN_MICROS: Final = 2_000


class Background(Protocol):
    """Runs background work, one after the other: in a thread, or at seeded times in a simulation."""

    def start(self, act: Callable[[], None]) -> Future[None]:
        """Runs it now or later."""

    def close(self) -> None:
        """Waits for all started work."""


class AtOnce:
    """Runs everything at once, in the foreground."""

    def start(self, act: Callable[[], None]) -> Future[None]:
        """See :class:`Background`."""
        future: Future[None] = Future()
        try:
            future.set_result(act())  # type: ignore[func-returns-value]
        except Exception as error:  # noqa: BLE001 - whoever asks for the result is told
            future.set_exception(error)
        return future

    def close(self) -> None:
        """See :class:`Background`."""


class InThread:
    """One thread that works in sequence."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="receipts")

    def start(self, act: Callable[[], None]) -> Future[None]:
        """See :class:`Background`."""
        return self._pool.submit(act)

    def close(self) -> None:
        """See :class:`Background`."""
        self._pool.shutdown()


@dataclass
class _Outbox:
    """An outbox that is being finished since a time, or is to be tried again at one (µs since the epoch)."""

    channel_id: int
    outbox_id: int
    since: int
    again_at: int = 0
    ended: bool = False
    error: BaseException | None = None


class OutboxFinisher:
    """The outboxes of a run that are done but not finished.

    Those that wait are finished together: with many integrations, a transaction for each would cost more than posting.
    If the process ends meanwhile, the next run finishes them first.

    Args:
        finish: finishes outboxes, given as channel and outbox; returns by outbox why it could not.
        background: where.
        patience: how long it keeps trying while store or files are unavailable, in µs.
    """

    def __init__(self, finish: Finish, background: Background, patience: int) -> None:
        self._finish = finish
        self._background = background
        self._patience = patience
        self._waiting: deque[_Outbox] = deque()
        self._under_way: deque[_Outbox] = deque()
        self._tasks: deque[Future[None]] = deque()
        self._to_retry: list[_Outbox] = []

    def start(self, channel_id: int, outbox_id: int, now: int) -> None:
        """Finishes an outbox, now or some time later."""
        self._start(_Outbox(channel_id, outbox_id, now))

    def _start(self, outbox: _Outbox) -> None:
        outbox.ended, outbox.error = False, None
        self._waiting.append(outbox)
        self._under_way.append(outbox)
        self._tasks.append(self._background.start(self._finish_waiting))

    def _finish_waiting(self) -> None:
        """Finishes what waits, if an earlier task has not."""
        some: list[_Outbox] = []
        while self._waiting and len(some) < TOGETHER:
            some.append(self._waiting.popleft())
        if not some:
            return
        try:
            failed: Mapping[int, BaseException] = self._finish([(each.channel_id, each.outbox_id) for each in some])
        except BaseException as error:
            failed = {each.outbox_id: error for each in some}
            if not isinstance(error, Exception):
                raise
        finally:
            for each in some:
                each.error = failed.get(each.outbox_id)
                each.ended = True

    def settle(self, now: int) -> list[tuple[int, Exception]]:
        """Retries outboxes that failed for a while only; returns the channels that failed for good, and why."""
        failed: list[tuple[int, Exception]] = []
        to_retry, self._to_retry = self._to_retry, []
        for outbox in to_retry:
            if outbox.again_at <= now:
                self._start(outbox)
            else:
                self._to_retry.append(outbox)
        while self._tasks and self._tasks[0].done():
            self._tasks.popleft().result()  # its error is no outbox's: the run ends
        while self._under_way and self._under_way[0].ended:  # they end in the order in which they began
            outbox = self._under_way.popleft()
            if isinstance(outbox.error, StoreUnavailable | FilesUnavailable) and now - outbox.since <= self._patience:
                outbox.again_at = now + TRY_AGAIN_MICROS
                self._to_retry.append(outbox)
            elif isinstance(outbox.error, Exception):  # one outbox stops its own integration only
                failed.append((outbox.channel_id, outbox.error))
        return failed

    def next_at(self, now: int) -> int | None:
        """When to look again, in µs since the epoch; None if there is nothing to finish."""
        times = [outbox.again_at for outbox in self._to_retry]
        return min([*times, now + _LOOK_AGAIN_MICROS] if self._under_way else times, default=None)

    def close(self) -> None:
        """Waits for the work under way."""
        self._background.close()
