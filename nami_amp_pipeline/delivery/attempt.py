"""Requests of a channel: how large they may be, what one is while it is under way, and what a run made of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import orjson

from nami_amp_pipeline import contract
from nami_amp_pipeline.amplitude.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.delivery.held_queue import HeldEvent
from nami_amp_pipeline.delivery.lane import Lane, Plan
from nami_amp_pipeline.delivery.outbox import OutboxBatch
from nami_amp_pipeline.redaction import Redactor
from nami_amp_pipeline.secrets import Secret

V2_EVENTS_PER_SECOND = 30
BATCH_EVENTS_PER_SECOND = 1_000

_ANSWER_CHARACTERS = 2_000


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


@dataclass(frozen=True)
class Target:
    """Where requests go, and what stands around their events.

    Attributes:
        endpoint: the URL.
        api_key: goes into each body.
    """

    endpoint: str
    api_key: Secret

    @property
    def head(self) -> bytes:
        """What a body begins with."""
        return b'{"api_key":' + orjson.dumps(self.api_key.reveal()) + b',"events":['

    @property
    def tail(self) -> bytes:
        """What a body ends with."""
        return b'],"options":{"min_id_length":1}}'

    @property
    def is_batch(self) -> bool:
        """Whether it is the Batch Event Upload API, which takes more."""
        return self.endpoint.endswith("/batch")

    @property
    def events_per_second(self) -> int:
        """Of one user or device, as an average over 30 s."""
        return BATCH_EVENTS_PER_SECOND if self.is_batch else V2_EVENTS_PER_SECOND

    @property
    def most_bytes(self) -> int:
        """Bytes that Amplitude takes in one request."""
        return contract.MAX_BATCH_REQUEST_BYTES if self.is_batch else contract.MAX_REQUEST_BYTES

    def shown(self, answer: HttpAnswer | NoAnswer) -> str | None:
        """An answer for the records: short, and without the key that Amplitude repeats in it; None for a 200."""
        if isinstance(answer, NoAnswer):
            return answer.kind
        if answer.status == 200:
            return None
        return self.without_key(answer.body.decode(errors="replace"))[:_ANSWER_CHARACTERS]

    def without_key(self, text: str) -> str:
        """A text without the key or a piece of it, and without what a database cannot hold."""
        return _redactor(self.api_key.reveal()).clean(text).replace("\x00", "")


@lru_cache(64)
def _redactor(key: str) -> Redactor:
    return Redactor([key])


@dataclass(frozen=True, eq=False)
class LaneAttempt:
    """A request of a lane.

    Attributes:
        body: the JSON, byte for byte.
        events: how many.
        started_at: in µs since the epoch.
        lane: whose it is; its first row is still the lane's next.
        batch: the record batch of the rows.
        plan: the rows.
        before: the lane's (attempt_end, unknown_since) when the request started.
    """

    body: bytes
    events: int
    started_at: int
    lane: Lane
    batch: OutboxBatch
    plan: Plan
    before: tuple[int, int | None]


@dataclass(frozen=True, eq=False)
class HeldAttempt:
    """A request of events that waited in the store.

    Attributes:
        body: the JSON, byte for byte.
        events: how many.
        started_at: in µs since the epoch.
        held: the events.
    """

    body: bytes
    events: int
    started_at: int
    held: Sequence[HeldEvent]


Attempt = LaneAttempt | HeldAttempt


@dataclass
class Delivered:
    """What one run delivered for one integration.

    Attributes:
        delivered: events that Amplitude acknowledged.
        dead: dead letters, by reason.
        requests: by what came of them.
        bytes: of all request bodies.
        error: why the run ended with events pending, or None.
    """

    delivered: int = 0
    dead: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: int = 0
    error: str | None = None
