"""``nami-amp dev``: pages that answer, one history, one session a home, ports that stay, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import orjson
import pytest
import requests

from nami_amp_pipeline.dagster_support import dev as library
from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import environment, nami_amp, one_line
from nami_amp_pipeline_tests.support.development import COMMAND, development, up, working_on
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a blank in its name, in which the demo has run in a home with another one."""
    folder = tmp_path_factory.mktemp("a folder")
    done = call(folder, "demo", "--users", "60", "--port", str(free_port()))
    assert done.returncode == 0, done.stderr
    return folder


def home_of(folder: Path) -> Path:
    return folder / "the home"


def call(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a command on the home of a folder."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(folder, NAMI_AMP_HOME=str(home_of(folder)), **settings),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.contract("6.10")
def test_pages_answer_a_run_works_and_a_signal_leaves_nothing(folder: Path) -> None:
    with up(folder, home_of(folder)) as running:
        assert requests.get(f"{running.url}/server_info", timeout=30).ok
        said = running.said()
        (sandbox,) = [line.partition("\t")[2] for line in said.splitlines() if line.startswith("Sandbox\t")]
        (pages,) = [line.partition("\t")[2] for line in said.splitlines() if line.startswith("Control Center\t")]
        form = requests.get(f"{pages}/apps/radio-nami/integrations/amplitude/new", timeout=30)
        assert f"{sandbox}/2/httpapi" in form.text, "the local Amplitude can be chosen"
        received = requests.get(f"{sandbox}/sandbox/summary", timeout=30).json()["events"]
        assert received > 100, "it has the events of the demo"
        before = running.ask(_RUNS)["runsOrError"]["results"]
        assert [run["status"] for run in before][-1:] == ["SUCCESS"], "the run of the demo is in its history"
        launched = running.ask(_LAUNCH)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id = launched["run"]["runId"]
        wait_for(
            lambda: running.ask(_RUN, runId=run_id)["runOrError"]["status"] in ("SUCCESS", "FAILURE"), running.logs
        )
        assert running.ask(_RUN, runId=run_id)["runOrError"]["status"] == "SUCCESS", running.logs()
        assert len(running.children()) >= 4

        second = call(folder, "dev")
        assert second.returncode == 1
        assert f"is under way already on {home_of(folder)} at {running.url}" in one_line(second.stderr)

        assert running.end(signal.SIGTERM) == 143
        assert running.children() == {}
        assert "Traceback" not in running.said()
    standing = orjson.loads(call(folder, "status", "--json").stdout)["integrations"]
    assert [row["pending"] for row in standing] == [0, 0]


def test_a_run_under_way_records_what_it_did_when_everything_is_stopped(folder: Path) -> None:
    assert call(folder, "demo", "--users", "60", NAMI_AMP_BATCH_EVENTS="20").returncode == 0
    moved = call(folder, "integrations", "add", "fit-nami", "later", "--endpoint", sandbox_of(folder),
                 "--allow-custom-endpoint", "--api-key-env", "KEY", "--start-from", "beginning",
                 "--user-id", "nami_user_id")  # fmt: skip
    assert moved.returncode == 0, moved.stderr
    never = {"NAMI_AMP_TICK_CRON": "0 0 1 1 *"}  # so that the run of this test is not queued behind another
    with up(folder, home_of(folder), NAMI_AMP_BATCH_EVENTS="10", NAMI_AMP_MAX_LANES="1", **never) as running:
        page = sandbox_of(folder).removesuffix("/2/httpapi")
        slow = requests.post(f"{page}/sandbox/faults", json=[{"kind": "slow", "seconds": 1.5}], timeout=30)
        assert slow.ok, slow.text
        run_id = running.ask(_LAUNCH)["launchRun"]["run"]["runId"]
        events = requests.get(f"{page}/sandbox/summary", timeout=30).json()["events"]
        wait_for(lambda: requests.get(f"{page}/sandbox/summary", timeout=30).json()["events"] > events, running.logs)
        assert running.ask(_RUN, runId=run_id)["runOrError"]["status"] == "STARTED"
        assert running.end() == 143
        assert running.children() == {}
    with dagster_instance(Settings.load({"NAMI_AMP_HOME": str(home_of(folder))})) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status.value == "CANCELED"
    rows = {row["integration"]: row for row in orjson.loads(call(folder, "status", "--json").stdout)["integrations"]}
    assert 0 < rows["fit-nami/later"]["delivered"] < rows["fit-nami/later"]["captured"]
    assert call(folder, "integrations", "remove", "fit-nami/later", "--yes").returncode == 0


def sandbox_of(folder: Path) -> str:
    """The endpoint of the demo's integrations."""
    shown = orjson.loads(call(folder, "integrations", "show", "fit-nami/demo", "--json").stdout)
    found: str = shown["endpoint"]
    return found


def test_a_port_that_is_taken_is_not_used(folder: Path) -> None:
    wanted = free_port()
    with up(folder, home_of(folder), "--port", str(wanted)) as running:
        assert running.url == f"http://127.0.0.1:{wanted}"
        assert running.end(signal.SIGINT) == 130
        assert running.children() == {}
    with socket.socket() as other:
        other.bind(("127.0.0.1", wanted))
        other.listen()
        taken = call(folder, "dev", "--port", str(wanted))
        assert (taken.returncode, f"port {wanted} is taken" in one_line(taken.stderr)) == (1, True)
        with up(folder, home_of(folder)) as running:
            assert running.url != f"http://127.0.0.1:{wanted}"


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("dagster_webserver", "webserver"),
        ("code-server start", "code server"),
    ],
)
def test_a_child_that_dies_is_named_and_takes_the_others_along(folder: Path, part: str, name: str) -> None:
    with up(folder, home_of(folder)) as running:
        os.kill(running.child(part), signal.SIGKILL)
        assert running.process.wait(60) == 1
        last = running.said().splitlines()[-1]
        log = home_of(folder) / "dev" / f"{name.replace(' ', '-')}.log"
        assert last == f"nami-amp: the {name} ended by SIGKILL, and the others were stopped; its log is {log}"
        assert log.exists()
        assert "Traceback" not in running.said()
        assert running.children() == {}


def test_a_command_that_is_killed_leaves_nothing_and_the_next_one_has_its_port(folder: Path) -> None:
    with up(folder, home_of(folder)) as running:
        running.process.kill()
        running.process.wait()
        with up(folder, home_of(folder)) as again:
            wait_for(lambda: len(working_on(home_of(folder))) <= 1 + len(again.children()), again.logs)
            assert again.url == running.url
            assert again.end() == 143
        wait_for(lambda: not working_on(home_of(folder)), seconds=30)


def test_a_signal_while_it_starts_ends_it(folder: Path) -> None:
    with development(folder, home_of(folder)) as starting:
        wait_for(lambda: any("code-server" in line for line in starting.children().values()), starting.said)
        assert starting.end(signal.SIGINT) == 130
        assert starting.children() == {}
        assert "Traceback" not in starting.said()


def test_env_file_that_says_another_home_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NAMI_AMP_HOME=/somewhere/else\n")
    done = nami_amp(tmp_path, "dev", NAMI_AMP_HOME=str(home_of(folder)))
    assert done.returncode == 2
    assert "NAMI_AMP_HOME: the environment and .env" in one_line(done.stderr)


def test_without_an_integration_it_says_so_and_starts_no_sandbox(tmp_path: Path) -> None:
    with up(tmp_path, tmp_path / "home") as running:
        assert f"There is no integration in {tmp_path / 'home' / 'state.db'} yet" in running.said()
        assert "Sandbox" not in running.said()
        assert running.end() == 143


def test_ports_that_nobody_can_have_are_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not library.is_free(port)
        with pytest.raises(Blocked, match="is taken"):
            library.choose_port(port, None)
        assert library.choose_port(None, port) != port
    assert library.session_of(Settings.load({"NAMI_AMP_HOME": str(tmp_path)})) == library.Session()


def test_endpoints_where_a_sandbox_can_be() -> None:
    endpoints = ["us", "http://127.0.0.1:8765/2/httpapi", "http://localhost:8765/batch", "http://[::1]:9/2/httpapi",
                 "https://127.0.0.1:4/2/httpapi", "http://localhost:77/2/httpapi"]  # fmt: skip
    assert library.local_ports(endpoints) == [8765, 77]
