"""Requests of a channel: how large they may be, what one is while it is under way, and what a run made of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.source import Source

_SUCCESSES_TO_GROW = 64


@dataclass(frozen=True)
class Limits:
    """What may be under way.

    Attributes:
        events: of a request at most.
        size: bytes of a request at most, its frame included.
        lanes: requests of an integration at once at most.
    """

    events: int
    size: int
    lanes: int


class RequestSize:
    """How many bytes the events of a request may take: less, once larger requests were refused for their size alone.

    Args:
        size: as set.
        most: that the destination takes; a single event over it is too large for certain.
    """

    def __init__(self, size: int, most: int) -> None:
        self.most = most
        self._size = size
        self._smaller: int | None = None
        self._successes = 0

    @property
    def room(self) -> int:
        """Bytes for the events of a request of more than one."""
        return self._size if self._smaller is None else min(self._size, self._smaller)

    def only_together(self, refused: int) -> None:
        """The events of a request that was refused for its size were each taken by itself."""
        self._smaller = max(refused // 2, 1)

    def delivered(self) -> None:
        """A request got through; after many, larger ones are tried again."""
        self._successes += 1
        if self._smaller is not None and self._successes % _SUCCESSES_TO_GROW == 0:
            self._smaller += self._smaller // 4


@dataclass(frozen=True, eq=False)
class Attempt:
    """A request under way.

    Attributes:
        body: the JSON, byte for byte.
        events: how many.
        started_at: in µs since the epoch.
        source: whose events they are.
        place: of a lane, its id and its rows (first, end) that the request looked at; None of events that waited.
    """

    body: bytes
    events: int
    started_at: int
    source: Source
    place: tuple[int, int, int] | None


@dataclass
class Delivered:
    """What one run delivered for one integration.

    Attributes:
        delivered: events that the destination acknowledged.
        dead: dead letters, by reason.
        requests: by what came of them.
        bytes: of all request bodies.
        warnings: what a person should know although events were delivered, by text.
        error: why the run ended with events pending, or None.
    """

    delivered: int = 0
    dead: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    error: str | None = None
