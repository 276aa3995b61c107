"""Finishes done outboxes in the background: their receipts are written while posting continues."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from nami_amp_pipeline.errors import NamiAmpError, StoreUnavailable

TRY_AGAIN_MICROS: Final = 1_000_000
_LOOK_AGAIN_MICROS: Final = 2_000


class Background(Protocol):
    """Runs background work: in a thread, or in a seeded order in a simulation."""

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
        except NamiAmpError as error:
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
    """An outbox that is being finished, or is to be tried again at ``again_at`` (µs since the epoch)."""

    channel_id: int
    outbox_id: int
    since: int
    future: Future[None] | None = None
    again_at: int = 0


class OutboxFinisher:
    """The outboxes of a run that are done but not finished.

    If the process ends meanwhile, the next run finishes them first.

    Args:
        finish: finishes the outbox of a channel.
        background: where.
        patience: how long it keeps trying while the store is unavailable, in µs.
    """

    def __init__(self, finish: Callable[[int, int], None], background: Background, patience: int) -> None:
        self._finish = finish
        self._background = background
        self._patience = patience
        self._outboxes: list[_Outbox] = []

    def start(self, channel_id: int, outbox_id: int, now: int) -> None:
        """Finishes an outbox, now or some time later."""
        outbox = _Outbox(channel_id, outbox_id, now)
        self._outboxes.append(outbox)
        self._start(outbox)

    def _start(self, outbox: _Outbox) -> None:
        outbox.future = self._background.start(lambda: self._finish(outbox.channel_id, outbox.outbox_id))

    def settle(self, now: int) -> list[tuple[int, NamiAmpError]]:
        """Retries outboxes that failed because of the store; returns the channels that failed for good, and why."""
        failed: list[tuple[int, NamiAmpError]] = []
        left: list[_Outbox] = []
        for outbox in self._outboxes:
            if outbox.future is None:
                if outbox.again_at <= now:
                    self._start(outbox)
                left.append(outbox)
            elif not outbox.future.done():
                left.append(outbox)
            else:
                try:
                    outbox.future.result()
                except StoreUnavailable as error:
                    if now - outbox.since > self._patience:
                        failed.append((outbox.channel_id, error))
                        continue
                    outbox.future, outbox.again_at = None, now + TRY_AGAIN_MICROS
                    left.append(outbox)
                except NamiAmpError as error:
                    failed.append((outbox.channel_id, error))
        self._outboxes = left
        return failed

    def next_at(self, now: int) -> int | None:
        """When to retry next, in µs since the epoch; None if there is nothing to retry."""
        return min(
            (now + _LOOK_AGAIN_MICROS if outbox.future is not None else outbox.again_at for outbox in self._outboxes),
            default=None,
        )

    def close(self) -> None:
        """Waits for the work under way."""
        self._background.close()
