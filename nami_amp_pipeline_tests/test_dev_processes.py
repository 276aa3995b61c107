"""How ``nami-amp dev`` keeps its processes: ports that are taken, deaths, signals, and nothing left behind.

Small programs stand in for the processes; ``test_dev.py`` has the real ones.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import HTTPServer
from pathlib import Path

import pytest
from click.testing import Result

from nami_amp_pipeline.dagster_support import dev as library
from nami_amp_pipeline.dagster_support import orphans, ports
from nami_amp_pipeline.dagster_support.children import Children, Heir
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.sandbox import Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline_tests.support.command_line import add, environment, invoke, one_line
from nami_amp_pipeline_tests.support.dev_stand_ins import Pages, command, patched
from nami_amp_pipeline_tests.support.development import working_on
from nami_amp_pipeline_tests.support.scene import WARNINGS
from nami_amp_pipeline_tests.support.service import free_port, wait_for

pytestmark = pytest.mark.filterwarnings(WARNINGS)

UP = threading.Event()
"""Set once a session is up, and all of it was said."""

NAMES = ("code server", "daemon", "webserver", "control center", "sandbox")


@pytest.fixture(scope="module")
def sandbox_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sandbox_port: int) -> Path:
    """A working directory whose home has an integration with an endpoint of this machine."""
    folder = tmp_path_factory.mktemp("dev")
    add(folder, f"http://127.0.0.1:{sandbox_port}/2/httpapi")
    return folder


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Has ``nami-amp dev`` start stand-ins; none of them is left after any test."""
    patched(monkeypatch)
    # Others of this machine have the usual ports.
    monkeypatch.setattr(library, "PORT", free_port())
    monkeypatch.setattr(library, "CONTROL_CENTER_PORT", free_port())
    monkeypatch.setattr(ports, "_ASK_SECONDS", 0.5)
    monkeypatch.setattr(library, "_ASK_SECONDS", 0.5)
    waits = Children.wait_until

    def wait_until(self: Children, ready: Callable[[], bool], seconds: float = math.inf) -> bool:
        if seconds == math.inf:  # it waits for its end
            UP.set()
        return waits(self, ready, seconds)

    monkeypatch.setattr(Children, "wait_until", wait_until)
    yield
    assert children(folder) == {}


def home_of(folder: Path) -> Path:
    return folder / ".nami-amp"


def children(folder: Path) -> dict[int, str]:
    return {pid: line for pid, line in working_on(home_of(folder)).items() if pid != os.getpid()}


def session_of(folder: Path) -> library.Session:
    return library.session_of(Settings.load({"NAMI_AMP_HOME": str(home_of(folder))}))


def dev(folder: Path, *arguments: str) -> Result:
    """The command, in this process."""
    return invoke(folder, "dev", *arguments, settings={"NAMI_AMP_HOME": str(home_of(folder))})


def dev_until(act: Callable[[], object], folder: Path, *arguments: str) -> Result:
    """The command, in this process, while a thread does something once all of it is up."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            assert UP.wait(60)
            act()
        except BaseException as error:  # noqa: BLE001 - the test fails with it, in its own thread
            failed.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    UP.clear()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        return dev(folder, *arguments)
    finally:
        thread.join()
        assert not failed, failed


def process_of(folder: Path, name: str) -> list[int]:
    return [pid for pid, line in children(folder).items() if f"dev_stand_ins.py {name.replace(' ', '-')} " in line]


def end_it() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_process_that_dies_is_named_and_takes_the_others_along(folder: Path, name: str) -> None:
    def kill() -> None:
        (pid,) = process_of(folder, name)
        assert len(children(folder)) == len(NAMES) + 2, "with a run's process, and the heir"
        os.kill(pid, signal.SIGKILL)

    done = dev_until(kill, folder)
    log = home_of(folder) / "dev" / f"{name.replace(' ', '-')}.log"
    assert done.exit_code == 1
    said = done.stderr.splitlines()[-1]
    assert said == f"nami-amp: the {name} ended by SIGKILL, and the others were stopped; its log is {log}"
    assert log.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(folder: Path, number: signal.Signals) -> None:
    assert dev_until(lambda: os.kill(os.getpid(), number), folder).exit_code == 128 + number


def test_a_signal_while_it_starts_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, code_server=lambda _place: command("daemon", "-"))

    def interrupt() -> None:
        wait_for(lambda: process_of(folder, "daemon"))
        end_it()

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = dev(folder)
    thread.join()
    assert (done.exit_code, done.stderr) == (130, "")


class Thief:
    """Listens on ports in the moment in which they are left to a process."""

    def __init__(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, *, answers: bool) -> None:
        self.ports: list[int] = []
        self._stack = stack
        self._answers = answers
        self._close = ports.HeldPort.close
        thief = self

        def close(held: ports.HeldPort) -> None:
            port = held.port
            thief._close(held)
            if thief.wants(port):
                thief.take(port)

        monkeypatch.setattr(ports.HeldPort, "close", close)

    def wants(self, port: int) -> bool:
        """Whether this port is to be stolen."""
        raise NotImplementedError

    def take(self, port: int) -> None:
        """Steals it."""
        self.ports.append(port)
        if not self._answers:
            listening = self._stack.enter_context(closing(socket.socket()))
            listening.bind(("127.0.0.1", port))
            listening.listen()
            return
        server = self._stack.enter_context(HTTPServer(("127.0.0.1", port), Pages))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(server.shutdown)


@contextmanager
def thief(
    monkeypatch: pytest.MonkeyPatch, wants: Callable[[Thief, int], bool], *, answers: bool = False
) -> Iterator[Thief]:
    """Steals ports."""
    with ExitStack() as stack:
        made = Thief(stack, monkeypatch, answers=answers)
        monkeypatch.setattr(made, "wants", lambda port: wants(made, port))
        yield made


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("first", ["PORT", "CONTROL_CENTER_PORT"])
@pytest.mark.slow
def test_a_port_that_is_taken_between_the_look_and_the_bind_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: str, answers: bool
) -> None:
    (home_of(folder) / "dev" / "session.json").unlink(missing_ok=True)
    wanted = getattr(library, first)

    def wants(stolen: Thief, port: int) -> bool:
        return port in range(wanted, wanted + 20) and not stolen.ports

    with thief(monkeypatch, wants, answers=answers) as stolen:
        found: list[library.Session] = []

        def look() -> None:
            found.append(session_of(folder))
            end_it()

        done = dev_until(look, folder)
        assert (done.exit_code, done.stderr) == (130, "")
        (port,) = stolen.ports
        assert f":{port}" not in f"{found[0].url} {found[0].control_center}"
        assert found[0].url in done.stdout
        assert found[0].control_center in done.stdout


def test_a_port_that_was_chosen_and_is_taken_then_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = free_port()
    with thief(monkeypatch, lambda stolen, port: port == chosen and not stolen.ports):
        done = dev(folder, "--port", str(chosen))
    assert done.exit_code == 1
    assert one_line(done.stderr) == f"nami-amp: port {chosen} is taken: give --port another one, or leave it out\n"


def test_a_sandbox_whose_port_is_taken_then_is_done_without_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, sandbox_port: int
) -> None:
    with thief(monkeypatch, lambda stolen, port: port == sandbox_port and not stolen.ports):
        done = dev_until(end_it, folder)
    assert done.exit_code == 130
    assert f"integrations send to port {sandbox_port} of this machine, where a program listens that is no local " in (
        one_line(done.stderr)
    )
    assert "Sandbox" not in done.stdout


def test_a_sandbox_that_runs_already_is_used(folder: Path, sandbox_port: int) -> None:
    with SandboxServer(Sandbox(), port=sandbox_port):
        done = dev_until(end_it, folder)
    assert (done.exit_code, done.stderr) == (130, "")
    assert f"Sandbox\thttp://127.0.0.1:{sandbox_port}\n" in done.stdout


def test_a_process_that_ends_for_another_reason_is_not_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    program = f"open({str(started)!r}, 'a').write('once '); raise SystemExit(7)"
    patched(monkeypatch, webserver=lambda _port, _workspace: [sys.executable, "-c", program])
    done = dev(folder)
    assert done.exit_code == 1
    assert "the webserver ended with exit status 7, and the others were stopped" in one_line(done.stderr)
    assert started.read_text() == "once "


def test_the_port_of_the_pages_is_none_that_another_of_its_processes_has(folder: Path, sandbox_port: int) -> None:
    taken = dev(folder, "--port", str(sandbox_port))
    assert f"port {sandbox_port} is taken" in one_line(taken.stderr)
    found: list[library.Session] = []

    def look() -> None:
        found.append(session_of(folder))
        end_it()

    (home_of(folder) / "dev" / "session.json").unlink(missing_ok=True)
    dev_until(look, folder, "--port", str(library.CONTROL_CENTER_PORT))
    assert found[0].url == f"http://127.0.0.1:{library.CONTROL_CENTER_PORT}"
    assert found[0].control_center != found[0].url


@pytest.mark.slow
def test_without_an_integration_it_says_so_and_starts_no_sandbox(tmp_path: Path) -> None:
    done = dev_until(end_it, tmp_path)
    assert done.exit_code == 130
    assert f"There is no integration in {home_of(tmp_path) / 'state.db'} yet" in done.stdout
    assert "Sandbox" not in done.stdout


@contextmanager
def own_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process of its own, once it is up."""
    environ = environment(folder, NAMI_AMP_HOME=str(home_of(folder)))
    program = [sys.executable, "-m", "nami_amp_pipeline_tests.support.dev_with_stand_ins", "dev"]
    with subprocess.Popen(program, cwd=folder, env=environ, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            wait_for(lambda: "Ctrl-C ends it." in running.stdout.readline().decode(), seconds=60)  # type: ignore[union-attr]
            yield running
        finally:
            running.kill()


@pytest.mark.slow
def test_what_a_killed_one_leaves_behind_is_ended_before_the_next_one_begins(folder: Path) -> None:
    with own_process(folder) as running:
        before = session_of(folder)
        second = dev(folder)
        assert f"is under way already on {home_of(folder)} at {before.url}" in one_line(second.stderr)
        running.kill()  # the pages keep their port for seconds yet
        running.wait()
    assert library.under_way(Settings.load({"NAMI_AMP_HOME": str(home_of(folder))})) is None
    left = set(children(folder))
    found: list[library.Session] = []

    def look() -> None:
        found.append(session_of(folder))
        assert not left & children(folder).keys()
        end_it()

    assert dev_until(look, folder).exit_code == 130
    assert left
    assert (found[0].url, found[0].control_center) == (before.url, before.control_center)


def test_groups_that_a_killed_session_left() -> None:
    assert orphans.left_by(["+11\n", "+12\n", "-11\n", "+13\n", "-1"]) == [12, 13]
    assert orphans.left_by(["+11\n", "+1"]) == [11], "it was killed while it wrote the second"
    assert orphans.left_by([]) == []


def test_folders_of_a_killed_session_are_removed(tmp_path: Path) -> None:
    left, other = tmp_path / "left", tmp_path / "other"
    for folder in (left / "1", other):
        folder.mkdir(parents=True)
    heir = Heir(removes=[left])
    heir.leaves()
    assert (left.exists(), other.exists()) == (False, True)


def test_a_group_that_does_not_end_is_killed_with_all_that_it_has_started() -> None:
    program = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.fork(); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() + stubborn.stdout.readline() == b"\n\n"
        threading.Thread(target=stubborn.wait).start()  # as init does
        orphans.end([stubborn.pid], seconds=0.3)
        wait_for(lambda: not orphans.tell(stubborn.pid, 0))


def test_ports_that_nobody_can_have_are_said(tmp_path: Path) -> None:
    with closing(ports.HeldPort(0)) as held:
        assert not ports.is_free(held.port)
        with pytest.raises(Blocked, match="is taken"):
            ports.hold_port(held.port, None, 3000)
        with closing(ports.hold_port(None, held.port, held.port, {held.port + 1})) as other:
            assert other.port not in (held.port, held.port + 1)
    assert ports.is_free(held.port)
    assert not ports.was_lost(held.port, tmp_path / "no.log")
    assert library.session_of(Settings.load({"NAMI_AMP_HOME": str(tmp_path)})) == library.Session()


def test_endpoints_where_a_sandbox_can_be() -> None:
    endpoints = ["us", "http://127.0.0.1:8765/2/httpapi", "http://localhost:8765/batch", "http://[::1]:9/2/httpapi",
                 "https://127.0.0.1:4/2/httpapi", "http://localhost:77/2/httpapi"]  # fmt: skip
    assert ports.local_ports(endpoints) == [8765, 77]
