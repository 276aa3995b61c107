"""Finishes done outboxes in the background: their receipts are written while posting continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from nami_amp_pipeline.errors import FilesUnavailable, StoreUnavailable

TRY_AGAIN_MICROS: Final = 1_000_000
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


class OutboxFinisher:
    """The outboxes of a run that are done but not finished.

    If the process ends meanwhile, the next run finishes them first.

    Args:
        finish: finishes the outbox of a channel.
        background: where.
        patience: how long it keeps trying while store or files are unavailable, in µs.
    """

    def __init__(self, finish: Callable[[int, int], None], background: Background, patience: int) -> None:
        self._finish = finish
        self._background = background
        self._patience = patience
        self._under_way: deque[tuple[_Outbox, Future[None]]] = deque()
        self._to_retry: list[_Outbox] = []

    def start(self, channel_id: int, outbox_id: int, now: int) -> None:
        """Finishes an outbox, now or some time later."""
        self._start(_Outbox(channel_id, outbox_id, now))

    def _start(self, outbox: _Outbox) -> None:
        future = self._background.start(lambda: self._finish(outbox.channel_id, outbox.outbox_id))
        self._under_way.append((outbox, future))

    def settle(self, now: int) -> list[tuple[int, Exception]]:
        """Retries outboxes that failed for a while only; returns the channels that failed for good, and why."""
        failed: list[tuple[int, Exception]] = []
        to_retry, self._to_retry = self._to_retry, []
        for outbox in to_retry:
            if outbox.again_at <= now:
                self._start(outbox)
            else:
                self._to_retry.append(outbox)
        while self._under_way and self._under_way[0][1].done():  # they end in the order in which they began
            outbox, future = self._under_way.popleft()
            error = future.exception()
            if isinstance(error, StoreUnavailable | FilesUnavailable) and now - outbox.since <= self._patience:
                outbox.again_at = now + TRY_AGAIN_MICROS
                self._to_retry.append(outbox)
            elif isinstance(error, Exception):  # one outbox stops its own integration only
                failed.append((outbox.channel_id, error))
            elif error is not None:
                raise error
        return failed

    def next_at(self, now: int) -> int | None:
        """When to look again, in µs since the epoch; None if there is nothing to finish."""
        times = [outbox.again_at for outbox in self._to_retry]
        return min([*times, now + _LOOK_AGAIN_MICROS] if self._under_way else times, default=None)

    def close(self) -> None:
        """Waits for the work under way."""
        self._background.close()
