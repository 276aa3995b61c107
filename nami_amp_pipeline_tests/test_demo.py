"""The demo runs whole: sample, warehouse, Dagster, local Amplitude; twice sends nothing twice; no key is left lying."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from nami_amp_pipeline.demo.setup import APPS, demo_key

NAMI_AMP = Path(sys.executable).with_name("nami-amp")
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
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "empty")}
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
