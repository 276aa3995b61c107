"""The home that pictures of the Control Center are taken of: a month of two apps, with what goes wrong in a month."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch
from urllib.parse import urlsplit

import orjson

from nami_amp_pipeline.amplitude.exported.source import Chunk, aside, unpacked
from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.operations import backfills, connection, trial_event
from nami_amp_pipeline.operations.api import Operations
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.dead_letters import Filter
from nami_amp_pipeline.operations.integrations import IntegrationChange, NewIntegration
from nami_amp_pipeline.operations.reconciliation import Reconciliation
from nami_amp_pipeline.sample import generate
from nami_amp_pipeline.sandbox import Fault, Options, Project, Sandbox
from nami_amp_pipeline.sandbox.faults import Faults
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline_tests.support.harness import Agreeing, Pipeline, Time

APP, FREE, UNKNOWN = "radio-nami", "fit-nami", "news-nami"
KEYS: Final = {
    "main": "5d0c8f1e9a7b42c6b1f3e8d27a904f2a",
    "growth": "c2b7a1d94e6f4830a5d1908e37fb6e81",
    "staging": "90e1f6a3d8b24c57be02c49d7715d3b0",
    FREE: "17f4c0b98ad34e2e96cb5a3d20f8e64c",
}
EU_KEY = "e4a92b60d7c14f8f83b05e1c6d9a27f3"
"""A key that Amplitude knows in the EU only."""
SECRET_KEY = "8b3f6d1c0e954a72bc4d7e0f91a258c6"
CRM = "https://crm.radio-nami.example/hooks/nami"
DAYS, USERS = 30, 1_150
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
_NETWORK: Final = random.Random(2)
_REGIONS: Final = {"api2.amplitude.com": "us", "api.eu.amplitude.com": "eu"}


class Local(Agreeing):
    """A wire to the sandbox, whatever host of Amplitude's a request is for; others say yes."""

    def __init__(self, sandbox: Sandbox, clock: Time) -> None:
        super().__init__()
        self._sandbox, self._clock, self._asked = sandbox, clock, dict[int, Request]()

    def start(self, number: int, request: Request) -> None:
        super().start(number, request)
        self._asked[number] = request

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        if not self._asked:  # between two tries
            self._clock.sleep(seconds)
            return []
        self._clock.sleep(0.1 + _NETWORK.random() * 0.4)
        return [(number, posted(self._sandbox, self._asked.pop(number))) for number, _ in super().wait(seconds)]


def posted(sandbox: Sandbox, request: Request) -> HttpAnswer:
    """What the sandbox answers to a request to one of Amplitude's hosts."""
    host, path = urlsplit(request.url).netloc, urlsplit(request.url).path
    if host not in _REGIONS:
        return HttpAnswer(204, b"")
    answer = sandbox.handle(request.method, path, {**request.headers, "Host": host}, request.body)
    return HttpAnswer(answer.status, answer.body)


class Export:
    """What the sandbox holds of the project of ``main``, as Amplitude's Export API gives it."""

    called = "amplitude.com"

    def __init__(self, sandbox: Sandbox, scratch: Path) -> None:
        self._sandbox, self._scratch = sandbox, scratch

    def read(self, hours: Iterable[int]) -> Iterator[Chunk]:
        wanted = frozenset(hours)
        first, last = (datetime.fromtimestamp(hour / 1e6, UTC) for hour in (min(wanted), max(wanted)))
        token = base64.b64encode(f"{KEYS['main']}:{SECRET_KEY}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Host": self.called}
        query = f"start={first:%Y%m%dT%H}&end={last:%Y%m%dT%H}"
        answer = self._sandbox.handle("GET", "/api/2/export", headers, b"", query)
        if answer.status == 200:
            archive = aside(self._scratch, ".zip")
            archive.write_bytes(answer.read())
            yield from unpacked(archive, self._scratch, wanted, self.called)
            archive.unlink()
        yield Chunk(wanted, ())


class Month:
    """Thirty days of ``radio-nami`` up to a moment, and a little of ``fit-nami``; see the module's docstring."""

    def __init__(self, home: Path, now: datetime) -> None:
        self.now = now
        self.pipe = Pipeline(home, open_at=now - DAYS * DAY)
        projects = {
            KEYS["main"]: Project(401_177, "Radio Nami", SECRET_KEY, "us"),
            KEYS["growth"]: Project(401_178, "Radio Nami growth", None, "us"),
            KEYS["staging"]: Project(401_179, "Radio Nami staging", None, "eu"),
            KEYS[FREE]: Project(401_180, "Fit Nami", None, "us"),
            EU_KEY: Project(401_181, "Radio Nami Europe", None, "eu"),
        }
        self.sandbox = Sandbox(self.pipe.clock, projects, options=Options(throttle=False), any_key=False)
        self._rows = self._sample()
        self.rng = random.Random(11)

    def by(self, name: str) -> Operations:
        """What a person can do, at the time of the pipeline."""
        return Operations.over(self.pipe.context, by=name)

    def at(self, before: timedelta) -> None:
        """Makes it so long before the end."""
        self.pipe.clock.set(self.now - before)

    def _sample(self) -> list[dict[str, Any]]:
        """All rows, the first loaded first; a login that went wrong gives some users an id that is none."""
        start = self.now - DAYS * DAY
        batches = generate(USERS, apps=[APP], start=start, days=DAYS, seed=21)
        rows: list[dict[str, Any]] = [row for batch in batches for row in batch.to_pylist()]
        for row in rows[5_900:6_000:25]:
            body = json.loads(row["payload"])
            kept = [entry for entry in body.get("external_ids", ()) if entry["key"] != "external_id"]
            body["external_ids"] = [*kept, {"key": "external_id", "type": "string", "value": "anonymous"}]
            row["payload"] = orjson.dumps(body).decode()
        for app, users in ((FREE, 60), (UNKNOWN, 12)):
            rows += [row for batch in generate(users, apps=[app], start=start, days=DAYS) for row in batch.to_pylist()]
        return sorted(rows, key=lambda row: (row["ingested_at"], row["id"]))

    def load(self) -> None:
        """Puts into the warehouse what is loaded by now."""
        now = datetime.fromtimestamp(self.pipe.clock.now, UTC)
        upto = next((place for place, row in enumerate(self._rows) if row["ingested_at"] > now), len(self._rows))
        due, self._rows = self._rows[:upto], self._rows[upto:]
        if due:
            self.pipe.insert(due)

    def run(self) -> None:
        """One micro-batch."""
        self.load()
        for integration in self.by("").integrations():
            self.pipe.wires[integration.id] = Local(self.sandbox, self.pipe.clock)
        self.pipe.tick()

    def compare(self) -> None:
        """Compares yesterday."""
        work = Reconciliation(self.pipe.context, f"{APP}/main", Export(self.sandbox, self.pipe.settings.data_dir))
        day = from_datetime(datetime.fromtimestamp(self.pipe.clock.now, UTC) - DAY)
        found = list(work.compare(day, day))
        if any(day.of("missing") for day in found):
            work.repair(found)

    def damage(self) -> None:
        """Amplitude loses some of the newest events of ``main``, cuts some, and stores some twice."""
        with self.sandbox.locked:
            store = next(store for store in self.sandbox.stores() if store.name == "Radio Nami")
            events = [event for batch in store.kept() for _, _, event in batch.held()][-900:]
        ours = [event["insert_id"] for event in events if event["event_type"].startswith("user.")]
        lost, twice = ours[:7], ours[7:9]
        cut = [event["insert_id"] for event in events if "sku" in event.get("event_properties", {})]
        rules = [Fault("lost_after_200", insert_id=name) for name in lost]
        rules += [Fault("stored_twice", insert_id=name) for name in twice]
        rules += [Fault("cut_property", insert_id=name, property_name="sku", characters=7) for name in cut[:3]]
        for rule in rules:
            self.sandbox.lose_held(rule)

    def write_others(self, events: int) -> None:
        """The app's own SDK writes to the same project."""
        body = [
            {
                "event_type": "screen_view",
                "user_id": f"listener-{self.rng.randrange(400):05}",
                "insert_id": f"sdk-{self.rng.getrandbits(64):016x}",
            }
            for _ in range(events)
        ]
        upload = orjson.dumps({"api_key": KEYS["main"], "events": body})
        self.sandbox.handle("POST", "/2/httpapi", {"Content-Type": "application/json"}, upload)

    def close(self) -> None:
        self.pipe.close()


def _set_up(month: Month) -> None:
    """What is there from the beginning: two apps, each with an integration."""
    ana = month.by("ana")
    for app in (APP, FREE):
        key = KEYS["main"] if app == APP else KEYS[FREE]
        secret = Secret(SECRET_KEY) if app == APP else None
        ana.add(NewIntegration(app, "main", "us", Secret(key), secret, anonymous="device_id"))
    ana.set_quota(APP, 250_000)


def _grow(month: Month) -> None:
    """A second project, for the growth team, from now on."""
    now = month.pipe.context.now()
    events = ["user.subscription.*", "user.journey.*"]
    new = NewIntegration(APP, "growth", "us", Secret(KEYS["growth"]), events=events, start_from=now)
    month.by("ana").add(new)


def _fill_back(month: Month) -> None:
    """The week before that, sent later."""
    now = month.pipe.context.now()
    week = Window(now - 8 * 86_400_000_000, now - 1 * 86_400_000_000, "created_date")
    made, _ = backfills.dry_run(month.pipe.context, NewBackfill(f"{APP}/growth", week), by="ana")
    month.at(10 * DAY - 7 * timedelta(minutes=1))
    run_backfill(month.pipe.context, made.id, Work(wire=lambda: Local(month.sandbox, month.pipe.clock)))


def _stage(month: Month) -> None:
    """A project to try things out in, and the CRM."""
    now = month.pipe.context.now()
    key = Secret(KEYS["staging"])
    month.by("ben").add(NewIntegration(APP, "staging", "eu", key, start_from=now, user_id_kind="nami_user_id"))
    crm = NewIntegration(
        APP, "crm", CRM, Secret("whsec-7Yb2mQx94KfT"), start_from=now, destination="http", allow_custom_endpoint=True,
        events=["user.subscription.*"], exclude=["devices"], anonymous="wait_for_login",
    )  # fmt: skip
    month.by("ben").add(crm)
    month.by("ben").change(f"{APP}/main", IntegrationChange(events=["user.*", "device.transaction"]))


def _send_one_again(month: Month) -> None:
    """After the cause was repaired, one event to see if it arrives."""
    ana = month.by("ana")
    (letter, *_), _ = ana.dead_letters(Filter(integrations=[f"{APP}/main"], reasons=["rejected"]))
    ana.retry(Filter(ids=[str(letter.id)]))


def _plan(month: Month) -> None:
    """A backfill that nobody has decided on yet."""
    now = month.pipe.context.now()
    week = Window(now - 12 * 86_400_000_000, now - 5 * 86_400_000_000, "created_date")
    backfills.dry_run(month.pipe.context, NewBackfill(f"{APP}/crm", week), by="ben")


def _only(faults: Faults, rule: Fault) -> None:
    """Ends what else is wrong."""
    faults.remove()
    faults.add(rule)


def _happens(month: Month, hours: int) -> None:
    """What happens so many hours before the end, besides events."""
    faults = month.sandbox.faults
    poison = Fault("poison", api_key=KEYS["main"], share=0.3, seed=5, field_name="event_properties")
    happenings: dict[int, Callable[[], object]] = {
        12 * 24: lambda: _grow(month),
        10 * 24: lambda: _fill_back(month),
        9 * 24: lambda: month.by("nami").set_plan(FREE, "free"),
        5 * 24 + 6: lambda: _stage(month),
        3 * 24: lambda: month.by("ana").disable(f"{APP}/growth"),
        22: lambda: faults.add(poison),
        17: lambda: faults.add(Fault("503")),
        15: lambda: _only(faults, poison),
        10: faults.remove,
        9: lambda: _send_one_again(month),
        7: lambda: faults.add(Fault("invalid_key", api_key=KEYS["staging"])),
        1: lambda: _plan(month),
    }
    if hours in happenings:
        happenings[hours]()


def make(home: Path, now: datetime) -> Month:
    """Lives through the month.

    Args:
        home: an empty folder, or none yet.
        now: its end; the pages' clock is the machine's, so it should be this moment.
    """
    month = Month(home, now)
    _set_up(month)
    compared = None
    for hours in [*range(DAYS * 24, 9 * 24, -8), *range(9 * 24, 30, -6), *range(30, 0, -1)]:
        month.at(hours * HOUR)
        _happens(month, hours)
        month.at(hours * HOUR)
        month.write_others(month.rng.randrange(60, 260))
        month.run()
        moment = datetime.fromtimestamp(month.pipe.clock.now, UTC)
        if hours in (3 * 24 + 6, 4 * 24 + 12):
            month.damage()
        if hours < 7 * 24 and moment.hour >= 4 and moment.date() != compared:
            compared = moment.date()
            month.compare()
    month.at(timedelta(minutes=4))
    month.run()
    month.at(timedelta())
    return month


@contextmanager
def amplitude_is_local(month: Month) -> Iterator[None]:
    """What the pages ask Amplitude themselves, the sandbox answers."""

    class Near:
        def __init__(self, _seconds: float) -> None:
            pass

        def post(self, request: Request) -> HttpAnswer:
            time.sleep(0.09 + month.rng.random() / 20)  # about as long as it takes across the sea
            return posted(month.sandbox, request)

        def close(self) -> None:
            pass

    with patch.object(connection, "HttpTransport", Near), patch.object(trial_event, "HttpTransport", Near):
        yield
