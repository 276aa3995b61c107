"""Requests under way: threads in earnest, a seeded clock in a simulation."""

from __future__ import annotations

import queue
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

from nami_amp_pipeline.amplitude.transport import HttpAnswer, NoAnswer, Transport

MAX_REQUESTS = 64
"""Requests under way at most, over all integrations."""


class Wire(Protocol):
    """Where requests go, and where their answers come from."""

    def start(self, number: int, url: str, body: bytes) -> None:
        """Posts a request in the background."""

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        """The answers that came, by the requests' numbers; waits for the first at most so long."""

    def close(self) -> None:
        """Gives everything back; nothing may be under way."""


class ThreadedWire:
    """Requests in threads.

    Args:
        transport: what posts; used from several threads at once.
        requests: under way at most.
    """

    def __init__(self, transport: Transport, requests: int = MAX_REQUESTS) -> None:
        self._transport = transport
        self._pool = ThreadPoolExecutor(requests, thread_name_prefix="amplitude")
        self._answers: queue.SimpleQueue[tuple[int, HttpAnswer | NoAnswer | BaseException]] = queue.SimpleQueue()

    def start(self, number: int, url: str, body: bytes) -> None:
        """See :class:`Wire`."""
        self._pool.submit(self._transport.post, url, body).add_done_callback(partial(self._put, number))

    def _put(self, number: int, future: Future[HttpAnswer]) -> None:
        error = future.exception()
        self._answers.put((number, future.result() if error is None else error))

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        """See :class:`Wire`."""
        came: list[tuple[int, HttpAnswer | NoAnswer]] = []
        try:
            number, answer = self._answers.get(timeout=max(0.0, seconds))
            while True:
                if isinstance(answer, BaseException) and not isinstance(answer, NoAnswer):
                    raise answer
                came.append((number, answer))
                number, answer = self._answers.get_nowait()
        except queue.Empty:
            return came

    def close(self) -> None:
        """See :class:`Wire`."""
        self._pool.shutdown(wait=True)
        self._transport.close()
