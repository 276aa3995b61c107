"""Limits the events of each user or device, so that the destination does not throttle it."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 31
"""Rates are averages over 30 s; one more second covers requests under way."""

SHARE = 0.95
"""Of the destination's limit: others may send for the same user too."""


class RateLimiter:
    """Counts the events of watched identities over a sliding window.

    Args:
        per_second: the destination's limit per user and per device.
    """

    def __init__(self, per_second: int) -> None:
        self.most = int(per_second * 30 * SHARE)
        self._sent: dict[str, deque[tuple[int, int]]] = {}
        self._totals: dict[str, int] = {}

    def room(self, identity: str, now: int) -> int:
        """How many events of an identity may go now (µs since the epoch)."""
        sent = self._sent.get(identity)
        if sent is None:
            return self.most
        while sent and sent[0][0] <= now - WINDOW_SECONDS * 1_000_000:
            self._totals[identity] -= sent.popleft()[1]
        if not sent:
            del self._sent[identity], self._totals[identity]
            return self.most
        return max(0, self.most - self._totals[identity])

    def note(self, identity: str, events: int, now: int) -> None:
        """Notes events of an identity that may have reached the destination by now."""
        self._sent.setdefault(identity, deque()).append((now, events))
        self._totals[identity] = self._totals.get(identity, 0) + events

    def free_at(self, identity: str, now: int) -> int:
        """When there is room again for a good part of the limit, in µs since the epoch."""
        if self.room(identity, now) >= self.most // 4:
            return now
        total = self._totals[identity]
        for at, events in self._sent[identity]:
            total -= events
            if self.most - total >= self.most // 4:
                return at + WINDOW_SECONDS * 1_000_000 + 1
        return now
