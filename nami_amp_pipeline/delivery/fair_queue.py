"""Decides whose turn it is to post: fair to integrations, and an endpoint that is down blocks no other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

MOST_TO_ONE = 48
"""Most requests to one endpoint at once; the rest is for other endpoints."""

FEWEST_TO_ONE = 2
_FIRST = 32


@dataclass
class _Endpoint:
    limit: int = _FIRST
    under_way: int = 0
    turns: deque[int] = field(default_factory=deque)
    queued: set[int] = field(default_factory=set)
    listed: bool = False


class FairQueue:
    """The integrations that want to post, by endpoint."""

    def __init__(self) -> None:
        self._known: dict[str, _Endpoint] = {}
        self._ready: deque[_Endpoint] = deque()

    def enqueue(self, endpoint: str, integration_id: int) -> None:
        """Queues an integration; asking twice counts once."""
        known = self._known.setdefault(endpoint, _Endpoint())
        if integration_id not in known.queued:
            known.queued.add(integration_id)
            known.turns.append(integration_id)
            self._list(known)

    def next(self) -> int | None:
        """The integration whose turn it is; it leaves the queue."""
        while self._ready:
            known = self._ready.popleft()
            known.listed = False
            if known.turns and known.under_way < known.limit:
                integration_id = known.turns.popleft()
                known.queued.discard(integration_id)
                self._list(known)
                return integration_id
        return None

    @property
    def has_next(self) -> bool:
        """Whether it is anybody's turn."""
        return any(known.turns and known.under_way < known.limit for known in self._ready)

    def entered(self, endpoint: str) -> None:
        """A request to an endpoint starts."""
        self._known[endpoint].under_way += 1

    def left(self, endpoint: str, *, failed: bool) -> None:
        """A request ended; ``failed`` if the endpoint did not answer properly."""
        known = self._known[endpoint]
        known.under_way -= 1
        known.limit = max(FEWEST_TO_ONE, known.limit // 2) if failed else min(MOST_TO_ONE, known.limit + 1)
        self._list(known)

    def _list(self, known: _Endpoint) -> None:
        if not known.listed and known.turns and known.under_way < known.limit:
            known.listed = True
            self._ready.append(known)
