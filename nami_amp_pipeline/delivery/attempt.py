"""The requests of a channel: their limits, a request under way, and the results of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.source import Source

_SUCCESSES_TO_GROW = 64


@dataclass(frozen=True)
class Limits:
    """The limits of requests.

    Attributes:
        events: most events of a request.
        size: most bytes of a request, including its frame.
        lanes: most requests of an integration at once.
    """

    events: int
    size: int
    lanes: int


class RequestSize:
    """The bytes that the events of a request may take: fewer, after larger requests were refused for their size alone.

    Args:
        size: as set.
        most: the destination's limit; a single larger event is certainly too large.
    """

    def __init__(self, size: int, most: int) -> None:
        self.most = most
        self._size = size
        self._smaller: int | None = None
        self._successes = 0

    @property
    def room(self) -> int:
        """The bytes for the events of a request with several events."""
        return self._size if self._smaller is None else min(self._size, self._smaller)

    def only_together(self, refused: int) -> None:
        """Notes that the events of a too large request were each accepted alone."""
        self._smaller = max(refused // 2, 1)

    def delivered(self) -> None:
        """Notes an accepted request; after many, larger requests are tried again."""
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
        source: the source of its events.
        place: the lane's id and the rows (first, end) that the request covers; None for held events.
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
        requests: by outcome.
        bytes: of all request bodies together.
        warnings: notes for people about delivered events, by text.
        error: why the run ended with events pending, or None.
        is_bug: whether that is an error that nobody expected.
    """

    delivered: int = 0
    dead: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    error: str | None = None
    is_bug: bool = False
