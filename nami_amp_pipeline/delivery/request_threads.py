"""Requests under way: in threads, or on a seeded clock in a simulation."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from nami_amp_pipeline.delivery.send_alarm import alarm
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request, Transport

MAX_REQUESTS = 64
"""Most requests under way, over all integrations."""

_POLL_SECONDS = 0.2


class Wire(Protocol):
    """Sends requests and collects their answers."""

    def start(self, number: int, request: Request) -> None:
        """Posts a request in the background, if it can be sent in time."""

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        """The received answers by request number; waits for the first, at most this long."""

    def close(self) -> None:
        """Releases everything; requests under way are abandoned."""


class ThreadedWire:
    """Requests in threads that end with the process, so that a request that hangs does not keep it from ending.

    Args:
        transport: what posts; used from several threads at once.
        requests: under way at most.
        stop: asked while waiting; once it turns true, a wait ends early.
    """

    def __init__(
        self, transport: Transport, requests: int = MAX_REQUESTS, *, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._transport = transport
        self._most = requests
        self._stop = stop
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        self._jobs: queue.SimpleQueue[tuple[int, Request] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, HttpAnswer | NoAnswer]] = queue.SimpleQueue()
        alarm.enable()

    def start(self, number: int, request: Request) -> None:
        """See :class:`Wire`."""
        self._under_way += 1
        if len(self._threads) < min(self._under_way, self._most):
            thread = threading.Thread(target=self._work, name=f"request-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((number, request))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            number, request = job
            del job
            answer: HttpAnswer | NoAnswer
            try:
                answer = self._transport.post(request)
            except NoAnswer as error:
                answer = error
            except Exception as error:  # noqa: BLE001 - one request's trouble must not end the thread or the run
                logging.getLogger("nami_amp_pipeline").error("a request failed: %s", type(error).__name__)
                answer = NoAnswer("failed", maybe_stored=True)
            del request
            self._answers.put((number, answer))

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        """See :class:`Wire`."""
        came: list[tuple[int, HttpAnswer | NoAnswer]] = []
        until = time.monotonic() + seconds
        while not came:
            try:
                came.append(self._answers.get(timeout=max(0.0, min(until - time.monotonic(), _POLL_SECONDS))))
            except queue.Empty:
                if time.monotonic() >= until or self._has_turned():
                    return came
        while True:
            try:
                came.append(self._answers.get_nowait())
            except queue.Empty:
                self._under_way -= len(came)
                return came

    def _has_turned(self) -> bool:
        if self._stopped or not self._stop():
            return False
        self._stopped = True
        return True

    def close(self) -> None:
        """See :class:`Wire`."""
        for _ in self._threads:
            self._jobs.put(None)
        self._transport.close()
        alarm.disable()
