"""Makes a home that is in the middle of everything, with the code of the version that it is run with.

In a checkout of that version, ``python make_home.py FOLDER NAME`` (by its whole path) writes ``NAME.tar.gz``
(the home) and ``NAME.json`` (what its Amplitude had accepted by then) to FOLDER. Uses nothing but the package itself.
"""

# It is for the interfaces of another version.
# mypy: ignore-errors

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
from nami_amp_pipeline.amplitude.transport import HttpAnswer

from nami_amp_pipeline import pipeline
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as state

START = datetime(2026, 9, 1, tzinfo=UTC)
KEYS = {"app/main": "1" * 32, "app/login": "2" * 32, "other/device": "3" * 32}
APPS = {"app": 40, "other": 25}
THROTTLED = "device-other-3"
TYPES = (
    "user.subscription.purchased", "user.journey.trial.started", "device.impression", "user.subscription.renewed",
    "device.transaction", "user.something.unknown", "user.subscription.cancelled",
)  # fmt: skip


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = START.timestamp()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Amplitude:
    """Notes what it accepts in a file; throttles one device; may end the process in the middle of a request."""

    def __init__(self, file: Path, clock: Clock, *, kill_at: int | None = None) -> None:
        self._file = file
        self._clock = clock
        self._kill_at = kill_at
        self._requests = 0
        self._answers: list[tuple[int, HttpAnswer]] = []

    def start(self, number: int, url: str, body: bytes) -> None:
        self._requests += 1
        content = json.loads(body)
        throttled = [n for n, event in enumerate(content["events"]) if event.get("device_id") == THROTTLED]
        if throttled:
            answer = {"code": 429, "throttled_devices": {THROTTLED: 11}, "throttled_events": throttled}
            self._answers.append((number, HttpAnswer(429, json.dumps(answer).encode())))
            return
        killed = self._requests == self._kill_at
        with self._file.open("a") as file:
            file.write(json.dumps({"body": body.decode(), "answered": not killed}) + "\n")
        if killed:
            os._exit(9)
        self._answers.append((number, HttpAnswer(200, b'{"code":200}')))

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer]]:
        answers, self._answers = self._answers, []
        if not answers:
            self._clock.sleep(max(seconds, 0.1))
        return answers

    def close(self) -> None:
        pass


def payload(number: int, user: int, app: str, kind: str) -> str:
    """What the event carries: often less than everything."""
    told: dict[str, object] = {"event_platform": "apple", "sequence": number}
    if kind.startswith("device."):
        told |= {"device_id": f"device-{app}-{user}", "locale": "en_US"}
        if kind.endswith("transaction"):
            told |= {"sku": "gold-monthly", "amount": 9.99, "currency": "USD", "purchase_env": "production"}
    else:
        if number % 3:
            names = ["gold", "silver"][: number % 3]
            told["active_entitlements"] = [{"entitlement_ref_id": name, "sku_ref_id": f"{name}-m"} for name in names]
        if number % 4:
            told["devices"] = [{"id": f"device-{app}-{user}", "platform": {"id": "platform-1"}}]
        if number % 5:
            told["customer_journey_state"] = {"former_subscriber": number % 2 == 0, "in_trial_period": number % 7 == 0}
    if user % 3 and (number > 100 or user % 2):
        told["external_ids"] = [{"key": "external_id", "value": f"account-{app}-{user}"}]
    if user == 7 and app == "app":
        told["external_ids"] = [{"key": "external_id", "value": "anonymous"}]  # reserved: dead letters
    return "not json" if number % 61 == 60 else json.dumps(told)


def load(warehouse: Path, first: int, last: int, loaded: datetime) -> None:
    """Rows of these numbers for each app; every fifth is late."""
    rows = []
    for app, users in APPS.items():
        for number in range(first, last):
            user, kind = number * 7 % users, TYPES[number % len(TYPES)]
            created = START - timedelta(hours=1) + timedelta(seconds=number * 5 - (900 if number % 5 == 4 else 0))
            text = payload(number, user, app, kind)
            rows.append([f"{app}-{number:04d}", app, kind, f"user-{app}-{user}", created, loaded, text])
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS nami_events (id TEXT, app_id TEXT, event_type TEXT, user_id TEXT, "
            "created_date TIMESTAMPTZ, ingested_at TIMESTAMPTZ, payload TEXT)"
        )
        connection.executemany("INSERT INTO nami_events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def open_context(home: Path, clock: Clock) -> Context:
    settings = Settings.load({"NAMI_AMP_HOME": str(home), "NAMI_AMP_BATCH_EVENTS": "10", "NAMI_AMP_MAX_LANES": "3"})
    context = Context.open(settings, run_id="before", clock=clock)
    context.sleep = clock.sleep
    return context


def deliver(home: Path, clock: Clock, accepted: Path, keys: list[str], kill_at: int | None = None) -> None:
    """In a process of its own, which may be killed."""
    child = os.fork()
    if child == 0:
        context = open_context(home, clock)
        for one in state.all_integrations(context.store):
            if one.key in keys:
                pipeline.deliver_integrations(context, [one], wire=Amplitude(accepted, clock, kill_at=kill_at))
        context.store.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    expected = 9 if kill_at else 0
    assert os.waitstatus_to_exitcode(status) == expected, (keys, kill_at, status)


def make(home: Path) -> list[dict[str, object]]:
    clock, accepted, warehouse = Clock(), home / "accepted.ndjson", home / "warehouse.duckdb"
    home.mkdir()
    load(warehouse, 0, 120, START)
    context = open_context(home, clock)
    common = {"endpoint": "us", "start_from": None}
    for key, more in {
        "app/main": {"rename": {"user.subscription.renewed": "Renewed"}},
        "app/login": {"anonymous": "wait_for_login"},
        "other/device": {"anonymous": "device_id"},
    }.items():
        app, _, name = key.partition("/")
        chosen = state.NewIntegration(app, name, api_key=Secret(KEYS[key]), **common, **more)
        state.add(context.store, context.cipher, chosen)

    def prepare() -> None:
        pipeline.capture_apps(context)
        pipeline.snapshot_apps(context)
        pipeline.prepare_integrations(context, state.all_integrations(context.store))

    prepare()  # delivered, with receipts; a device is throttled
    deliver(home, clock, accepted, [*KEYS])
    clock.sleep(600)
    load(warehouse, 120, 240, START + timedelta(minutes=10))
    prepare()  # half posted, and killed with a request under way
    deliver(home, clock, accepted, ["app/main"], kill_at=5)
    deliver(home, clock, accepted, ["app/login"], kill_at=1)
    clock.sleep(600)
    load(warehouse, 240, 300, START + timedelta(minutes=20))
    pipeline.capture_apps(context)
    pipeline.snapshot_apps(context)  # not prepared
    clock.sleep(60)
    load(warehouse, 300, 340, START + timedelta(minutes=21))
    pipeline.capture_apps(context)  # no snapshots
    load(warehouse, 340, 360, START + timedelta(minutes=22))  # not captured
    context.store.close()
    told = [json.loads(line) for line in accepted.read_text().splitlines()]
    accepted.unlink()
    return told


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        told = make(home)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(home, arcname="home")
    with gzip.GzipFile(folder / f"{name}.tar.gz", "wb", mtime=0) as packed:
        packed.write(content.getvalue())
    (folder / f"{name}.json").write_text(json.dumps(told, indent=0) + "\n")


if __name__ == "__main__":
    main()
