"""Simulated time, and a network on which everything that can go wrong does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from urllib.parse import urlsplit

from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.sandbox import Sandbox

TIMEOUT_SECONDS = 30.0
START = 1_790_000_000.0

_HTML = b"<html><head><title>400 Bad Request</title></head></html>"


class Crash(BaseException):
    """The process ends here: whatever it had in memory is gone."""


@dataclass
class Time:
    """The time of the world, and what the pipeline's clock makes of it.

    Attributes:
        true: seconds since the epoch.
        error: how far the clock that the pipeline reads is ahead.
    """

    true: float = START
    error: float = 0.0

    def clock(self) -> float:
        """What the pipeline reads."""
        return self.true + self.error


@dataclass
class Weather:
    """How likely each trouble is, per request.

    Attributes:
        trouble: kind to probability.
        outages: (from, to, kind) in true time: every request meets with that.
        slowest: seconds that a request takes on its way at most.
        size_limit: bytes over which a proxy answers 413; None for none.
    """

    trouble: Mapping[str, float] = field(default_factory=dict)
    outages: list[tuple[float, float, str]] = field(default_factory=list)
    slowest: float = 1.0
    size_limit: int | None = None


KINDS = (
    "refused",
    "reset_before",
    "reset_after",
    "truncated_after",
    "timeout_before",
    "timeout_after",
    "500_before",
    "500_after",
    "503",
    "504_after",
    "html_400",
    "html_200",
    "project_429",
    "retry_after",
)


@dataclass
class _Request:
    wire: SimulatedWire
    number: int
    url: str
    body: bytes
    events: int
    kind: str
    done: bool = False


class Network:
    """Carries requests to the sandbox and answers back, out of order and at times not at all.

    Attributes:
        time: of the world.
        weather: how bad it is.
        unheard: events of requests that were stored while the sender got no 200; as many may come again.
        requests: how many there were.
        met: how many of each kind.
    """

    def __init__(self, time: Time, sandbox: Sandbox, rng: random.Random) -> None:
        self.time = time
        self.sandbox = sandbox
        self.rng = rng
        self.weather = Weather()
        self.unheard = 0
        self.requests = 0
        self.met: Counter[str] = Counter()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._open: set[int] = set()

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Lets something happen."""
        heappush(self._events, (when, next(self._order), action))

    def advance(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Lets time pass until then, or until it is enough."""
        while self._events and self._events[0][0] <= until and not enough():
            when, _, action = heappop(self._events)
            self.time.true = max(self.time.true, when)
            action()
        if not enough():
            self.time.true = max(self.time.true, until)

    def carry(self, wire: SimulatedWire, number: int, url: str, body: bytes) -> None:
        """Takes a request on."""
        self.requests += 1
        now = self.time.true
        request = _Request(wire, number, url, body, body.count(b'"insert_id"'), self._kind(now))
        delay = self.rng.uniform(0.005, self.weather.slowest)
        kind = request.kind
        self.met[kind] += 1
        if kind == "refused":
            self.at(now + delay / 10, lambda: self._reply(request, NoAnswer("no_connection", maybe_stored=False)))
            return
        self.at(now + TIMEOUT_SECONDS, lambda: self._reply(request, NoAnswer("timeout", maybe_stored=True)))
        early: dict[str, HttpAnswer | NoAnswer | None] = {
            "reset_before": NoAnswer("reset", maybe_stored=True),
            "500_before": HttpAnswer(500, b'{"code":500,"error":"boom"}'),
            "503": HttpAnswer(503, b""),
            "html_400": HttpAnswer(400, _HTML),
            "html_200": HttpAnswer(200, _HTML),
            "project_429": HttpAnswer(429, b'{"code":429,"error":"Too many requests"}'),
            "retry_after": HttpAnswer(429, b"", {"retry-after": str(self.rng.randint(1, 40))}),
            "timeout_before": None,
        }
        if self.weather.size_limit is not None and len(body) > self.weather.size_limit:
            early[kind] = HttpAnswer(413, b'{"code":413,"error":"Payload too large"}')
        if kind in early:
            answer = early[kind]
            if answer is not None:
                self.at(now + delay, lambda: self._reply(request, answer))
            return
        self.at(now + min(delay, TIMEOUT_SECONDS - 1), lambda: self._arrive(request))

    def _kind(self, now: float) -> str:
        for begin, end, kind in self.weather.outages:
            if begin <= now < end:
                return kind
        drawn = self.rng.random()
        for kind, probability in self.weather.trouble.items():
            drawn -= probability
            if drawn < 0:
                return kind
        return "well"

    def _arrive(self, request: _Request) -> None:
        alive = request.wire.alive and not request.done
        if not alive and (self._open or self.rng.random() < 0.5):
            return  # the connection went with its process
        flight = self.sandbox.arrive(lambda: request.wire.alive and not request.done)
        self._open.add(id(request))
        path = urlsplit(request.url).path
        answer = self.sandbox.answer(flight, "POST", path, {"Content-Type": "application/json"}, request.body)
        stored = answer.status == 200
        spoilt: dict[str, HttpAnswer | NoAnswer] = {
            "reset_after": NoAnswer("reset", maybe_stored=True),
            "truncated_after": NoAnswer("truncated", maybe_stored=True),
            "500_after": HttpAnswer(500, b'{"code":500,"error":"boom"}'),
            "504_after": HttpAnswer(504, _HTML),
        }
        spoiled = spoilt.get(request.kind)
        if answer.transport is not None:
            spoiled = NoAnswer("reset", maybe_stored=True)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        reply = spoiled if spoiled is not None else HttpAnswer(answer.status, answer.body, headers)

        def leave() -> None:
            self._open.discard(id(request))
            self.sandbox.depart(flight)
            heard = request.wire.alive and not request.done and spoiled is None and request.kind != "timeout_after"
            if stored and not heard:
                self.unheard += request.events
            if request.kind != "timeout_after":
                self._reply(request, reply)

        self.at(self.time.true + self.rng.uniform(0.001, self.weather.slowest), leave)

    @staticmethod
    def _reply(request: _Request, answer: HttpAnswer | NoAnswer) -> None:
        if not request.done:
            request.done = True
            request.wire.came.append((request.number, answer))


class SimulatedWire:
    """The wire of one run, until its process ends.

    Args:
        network: carries the requests.
        posts: told of each request that is posted.
    """

    def __init__(self, network: Network, posts: Callable[[bytes], None] = lambda _body: None) -> None:
        self._network = network
        self._posts = posts
        self.came: list[tuple[int, HttpAnswer | NoAnswer]] = []
        self.alive = True
        self.unrecorded: dict[int, int] = {}
        self._handed: set[int] = set()

    def recorded(self) -> None:
        """The process has recorded all answers that it was handed."""
        for number in self._handed:
            self.unrecorded.pop(number, None)
        self._handed.clear()

    def forgets(self) -> None:
        """The process has ended, or is asleep while another one takes over: what it did not record comes again."""
        self._network.unheard += sum(self.unrecorded.values())
        self.unrecorded.clear()

    def start(self, number: int, request: Request) -> None:
        if self._network.time.true > request.send_until:
            self.came.append((number, NoAnswer("late", maybe_stored=False)))
            return
        self._posts(request.body)
        self.unrecorded[number] = request.body.count(b'"insert_id"')
        self._network.carry(self, number, request.url, request.body)

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        self._network.advance(self._network.time.true + seconds + 1e-6, lambda: bool(self.came))
        came, self.came = self.came, []
        self._handed.update(number for number, _ in came)
        return came

    def close(self) -> None:
        self.alive = False
