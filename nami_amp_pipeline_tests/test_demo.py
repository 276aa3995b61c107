"""The demo runs whole: sample, warehouse, Dagster, local Amplitude; twice sends nothing twice; no key is left lying."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
import requests

from nami_amp_pipeline.demo.setup import APPS, DAYS, demo_key, load_sample
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.settings import Settings

NAMI_AMP = Path(sys.executable).with_name("nami-amp")
ROOT = Path(__file__).parents[1]
KEYS = tuple(demo_key(app_id).encode() for app_id in APPS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the demo has run once."""
    folder = tmp_path_factory.mktemp("demo")
    first = nami_amp(folder, "demo", "--users", "150", "--port", "0")
    assert first.returncode == 0, first.stderr
    assert "Every event that was sent arrived exactly once." in first.stdout
    return folder


def nami_amp(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "empty"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(NAMI_AMP), *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_every_event_is_accounted_for(home: Path) -> None:
    answer = json.loads(nami_amp(home, "status", "--json").stdout)
    assert {one["integration"] for one in answer["integrations"]} == {"radio-nami/demo", "fit-nami/demo"}
    for one in answer["integrations"]:
        ended = one["delivered"] + sum(one["skipped"].values()) + sum(one["dead_letters"].values())
        assert one["captured"] == ended + one["pending"] > 0
        assert one["pending"] == 0


@pytest.mark.slow
def test_second_time_sends_nothing_twice(home: Path) -> None:
    second = nami_amp(home, "demo", "--users", "150", "--port", "0")
    assert second.returncode == 0, second.stderr
    assert "Events sent to Amplitude twice in this run: 0." in second.stdout
    lines = second.stdout.splitlines()  # in a pipe, nothing is drawn, folded or cut
    assert "Integration\tCaptured\tDelivered\tSkipped\tDead letters\tPending" in lines
    assert [line for line in lines if line.startswith("Captured counts") and line.endswith(" are not selected.")]
    assert not set("┃│━─") & set(second.stdout)


@pytest.mark.slow
def test_no_key_is_found_in_clear_text_in_any_file(home: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.name == "state.db" for path in files)
    assert any(path.suffix == ".db" and "dagster" in str(path) for path in files)
    for path in files:
        content = path.read_bytes()
        assert not any(key in content for key in KEYS), path
    key_file = home / ".nami-amp" / "encryption.key"
    assert key_file.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_the_run_stands_in_dagsters_history(home: Path) -> None:
    databases = [path for path in home.rglob("*.db") if path.name == "runs.db"]
    assert databases
    with sqlite3.connect(databases[0]) as connection:
        ((runs,),) = connection.execute("SELECT count(*) FROM runs WHERE pipeline_name = 'micro_batch'").fetchall()
    assert runs >= 1


@pytest.mark.slow
def test_run_without_news_is_done_and_says_so_in_one_object(home: Path) -> None:
    again = nami_amp(home, "run", "--json")
    answer = json.loads(again.stdout)
    assert set(answer) == {"run_id", "integrations"}
    assert all(one["captured"] == one["delivered"] == 0 for one in answer["integrations"])
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_the_sample_ends_today_and_stays_as_it_is(tmp_path: Path) -> None:
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)})
    now = datetime(2027, 3, 5, 14, 59, 30, tzinfo=UTC)
    first = load_sample(settings, 60, now.timestamp())
    assert (first.new, first.end) == (first.events, datetime(2027, 3, 5, 14, tzinfo=UTC))
    with duckdb.connect(str(tmp_path / "warehouse.duckdb"), read_only=True) as connection:
        query = "SELECT epoch(min(created_date)), epoch(max(ingested_at)), epoch(max(created_date)) FROM nami_events"
        begin, end, newest = connection.execute(query).fetchall()[0]
    assert begin == (first.end - timedelta(days=DAYS)).timestamp()
    assert newest <= end < first.end.timestamp() <= now.timestamp()
    assert now.timestamp() - newest < 86_400, "something happened today"
    later = load_sample(settings, 60, (now + timedelta(days=9)).timestamp())
    assert (later.new, later.events, later.end) == (0, first.events, first.end)


@pytest.mark.slow
def test_a_second_demo_leaves_the_page_of_the_first_where_it_is(home: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home / "empty"), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [str(NAMI_AMP), "demo", "--users", "150", "--serve"], cwd=home, env=environ, stdout=subprocess.PIPE, text=True
    ) as first:
        try:
            page = served(first)
            events = requests.get(f"{page}/sandbox/summary", timeout=30).json()["events"]
            second = nami_amp(home, "demo", "--users", "180")
            assert second.returncode == 0, second.stderr
            assert f"Amplitude  {page}" in second.stdout
            assert "Events sent to Amplitude twice in this run: 0." in second.stdout
            assert requests.get(f"{page}/sandbox/summary", timeout=30).json()["events"] > events
            elsewhere = nami_amp(home, "demo", "--users", "150", "--port", "1")
            assert elsewhere.returncode == 1
            assert "another process runs the local Amplitude" in elsewhere.stderr
        finally:
            first.terminate()
            first.wait(30)
    third = nami_amp(home, "demo", "--users", "150")
    endpoints = json.loads(nami_amp(home, "integrations", "show", "radio-nami/demo", "--json").stdout)
    assert third.returncode == 0
    assert page in json.dumps(endpoints), "the port of the last time"


def served(process: subprocess.Popen[str]) -> str:
    """The address that a demo that goes on listening prints at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        if "(Ctrl-C stops it)" in line:
            return line.split()[1]
    raise AssertionError("it ended")


@pytest.mark.slow
def test_the_offered_command_works_as_it_is_printed(home: Path) -> None:
    done = nami_amp(home, "demo", "--users", "150")
    lines = done.stdout.splitlines()
    offered = lines[lines.index("To look around:") + 1].strip()
    assert offered == f"{NAMI_AMP} dev --open"
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home / "empty"), "BROWSER": "/usr/bin/true",
               "PYTHONPATH": str(ROOT)}  # fmt: skip
    with subprocess.Popen(
        f"exec {offered}", shell=True, cwd=home, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        try:
            pages = dict(line.rstrip("\n").split("\t") for line in said if "\t" in line)
            assert requests.get(f"{pages['Dagster']}/server_info", timeout=30).ok, said
            assert requests.get(f"{pages['Sandbox']}/sandbox/summary", timeout=30).json()["events"] > 0
            again = nami_amp(home, "demo", "--users", "150").stdout
            assert f"{pages['Dagster']}/runs/" in again
            assert f"Amplitude  {pages['Sandbox']}" in again
        finally:
            running.terminate()
            running.wait(60)
    assert running.returncode == 143


@pytest.mark.slow
def test_skipped_events_say_what_to_do(home: Path) -> None:
    shown = nami_amp(home, "demo", "--users", "150").stdout
    assert "radio-nami/demo skipped" in shown
    assert "  Do: 'nami-amp integrations update radio-nami/demo --anonymous wait_for_login'" in shown


def test_every_reason_to_skip_says_what_to_do() -> None:
    for code in reasons.codes("skipped"):
        known = reasons.reason(code)
        assert known is not None
        if code == "superseded":
            assert "Nothing is to be done" in (known.action or "")
            continue
        command = "backfill" if code == "cancelled" else "integrations update"
        assert f"nami-amp {command} APP/NAME" in (known.action or ""), code
