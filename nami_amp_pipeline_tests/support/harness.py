"""A whole pipeline in one process: a warehouse, a store on disk, a clock to move, an Amplitude that says yes."""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as state
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.fast_start import events_file, fresh_events
from nami_amp_pipeline_tests.support.warehouses import PostgresEvents

START = datetime(2026, 9, 1, tzinfo=UTC)


class Time:
    """A clock that stands still unless it is moved."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now.timestamp()

    def __call__(self) -> float:
        return self.now

    def set(self, moment: datetime) -> None:
        self.now = moment.timestamp()

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Agreeing:
    """A wire whose other end stores everything at once; ``bodies`` keeps each request as it came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._answers: list[int] = []

    def start(self, number: int, request: Request) -> None:
        assert request.url.startswith("https://")
        self.bodies.append(request.body)
        heapq.heappush(self._answers, number)

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        assert self._answers or seconds <= 0, "nothing is under way that could wake the loop"
        answered, self._answers = self._answers, []
        return [(number, HttpAnswer(200, b'{"code":200}')) for number in answered]

    def close(self) -> None:
        assert not self._answers

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for body in self.bodies for event in json.loads(body)["events"]]


class Answering(Agreeing):
    """A wire whose other end says these first, and then the last again and again, or yes."""

    def __init__(self, answers: Sequence[HttpAnswer | NoAnswer], *, for_ever: bool = False) -> None:
        super().__init__()
        self._first, self._for_ever = list(answers), for_ever

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        return [(number, self._say(answer)) for number, answer in super().wait(seconds)]

    def _say(self, otherwise: HttpAnswer | NoAnswer) -> HttpAnswer | NoAnswer:
        if not self._first:
            return otherwise
        return self._first[0] if self._for_ever and len(self._first) == 1 else self._first.pop(0)


class Pipeline:
    """The stages over a folder.

    Args:
        home: everything lives here.
        environ: more settings, as environment variables.
        postgres: the events table, if it is there already and the settings name a PostgreSQL.
        open_at: what time it is.
    """

    def __init__(
        self,
        home: Path,
        environ: Mapping[str, str] | None = None,
        postgres: PostgresEvents | None = None,
        open_at: datetime = START,
    ) -> None:
        self.clock = Time(open_at)
        self.settings = Settings.load({"NAMI_AMP_HOME": str(home), **(environ or {})})
        self.warehouse = home / "warehouse.duckdb"
        home.mkdir(parents=True, exist_ok=True)
        self.postgres = postgres
        if self.settings.warehouse_url.startswith("postgresql"):
            self.postgres = postgres or PostgresEvents(self.settings.warehouse_url)
        elif not self.warehouse.exists():
            fresh_events(self.warehouse)
        self.context = Context.open(self.settings, run_id="test", clock=self.clock)
        self.context.sleep = self.clock.sleep
        self.wires: dict[int, Agreeing] = {}

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Loads rows of the events table; times may be texts."""
        if self.postgres is not None:
            self.postgres.insert(rows)
            return
        names = ("id", "app_id", "event_type", "user_id", "created_date", "ingested_at", "payload")
        columns = {name: pa.array([_text(row[name]) for row in rows], pa.string()) for name in names}
        with events_file(self.warehouse) as connection:
            connection.register("rows", pa.table(columns))
            connection.execute(
                "INSERT INTO events.nami_events SELECT id, app_id, event_type, user_id, created_date::TIMESTAMPTZ, "
                "ingested_at::TIMESTAMPTZ, payload FROM rows"
            )

    def allow_nulls(self) -> None:
        """Lets every column of the events table be null, as a table may that somebody else made."""
        changes = [
            f"ALTER {column} DROP NOT NULL"
            for column in ("id", "app_id", "event_type", "user_id", "created_date", "ingested_at")
        ]
        if self.postgres is not None:
            self.postgres.run(f"ALTER TABLE nami_events {', '.join(changes)}")
            return
        with events_file(self.warehouse) as connection:
            for change in changes:
                connection.execute(f"ALTER TABLE events.nami_events {change}")

    def add(self, app_id: str, name: str = "main", **settings: Any) -> Integration:
        """Adds an integration from the beginning, with a key of no meaning."""
        settings.setdefault("endpoint", "us")
        settings.setdefault("api_key", Secret("0" * 32))
        settings.setdefault("allow_shared_key", True)
        if isinstance(settings.get("start_from"), datetime):
            settings["start_from"] = from_datetime(settings["start_from"])
        return state.add(self.context.store, self.context.cipher, state.NewIntegration(app_id, name, **settings))

    def tick(self) -> None:
        """One micro-batch, each integration with a wire of its own."""
        pipeline.capture_apps(self.context)
        pipeline.snapshot_apps(self.context)
        integrations = state.all_integrations(self.context.store)
        pipeline.prepare_integrations(self.context, integrations)
        for one in state.all_integrations(self.context.store):
            self.deliver(one)

    def deliver(self, one: Integration) -> None:
        """Delivers what is prepared for one integration."""
        wire = self.wires.setdefault(one.id, Agreeing())
        pipeline.deliver_integrations(self.context, [one], wire=wire)

    def sent(self, one: Integration) -> list[dict[str, Any]]:
        """The events that an integration was sent, as they came."""
        return self.wires[one.id].events if one.id in self.wires else []

    def status(self, one: Integration) -> IntegrationStatus:
        """The numbers of an integration."""
        return status(self.context, [one])[0]

    def close(self) -> None:
        self.context.store.close()


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value.isoformat() if isinstance(value, datetime) else str(value)
