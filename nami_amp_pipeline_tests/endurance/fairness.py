"""Twenty integrations, one of which stands still: how long the other nineteen take."""

from __future__ import annotations

import shutil
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from nami_amp_pipeline import contract
from nami_amp_pipeline.delivery.request_threads import ThreadedWire
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, Request
from nami_amp_pipeline.sandbox.settings import V2_PATH
from nami_amp_pipeline.storage.duckdb_engine import literal, sql
from nami_amp_pipeline_tests.endurance.amplitude import OwnProcess
from nami_amp_pipeline_tests.endurance.report import Report
from nami_amp_pipeline_tests.endurance.scene import Scene, key_of, load_sample

APPS = tuple(f"app-{number:02}" for number in range(20))
LAST = APPS[-1]
MOST_RATIO = 1.2
_ABSENT, _HEALTHY = "absent", "healthy"
_WRONG_KEY = "wrong-key".ljust(32, "0")
_KEY_AT = len(b'{"api_key":"')
_SETTINGS = {"BATCH_EVENTS": 100, "HTTP_TIMEOUT_SECONDS": 1.5}


@dataclass(frozen=True)
class Trouble:
    """What is the matter with the twentieth integration.

    Attributes:
        name: for people.
        begin: brings it about, given the state, the local Amplitude, and an address that takes connections and
            never answers.
    """

    name: str
    begin: Callable[[Scene, OwnProcess, str], None]


def _throttled(_scene: Scene, amplitude: OwnProcess, _silent: str) -> None:
    amplitude.misbehave([{"kind": "project_429", "api_key": key_of(LAST)}])


def _throttled_briefly(_scene: Scene, amplitude: OwnProcess, _silent: str) -> None:
    amplitude.misbehave([{"kind": "project_429", "api_key": key_of(LAST), "retry_after": 0}])


def _stalls(_scene: Scene, amplitude: OwnProcess, _silent: str) -> None:
    amplitude.misbehave([{"kind": "stall", "api_key": key_of(LAST), "seconds": 3600.0}])


def _fails(_scene: Scene, amplitude: OwnProcess, _silent: str) -> None:
    amplitude.misbehave([{"kind": "500", "api_key": key_of(LAST)}])


def _hangs(scene: Scene, _amplitude: OwnProcess, silent: str) -> None:
    scene.move(LAST, silent)


def _wrong_key(scene: Scene, amplitude: OwnProcess, _silent: str) -> None:
    scene.move(LAST, amplitude.endpoint, _WRONG_KEY)


TROUBLES = (
    Trouble(_ABSENT, lambda scene, _amplitude, _silent: scene.switch_off(LAST)),
    Trouble(_HEALTHY, lambda _scene, _amplitude, _silent: None),
    Trouble("throttled for good", _throttled),
    Trouble("throttled, Retry-After 0", _throttled_briefly),
    Trouble("every answer a 500", _fails),
    Trouble("never answered, same endpoint", _stalls),
    Trouble("never answered, own endpoint", _hangs),
    Trouble("key wrong", _wrong_key),
)


class Watched:
    """A transport that notes when the nineteen have everything.

    Args:
        timeout: of a request.
        due: events of the nineteen.
    """

    def __init__(self, timeout: float, due: int) -> None:
        self._inner = HttpTransport(timeout)
        self._left = due
        self._lock = threading.Lock()
        self.done_at: float | None = None

    def post(self, request: Request) -> HttpAnswer:
        answer = self._inner.post(request)
        key = request.body[_KEY_AT : _KEY_AT + 32].decode()
        if answer.status == 200 and key not in (key_of(LAST), _WRONG_KEY):
            with self._lock:
                self._left -= request.body.count(b'"insert_id"')
                if self._left == 0:
                    self.done_at = time.perf_counter()
        return answer

    def close(self) -> None:
        self._inner.close()

    def done(self) -> bool:
        return self.done_at is not None


def run(report: Report, folder: Path, *, events: int, repeats: int, latency_ms: float, apart: bool = True) -> None:
    """Times each trouble so many times, one after the other and over again.

    Args:
        report: where the figures go.
        folder: for everything.
        events: of each integration.
        repeats: of each trouble.
        latency_ms: how long the local Amplitude's answers take.
        apart: whether the ratio must hold; with few events it tells nothing.
    """
    warehouse, ready = folder / "events.duckdb", folder / "ready"
    load_events(warehouse, events)
    report.line(
        f"fairness: {len(APPS)} integrations of {events:,} events, {repeats} of each, {latency_ms:g} ms latency"
    )
    with (
        OwnProcess(None, latency_ms=latency_ms, refused_key=_WRONG_KEY) as amplitude,
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
    ):
        scene = Scene(ready, warehouse, report, _SETTINGS)
        for app_id in APPS:
            scene.add(app_id, amplitude.endpoint)
        scene.read()
        due = sum(one.pending for one in scene.numbers() if not one.integration.startswith(LAST))
        scene.close()
        report.check(due == events * (len(APPS) - 1), f"{due} events are due")
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}{V2_PATH}"
        took: dict[str, list[float]] = {trouble.name: [] for trouble in TROUBLES}
        for turn in range(repeats):
            for number in range(len(TROUBLES)):
                trouble = TROUBLES[(number + turn) % len(TROUBLES)]
                home = folder / "home"
                shutil.copytree(ready, home)
                seconds = _timed(report, home, warehouse, amplitude, trouble, nowhere, due)
                took[trouble.name].append(seconds)
                shutil.rmtree(home)
    alone = statistics.median(took[_ABSENT])
    for name, times in took.items():
        median = statistics.median(times)
        if name not in (_ABSENT, _HEALTHY) and apart:
            report.check(median <= MOST_RATIO * alone, f"{name}: {median:.2f} s, alone {alone:.2f} s")
        each = ", ".join(f"{seconds:.2f}" for seconds in times)
        # Where the machine is busy now and then, the rounds by themselves tell more.
        by_round = statistics.median(one / other for one, other in zip(times, took[_ABSENT], strict=True))
        report.line(
            f"  {name:<30} median {median:5.2f} s, {median / alone:.2f} x alone, by round {by_round:.2f} x ({each})"
        )


def _timed(
    report: Report, home: Path, warehouse: Path, amplitude: OwnProcess, trouble: Trouble, nowhere: str, due: int
) -> float:
    amplitude.behave()
    amplitude.forget()
    scene = Scene(home, warehouse, report, _SETTINGS)
    trouble.begin(scene, amplitude, nowhere)
    watched = Watched(scene.settings.http_timeout_seconds, due)
    began = time.perf_counter()
    scene.deliver(ThreadedWire(watched, stop=watched.done), stop=watched.done)
    done_at = watched.done_at
    others = [one for one in scene.numbers() if not one.integration.startswith(LAST)]
    delivered = sum(one.delivered for one in others)
    report.check(done_at is not None and delivered == due, f"{trouble.name}: {delivered} of {due} delivered")
    report.zero(trouble.name, dead_letters=sum(sum(one.dead_letters.values()) for one in scene.numbers()))
    audit = amplitude.audit()
    report.zero(trouble.name, **{name: audit[name] for name in ("order_violations", "concurrent_same_user")})
    scene.close()
    return (done_at or time.perf_counter()) - began


def load_events(warehouse: Path, events: int) -> None:
    """Exactly so many distinct events for each app."""
    types = ", ".join(map(literal, contract.event_type_names()))
    raw = warehouse.with_name("raw.duckdb")
    for number, app_id in enumerate(APPS):
        load_sample(raw, events * 5 // 4 + 50, (app_id,), seed=number)
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute(sql("nami_events"))
        connection.execute(f"ATTACH {literal(str(raw))} AS raw (READ_ONLY)")
        connection.execute(
            "INSERT INTO nami_events BY NAME SELECT * EXCLUDE (copy, place) FROM ("
            "  SELECT *, row_number() OVER (PARTITION BY app_id ORDER BY ingested_at, id) AS place FROM ("
            "    SELECT *, row_number() OVER (PARTITION BY app_id, id ORDER BY ingested_at) AS copy "
            f"   FROM raw.nami_events WHERE event_type IN ({types})) WHERE copy = 1) WHERE place <= {events}"
        )
    raw.unlink()
