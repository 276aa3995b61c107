"""Dagster on another history than the settings name: its console, ``status``, ``doctor`` and runs say it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import orjson
import pytest

from nami_amp_pipeline.dagster_support.histories import place_of, two_histories
from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.operations import histories
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.settings import contradictions
from nami_amp_pipeline_tests.support.command_line import environment, invoke, nami_amp, one_line
from nami_amp_pipeline_tests.support.development import working_on
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene
from nami_amp_pipeline_tests.support.service import BIN, ROOT, free_port, wait_for

pytestmark = [pytest.mark.filterwarnings(WARNINGS)]

NOW = 1_790_000_000.0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with scene(tmp_path / "home") as made:
        yield made


@contextmanager
def dagster_dev(folder: Path, home: Path) -> Iterator[Path]:
    """``dagster dev`` as a person starts it in a folder; yields the file with its console."""
    log = folder / "console.log"
    with log.open("wb") as out:
        started = subprocess.Popen(
            [BIN / "dagster", "dev", "-m", "nami_amp_pipeline.definitions", "-p", str(free_port())],
            cwd=folder, env=environment(folder, NAMI_AMP_HOME=str(home), NAMI_AMP_SENSOR_SECONDS="5"),
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        yield log
    finally:
        os.killpg(started.pid, signal.SIGINT)
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
        wait_for(lambda: not [pid for pid in working_on(home) if os.getpgid(pid) == started.pid], seconds=60)


@pytest.mark.contract("6.11")
@pytest.mark.slow
@pytest.mark.parametrize("where", ["nowhere", "a clone"])
def test_dagster_dev_by_hand_says_that_it_has_another_history(tmp_path: Path, where: str) -> None:
    folder, home = tmp_path / "folder", tmp_path / "home"
    folder.mkdir()
    if where == "a clone":
        shutil.copy(ROOT / "dagster.yaml", folder)
    settings = {"NAMI_AMP_HOME": str(home), "NAMI_AMP_SENSOR_SECONDS": "5"}
    added = nami_amp(folder, "integrations", "add", "radio", "main", "--endpoint", "us", "--api-key-env", "KEY",
                     "--disabled", **settings)  # fmt: skip
    assert added.returncode == 0, added.stderr
    assert nami_amp(folder, "run", **settings).returncode == 0
    with dagster_dev(folder, home) as log:
        wait_for(lambda: "this Dagster keeps its history in" in log.read_text(), log.read_text)
        (line,) = [line for line in log.read_text().splitlines() if "this Dagster keeps its history in" in line]
        place = folder / ".nami-amp" / "dagster" if where == "a clone" else folder / ".tmp_dagster_home_"
        assert f"keeps its history in {place}" in line
        assert f"the settings name {home / 'dagster'}" in line
        assert "nami-amp dev" in line
        status = nami_amp(folder, "status", **settings).stdout
        assert "2 histories were used for this home within a day" in status
        assert "nami-amp dev" in status
        doctor = nami_amp(folder, "doctor", **settings).stdout
        assert "2 histories were used for this home" in doctor
    if where == "nowhere":  # it was a temporary one, which is gone, and nobody needs to do anything
        assert "histories" not in nami_amp(folder, "status", **settings).stdout


@pytest.mark.slow_cases
@pytest.mark.slow
def test_a_run_says_it_too_and_the_right_history_says_nothing(stage: Scene, tmp_path: Path) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    report = run_micro_batch(stage.settings)
    with dagster_instance(stage.settings) as instance:
        assert place_of(instance) == str(stage.home / "dagster")
        assert two_histories(instance, stage.settings) is None
        assert "two histories" not in repr(instance.all_logs(report.run_id))
    (tmp_path / "other").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "other")) as instance:
        said = two_histories(instance, stage.settings)
        assert said is not None
        assert said.startswith(f"this Dagster keeps its history in {tmp_path / 'other'}, but the settings name ")
        with dagster_instance(stage.settings) as again:
            later = two_histories(again, stage.settings)
    assert later is not None
    assert str(tmp_path / "other") in later
    found = orjson.loads(invoke(tmp_path, "status", "--json", settings={"NAMI_AMP_HOME": str(stage.home)}).stdout)
    places = [history["place"] for history in found["dagster_histories"]]
    assert sorted(places) == sorted([str(stage.home / "dagster"), str(tmp_path / "other")])
    run_micro_batch(stage.settings)
    with dagster_instance(stage.settings) as instance:
        (run, *_) = instance.get_runs(limit=1)
        assert "2 histories were used for this home" in repr(instance.all_logs(run.run_id))


def test_memory_is_no_history(stage: Scene) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert place_of(instance) is None
        assert two_histories(instance, stage.settings) is None


def test_histories_are_forgotten_after_a_day_or_when_they_are_gone(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    histories.note(tmp_path, str(tmp_path / "first"), NOW)
    histories.note(tmp_path, str(tmp_path / "second"), NOW + 10)
    histories.note(tmp_path, "postgresql://db/dagster", NOW + 20)
    assert [found.used_at - NOW for found in histories.histories(tmp_path, NOW + 30)] == [20, 10, 0]
    (tmp_path / "first").rmdir()
    assert len(histories.histories(tmp_path, NOW + 30)) == 2
    histories.note(tmp_path, str(tmp_path / "third"), NOW + histories.RECENT_SECONDS + 15)
    left = histories.histories(tmp_path, NOW + histories.RECENT_SECONDS + 15)
    assert [found.place for found in left] == [str(tmp_path / "third"), "postgresql://db/dagster"]
    (tmp_path / "dagster-histories.json").write_text("[no object")
    assert histories.histories(tmp_path, NOW) == []
    histories.note(tmp_path / "nothing here", "x", NOW)


def test_env_file_and_environment_that_differ_are_told_by_doctor(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NAMI_AMP_HOME=one\nDAGSTER_HOME=/there\nNAMI_AMP_TICK_MINUTES=7\nOTHER=1\n")
    given = {"NAMI_AMP_HOME": "two", "NAMI_AMP_TICK_MINUTES": "7", "OTHER": "2"}
    assert contradictions(given, tmp_path / ".env") == ["NAMI_AMP_HOME"]
    (tmp_path / ".env").write_text("NAMI_AMP_HOME=one\n")
    done = invoke(tmp_path, "doctor", settings={"NAMI_AMP_HOME": "two"})
    assert "NAMI_AMP_HOME: the environment and .env in this folder say different things" in done.stdout


def test_dagster_home_of_the_env_file_counts(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"DAGSTER_HOME={tmp_path / 'nowhere'}\n")
    done = invoke(tmp_path, "run")
    assert done.exit_code in (1, 2)
    assert one_line(done.stderr)
