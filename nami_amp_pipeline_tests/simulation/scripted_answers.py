"""The real delivery against answers that a test dictates."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Delivered
from nami_amp_pipeline.delivery.outbox_finisher import Background
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import NewIntegration
from nami_amp_pipeline_tests.simulation.network import Time
from nami_amp_pipeline_tests.simulation.outboxes import Event, write_outbox
from nami_amp_pipeline_tests.simulation.world import ENCRYPTION_KEY

OK = HttpAnswer(200, b'{"code":200,"events_ingested":1,"payload_size_bytes":1,"server_upload_time":1}')
API_KEY = "0123456789abcdef0123456789abcdef"
LATENCY = 0.01

Answering = Callable[["Posted"], HttpAnswer | NoAnswer]


@dataclass(frozen=True)
class Posted:
    """A request as it was posted.

    Attributes:
        number: counted from 0.
        at: seconds since the delivery bench was made.
        url: where to.
        ids: the events' insert_ids.
        events: the events' JSON texts.
    """

    number: int
    at: float
    url: str
    ids: tuple[str, ...]
    events: tuple[str, ...]


def event(number: int, user: str | None = None, device: str | None = None, size: int = 0) -> Event:
    """An event whose id and time are its number; of a user of its own unless told."""
    return Event(f"e{number}", user if user or device else f"user{number}", device, 1_789_000_000_000 + number, size)


class Bench:
    """One store, some integrations, and a wire on which the test answers.

    Args:
        folder: for state and files.
        integrations: how many, each to an endpoint of its own.
        ports: of their endpoints, where some share one, and so a project.
        settings: what differs from the defaults.
    """

    def __init__(self, folder: Path, *, integrations: int = 1, ports: Sequence[int] = (), **settings: Any) -> None:
        self.time = Time()
        self.start = self.time.true
        base = Settings.load({"NAMI_AMP_HOME": str(folder), "NAMI_AMP_ENCRYPTION_KEY": ENCRYPTION_KEY}, folder / "none")
        self.settings = base.replace(**{"max_lanes": 1, **settings})
        self.posted: list[Posted] = []
        self.answer: Answering = lambda _posted: OK
        self.latency = LATENCY
        self.background: Background | None = None
        self.stop = False
        self.context = self.process()
        self.ids = []
        for number, port in enumerate(ports or range(9000, 9000 + integrations)):
            one = registry.add(
                self.context.store,
                self.context.cipher,
                NewIntegration(
                    "app", f"i{number}", f"http://127.0.0.1:{port}/2/httpapi", Secret(API_KEY),
                    allow_custom_endpoint=True, allow_shared_key=True,
                ),
            )  # fmt: skip
            self.ids.append(one.id)

    def process(self) -> Context:
        """A process as it starts."""
        context = Context.open(self.settings, clock=self.time.clock, run_id="run")
        context.sleep = self._sleep
        context.monotonic = lambda: self.time.true
        return context

    def _sleep(self, seconds: float) -> None:
        self.time.true += seconds

    def prepare(self, events: Sequence[Event], *, lanes: int = 1, integrations: Sequence[int] | None = None) -> None:
        """Writes an outbox."""
        write_outbox(self.context, integrations or self.ids, 1, events, lanes)

    def deliver(self, context: Context | None = None) -> dict[int, Delivered]:
        """One run."""
        context = context or self.context
        return pipeline.deliver_integrations(
            context,
            registry.all_integrations(context.store),
            wire=_Wire(self),
            background=self.background,
            rng=random.Random(1),
            stop=lambda: self.stop,
        )

    def status(self, number: int = 0) -> IntegrationStatus:
        """As ``nami-amp status`` reads it; looks whether nothing is missing on the way."""
        one = status(self.context, registry.all_integrations(self.context.store))[number]
        ends = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
        assert one.captured == ends + one.pending, one
        return one

    def exceptions(self, state: str) -> dict[str, Any]:
        """Rows of the exceptions by event id."""
        table = tables.exceptions
        with self.context.store.begin() as tx:
            return {row.event_id: row for row in tx.execute(sa.select(table).where(table.c.state == state))}

    def reason_of_halt(self) -> str | None:
        """Why the first integration stopped."""
        return registry.all_integrations(self.context.store)[0].halted_reason

    @property
    def order(self) -> list[str]:
        """All ids in posting order."""
        return [one for posted in self.posted for one in posted.ids]


class _Wire:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._open: list[tuple[float, int, HttpAnswer | NoAnswer]] = []
        self._stopped = False

    def start(self, number: int, request: Request) -> None:
        bench, body = self._bench, request.body
        if bench.time.true > request.send_until:
            self._open.append((bench.time.true, number, NoAnswer("late", maybe_stored=False)))
            return
        assert body.startswith(b'{"api_key":"' + API_KEY.encode() + b'","events":[{')
        assert body.endswith(b'}],"options":{"min_id_length":1}}')
        events = tuple(re.findall(r'\{"event_type".*?\}\}', body.decode()))
        ids = tuple(re.findall(r'"insert_id":"([^"]*)"', body.decode()))
        assert len(ids) == len(events)
        posted = Posted(len(bench.posted), bench.time.true - bench.start, request.url, ids, events)
        bench.posted.append(posted)
        answer = bench.answer(posted)
        self._open.append((bench.time.true + bench.latency, number, answer))

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        bench = self._bench
        if bench.stop and not self._stopped:  # a wait ends early once
            self._stopped, seconds = True, 0.0
        until = bench.time.true + seconds + 1e-6
        first = min((at for at, _, _ in self._open), default=until)
        bench.time.true = max(bench.time.true, min(first, until))
        came = [(number, answer) for at, number, answer in self._open if at <= bench.time.true]
        self._open = [one for one in self._open if one[0] > bench.time.true]
        return came

    def close(self) -> None:
        self._open.clear()
