"""The benchmarks still run: every part at a tiny size, and the page that is written from them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import orjson
import pytest
import requests

from bench import __main__ as bench
from bench import at_rest, crew, data, page, results, scene, watch, workers
from bench.peers import DRT, SDK, drt_project
from bench.receiver import Receiver
from nami_amp_pipeline import contract
from nami_amp_pipeline.commands.dev import _control_center, _sandbox
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support import dev
from nami_amp_pipeline.operations.shards import shards
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.state.integrations import all_integrations

pytestmark = pytest.mark.slow

TINY: dict[str, dict[str, int]] = {
    "micro_batch": {"rows": 500, "repeats": 1, "peer_rows": 0},
    "postgres": {"rows": 300, "repeats": 1},
    "whole_state": {"rows": 300, "repeats": 1, "peer_rows": 0},
    "object_storage": {"rows": 300, "repeats": 1},
    "history": {"small": 60, "large": 200, "users": 60, "news": 40, "repeats": 1, "base": 500},
    "many_apps": {"apps": 3, "many": 3, "few": 2, "repeats": 1},
    "workers": {"apps": 3, "events": 4, "repeats": 1, "workers": 2, "milliseconds": 20},
    "backlog": {"rows": 700, "less": 500, "base": 500, "apps": 1},
    "latency": {"rows": 300, "repeats": 1, "milliseconds": 20},
    "start_up": {"rows": 100, "repeats": 1},
    "at_rest": {"seconds": 1, "settle": 0},
    "compression": {"rows": 300, "repeats": 1},
    "limits": {"rows": 500, "requests": 8, "commits": 3},
    "live_first": {"rows": 4_000, "ticks": 1, "live": 5, "milliseconds": 200, "batch": 20},
    "reconcile": {"rows": 500},
    "enrichments": {"rows": 300, "repeats": 1},
    "control_center": {"apps": 2, "hours": 3, "letters": 20, "people": 40, "repeats": 1},
}


@pytest.fixture(scope="module")
def cache() -> Iterator[Path]:
    """A folder that PostgreSQL may look into under a user of its own, unlike those of pytest."""
    with TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


class Stub:
    """Stands in for Celery's workers: does the shards of a tick one after the other, in this process."""

    def __init__(self, home: scene.Home, workers: int, shards: int) -> None:
        self._home = home
        self._workers = workers
        self._shards = shards

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tick(self, workers: int) -> crew.ShardedTick:
        assert workers in (1, self._workers)
        context = Context.open(self._home.settings)
        integrations = all_integrations(context.store)
        context.store.close()
        began = time.perf_counter()
        runs = {}
        for shard in shards(self._shards):
            assert shard is not None
            mine = [integration.key for integration in integrations if shard.has(integration.app_id)]
            at = time.perf_counter() - began
            assert run_micro_batch(self._home.settings, mine).ok
            runs[str(shard)] = (at, time.perf_counter() - began)
        return crew.ShardedTick(time.perf_counter() - began, 0.1, runs)


@pytest.fixture
def small_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process, which has Dagster loaded already, and with files of its own."""
    monkeypatch.setattr(data, "CACHE", cache)
    monkeypatch.setattr(scene, "CACHE", cache)

    def run(home: scene.Home) -> watch.Took:
        began = time.perf_counter()
        report = run_micro_batch(home.settings)
        return watch.Took(time.perf_counter() - began, 0.1, 1, 1, orjson.dumps(report.to_json()))

    monkeypatch.setattr(scene.Home, "run", run)
    # Their processes take longer to start than all the rest; test_celery.py and test_dev.py start them.
    monkeypatch.setattr(workers, "Crew", Stub)
    monkeypatch.setattr(at_rest, "make_home", lambda *_: None)
    monkeypatch.setattr(at_rest, "serving", lambda *_: nullcontext(os.getpid()))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def test_every_part_has_a_tiny_size() -> None:
    assert set(TINY) == set(bench.PARTS)


@pytest.mark.parametrize("part", bench.PARTS)
@pytest.mark.usefixtures("small_cache")
def test_each_part_measures_and_writes_its_section(part: str) -> None:
    module = importlib.import_module(f"bench.{part}")
    figures = orjson.loads(orjson.dumps(module.measure(**TINY[part])))
    assert "|" in module.section(figures) or "events/s" in module.section(figures)
    for _what, goal, figure, met in module.verdicts(figures):
        assert goal
        assert figure
        assert isinstance(met, bool)


@pytest.mark.usefixtures("small_cache")
def test_events_with_whole_state_are_what_the_page_says_of_them() -> None:
    with duckdb.connect(str(data.whole_state_warehouse(2_000)), read_only=True) as connection:
        events = connection.sql("FROM nami_events").to_arrow_table().to_pydict()
    payloads = [orjson.loads(text) for text in events["payload"]]
    assert 1_150 < sum(map(len, events["payload"])) / 2_000 < 1_300
    assert len(set(events["id"])) == 2_000
    assert 190 < len(set(events["user_id"])) <= 200
    assert set(events["app_id"]) == set(data.APPS)
    assert set(events["event_type"]) <= set(contract.event_type_names())
    assert events["ingested_at"] == sorted(events["ingested_at"])
    assert [payload["id"] for payload in payloads] == events["id"]
    for payload in payloads:
        assert payload["active_entitlements"][0]["entitlement_ref_id"] == "premium"
        assert payload["customer_journey_state"]["in_pause"] is False
        assert len({device["id"] for device in payload["devices"]}) == 2
        assert [entry["key"] for entry in payload["external_ids"]] == ["original_transaction_id", "external_id"]


def test_a_part_runs_by_itself_with_the_real_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.micro_batch", "--rows", "300", "--repeats", "1", "--peer-rows", "0", "--json"],
        check=True,
        capture_output=True,
        cwd=Path(bench.__file__).parent.parent,
    )
    (one,) = orjson.loads(done.stdout)["runs"]
    assert one["delivered"] > 200
    assert set(one["stages"]) == set(scene.STAGES.values())
    assert one["peak_rss"] > 50_000_000


def test_processes_of_the_service_are_told_apart_by_their_commands() -> None:
    place = Path("somewhere")
    assert at_rest.name_of(dev.code_server_command(place)) == "code server"
    assert at_rest.name_of(dev.daemon_command(place)) == "daemon"
    assert at_rest.name_of(dev.webserver_command(1, place)) == "webserver"
    assert at_rest.name_of(_control_center(1)) == "Control Center"
    assert at_rest.name_of(_sandbox(1, place)) == "local Amplitude"


def test_processor_time_of_processes_that_ended_counts_too() -> None:
    before = watch.cpu_seconds(os.getpid()) - watch.own_cpu_seconds(os.getpid())
    busy = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-I", "-S", "-c", busy], check=True)
    assert watch.cpu_seconds(os.getpid()) - watch.own_cpu_seconds(os.getpid()) - before >= 0.08


def test_the_receiver_tells_what_is_wrong() -> None:
    def event(event_id: str | None, user: str, moment: int) -> dict[str, Any]:
        return {"event_type": "t", "user_id": user, "insert_id": event_id, "time": moment}

    def post(*events: dict[str, Any]) -> None:
        answer = requests.post(receiver.url, json={"api_key": "k", "events": events}, timeout=10)
        assert answer.json()["code"] == 200

    with Receiver() as receiver:
        post(event("a", "ann", 2), event("b", "bob", 1))
        post(event("c", "ann", 1), event("a", "bob", 5), event(None, "bob", 6))
        requests.post(receiver.url, data=b"no json", timeout=10)
        report = receiver.report()
        assert report["requests"] == 3
        assert report["events"] == 5
        assert report["distinct_ids"] == 3
        assert report["out_of_order"] == 1
        assert report["invalid"] == 2
        receiver.reset()
        assert receiver.report()["events"] == 0


def test_the_receiver_sees_requests_of_a_user_that_overlap() -> None:
    import threading

    with Receiver() as receiver:
        receiver.reset(0.3)
        body = {"api_key": "k", "events": [{"event_type": "t", "user_id": "ann", "insert_id": "a", "time": 1}]}
        threads = [
            threading.Thread(target=lambda: requests.post(receiver.url, json=body, timeout=10)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert receiver.report()["overlapping"] == 1


def test_a_failure_leaves_earlier_figures_and_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    assert bench.measure("limits", ["--rows", "300", "--requests", "4", "--commits", "2"])
    assert not bench.measure("limits", ["--rows", "-1"])
    page.write(bench.modules())
    text = (tmp_path / "benchmarks.md").read_text()
    assert "The last measurement failed" in text
    assert "reading the table into Arrow" in text
    assert "Not measured yet." in text


def test_the_page_is_what_the_results_say() -> None:
    measured = results.load()
    images = {name: path.name for name in bench.PARTS if (path := _image(name)).exists()}
    assert page.PAGE.read_text() == page.render(bench.modules(), measured, images)


def _image(part: str) -> Path:
    return page.DOCS / "images" / f"bench-{part.replace('_', '-')}.png"


def test_neighbours_are_given_the_same_event_types(tmp_path: Path) -> None:
    sdk = (Path(bench.__file__).parent / "peers" / "sdk.py").read_text()
    drt_project(Path("events.duckdb"), tmp_path)
    drt = (tmp_path / "syncs" / "events.yml").read_text()
    for event_type in contract.event_type_names():
        assert f'"{event_type}"' in sdk
        assert f"'{event_type}'" in drt
    assert all("==" in requirements[0] for requirements in (SDK, DRT))
