"""Limits the events of each user or device, so that the destination does not throttle it, for a whole project."""

from __future__ import annotations

from collections import Counter, deque

WINDOW_SECONDS = 31
"""Rates are averages over 30 s; one more second covers requests under way."""

SHARE = 0.95
"""Of the destination's limit: others may send for the same user too."""

_ANSWER_MICROS = 1_000_000


class RateLimiter:
    """Counts the events of watched identities over a sliding window, and those of requests under way.

    Args:
        per_second: the destination's limit per user and per device.
    """

    def __init__(self, per_second: int) -> None:
        self.most = int(per_second * 30 * SHARE)
        self._sent: dict[str, deque[tuple[int, int]]] = {}
        self._totals: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()

    def room(self, identity: str, now: int) -> int:
        """How many events of an identity may go now (µs since the epoch)."""
        sent = self._sent.get(identity)
        if sent is not None:
            while sent and sent[0][0] <= now - WINDOW_SECONDS * 1_000_000:
                self._totals[identity] -= sent.popleft()[1]
            if not sent:
                del self._sent[identity], self._totals[identity]
        return max(0, self.most - self._totals[identity] - self._under_way[identity])

    def take(self, identity: str, events: int) -> None:
        """Events of an identity are in a request that starts."""
        self._under_way[identity] += events

    def settle(self, identity: str, events: int, now: int, *, maybe_stored: bool) -> None:
        """A request with events of an identity has ended; those that may have reached the destination by now count."""
        self._under_way[identity] -= events
        if self._under_way[identity] <= 0:
            del self._under_way[identity]
        if maybe_stored:
            self._sent.setdefault(identity, deque()).append((now, events))
            self._totals[identity] += events

    def free_at(self, identity: str, now: int) -> int:
        """When there is room again for a good part of the limit, in µs since the epoch."""
        if self.room(identity, now) >= self.most // 4:
            return now
        total = self._totals[identity] + self._under_way[identity]
        for at, events in self._sent.get(identity, ()):
            total -= events
            if self.most - total >= self.most // 4:
                return at + WINDOW_SECONDS * 1_000_000 + 1
        return now + _ANSWER_MICROS  # the others are under way

    def begin(self, now: int) -> None:
        """Nothing is under way any more; forgets what no longer counts, and what a clock that was ahead noted."""
        self._under_way.clear()
        for identity, sent in list(self._sent.items()):
            kept = deque((at, events) for at, events in sent if now - WINDOW_SECONDS * 1_000_000 < at <= now)
            if kept:
                self._sent[identity], self._totals[identity] = kept, sum(events for _, events in kept)
            else:
                del self._sent[identity], self._totals[identity]


class ProjectRate:
    """What the integrations share that post with one key to one endpoint.

    Args:
        per_second: the destination's limit per user and per device.

    Attributes:
        pacer: for the users and devices of all of them.
        resume_at: none of them posts before, in µs since the epoch.
    """

    def __init__(self, per_second: int) -> None:
        self.pacer = RateLimiter(per_second)
        self.resume_at = 0

    def pause(self, until: int) -> None:
        """The destination throttles the whole project until then, in µs since the epoch."""
        self.resume_at = max(self.resume_at, until)


class ProjectRates:
    """The rates of a process, by endpoint and fingerprint of the key: the key itself is not kept here."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], ProjectRate] = {}

    def of(self, endpoint: str, fingerprint: str, per_second: int) -> ProjectRate:
        """The rate of a project.

        Args:
            endpoint: the URL that events are posted to.
            fingerprint: of the API key.
            per_second: the destination's limit per user and per device.
        """
        known = self._known.get((endpoint, fingerprint))
        if known is None:
            known = self._known[endpoint, fingerprint] = ProjectRate(per_second)
        return known

    def begin(self, now: int) -> None:
        """A run begins; pauses are read from the store again."""
        for known in self._known.values():
            known.resume_at = 0
            known.pacer.begin(now)
