"""``nami-amp dev`` with the real Dagster: pages that answer, one history, one session a home, and nothing left behind.

What becomes of ports that are taken and of processes that die is in ``test_dev_processes.py``.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import orjson
import pytest
import requests

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import environment, invoke, one_line
from nami_amp_pipeline_tests.support.development import COMMAND, Development, up, working_on
from nami_amp_pipeline_tests.support.scene import WARNINGS
from nami_amp_pipeline_tests.support.service import free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]

_LAUNCH = """
mutation {
  launchRun(executionParams: {selector: {repositoryName: "__repository__",
    repositoryLocationName: "nami_amp_pipeline", jobName: "micro_batch"}, runConfigData: {}}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""
_RUN = "query ($runId: ID!) { runOrError(runId: $runId) { ... on Run { status } } }"
_RUNS = "{ runsOrError { ... on Runs { results { runId status } } } }"
_NEVER = {"NAMI_AMP_TICK_CRON": "0 0 1 1 *", "NAMI_AMP_EARLY_TICK_SECONDS": "0"}
"""No run but those of the tests, behind which theirs would be queued."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a blank in its name, in which the demo has run in a home with another one."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    done = call(folder, "demo", "--users", "60", "--port", str(free_port()))
    assert done.returncode == 0, done.stderr
    return folder


def home_of(folder: Path) -> Path:
    return folder / "the home"


def call(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a command on the home of a folder, as a process."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(folder, NAMI_AMP_HOME=str(home_of(folder)), **settings),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def asked(folder: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """What a command says in JSON, in this process."""
    done = invoke(folder, *arguments, "--json", settings={"NAMI_AMP_HOME": str(home_of(folder))})
    assert done.exit_code == 0, done.output
    found: dict[str, list[dict[str, object]]] = orjson.loads(done.stdout)
    return found


def where_is(name: str, running: Development) -> str:
    (found,) = [line.partition("\t")[2] for line in running.said().splitlines() if line.startswith(f"{name}\t")]
    return found


@pytest.mark.contract("6.10")
def test_a_session_from_its_start_to_its_end(folder: Path) -> None:
    few = {"NAMI_AMP_BATCH_EVENTS": "10", "NAMI_AMP_MAX_LANES": "1", **_NEVER}
    port = free_port()
    with up(folder, home_of(folder), "--port", str(port), **few) as running:
        assert running.url == f"http://127.0.0.1:{port}"
        _pages_and_control_center_and_sandbox_answer(running)
        _the_process_that_holds_the_code_is_watched_itself(running)
        _a_second_one_says_where_the_first_is(folder, running)
        _a_signal_ends_all_and_the_run_under_way_records_what_it_did(folder, running)


def _pages_and_control_center_and_sandbox_answer(running: Development) -> None:
    assert where_is("Dagster", running) == running.url
    assert requests.get(f"{running.url}/server_info", timeout=30).ok
    sandbox = where_is("Sandbox", running)
    form = requests.get(f"{where_is('Control Center', running)}/apps/radio-nami/integrations/amplitude/new", timeout=30)
    assert f"{sandbox}/2/httpapi" in form.text, "the local Amplitude can be chosen"
    received = requests.get(f"{sandbox}/sandbox/summary", timeout=30).json()["events"]
    assert received > 100, "it has the events of the demo"
    runs = running.ask(_RUNS)["runsOrError"]["results"]
    assert [run["status"] for run in runs][-1:] == ["SUCCESS"], "the run of the demo is in its history"


def _the_process_that_holds_the_code_is_watched_itself(running: Development) -> None:
    code = running.child("definitions")
    assert {pid for pid in running.children() if os.getpgid(pid) == code} == {code}, "none behind it that dies unseen"
    assert len(running.children()) == 6


def _a_second_one_says_where_the_first_is(folder: Path, running: Development) -> None:
    second = invoke(folder, "dev", settings={"NAMI_AMP_HOME": str(home_of(folder))})
    assert second.exit_code == 1
    assert f"is under way already on {home_of(folder)} at {running.url}" in one_line(second.stderr)


def _a_signal_ends_all_and_the_run_under_way_records_what_it_did(folder: Path, running: Development) -> None:
    page = where_is("Sandbox", running)
    added = invoke(
        folder, "integrations", "add", "fit-nami", "later", "--endpoint", f"{page}/2/httpapi",
        "--allow-custom-endpoint", "--api-key-env", "KEY", "--start-from", "beginning", "--user-id", "nami_user_id",
        settings={"NAMI_AMP_HOME": str(home_of(folder))},
    )  # fmt: skip
    assert added.exit_code == 0, added.output
    slow = requests.post(f"{page}/sandbox/faults", json=[{"kind": "slow", "seconds": 1.5}], timeout=30)
    assert slow.ok, slow.text
    launched = running.ask(_LAUNCH)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]
    events = requests.get(f"{page}/sandbox/summary", timeout=30).json()["events"]
    wait_for(lambda: requests.get(f"{page}/sandbox/summary", timeout=30).json()["events"] > events, running.logs)
    assert running.ask(_RUN, runId=run_id)["runOrError"]["status"] == "STARTED"
    assert running.end(signal.SIGTERM) == 143
    assert running.children() == {}
    assert "Traceback" not in running.said()
    with dagster_instance(Settings.load({"NAMI_AMP_HOME": str(home_of(folder))})) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status.value == "CANCELED"
    (later,) = [row for row in asked(folder, "status")["integrations"] if row["integration"] == "fit-nami/later"]
    assert 0 < later["delivered"] < later["captured"]  # type: ignore[operator]


def test_a_command_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with up(tmp_path, home, **_NEVER) as running:
        assert len(running.children()) == 5
        running.process.kill()
        running.process.wait()
        wait_for(lambda: not working_on(home), seconds=30)


def test_env_file_that_says_another_home_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NAMI_AMP_HOME=/somewhere/else\n")
    done = invoke(tmp_path, "dev", settings={"NAMI_AMP_HOME": str(tmp_path / "home")})
    assert done.exit_code == 2
    assert "NAMI_AMP_HOME: the environment and .env" in one_line(done.stderr)
