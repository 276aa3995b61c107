"""Ends a process that was stopped between its last look at the clock and the send, before it continues."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_QUICK_SECONDS = 0.02


class SendAlarm:
    """A timer of the process (``ITIMER_REAL``), set for the microseconds around each send and at no other time.

    It goes on while the process is stopped. When it has run out by the time that the process is continued, the signal's
    default action ends the process before its next instruction. A process that is merely slow is never in such a
    place for seconds, and one that waits for anything has no timer set.

    Where somebody else uses the signal or the timer, or the sending was not begun by the main thread (a server that
    works for others too must not be ended), it stays silent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moments: list[float] = []
        self.enabled = False

    def enable(self) -> bool:
        """Switches it on if possible; returns whether it is on."""
        self.enabled = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
            and (bool(self._moments) or signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0))
        )
        return self.enabled

    def disable(self) -> None:
        """Switches it off; what is being sent keeps its timer."""
        self.enabled = False

    @contextmanager
    def until(self, moment: float) -> Iterator[None]:
        """Ends the process if it is still within the block at a moment of the monotonic clock, in seconds.

        A moment that is over already is left to whoever looks at the clock within the block.
        """
        if not self.enabled or math.isinf(moment) or moment <= time.monotonic():
            yield
            return
        with self._lock:
            self._moments.append(moment)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._moments.remove(moment)
                self._set()

    def _set(self) -> None:
        while self._moments:
            now = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, min(self._moments) - now))
            if time.monotonic() - now < _QUICK_SECONDS:
                return  # or it was stopped just here, and the timer would run out as much later
        signal.setitimer(signal.ITIMER_REAL, 0.0)


alarm = SendAlarm()
"""The process has one timer."""
