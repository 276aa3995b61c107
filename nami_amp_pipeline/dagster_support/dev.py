"""Runs Dagster and the Control Center on the home of the settings, and a local Amplitude where integrations have one.

Everything is of one session: a lock in the home lets only one be under way, and ``dev/session.json`` says where.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from nami_amp_pipeline.dagster_support.children import Child, ChildDied, Children
from nami_amp_pipeline.dagster_support.instance import CODE_LOCATION, dagster_home, dagster_instance
from nami_amp_pipeline.dagster_support.ports import HOST, HeldPort, hold_port, is_free, local_ports, taken, was_lost
from nami_amp_pipeline.errors import Blocked, Busy, Misconfigured
from nami_amp_pipeline.settings import Settings, contradictions

PORT: Final = 3000
"""Where Dagster's UI is, if nothing else is there and no port is remembered."""

CONTROL_CENTER_PORT: Final = 8770
"""The same for the Control Center."""

START_SECONDS: Final = 180.0
"""How long the processes may take until they answer: a slow machine loads Dagster for a minute."""

_PART: Final = (sys.executable, "-m", "nami_amp_pipeline.dagster_support.part")
_MOST_STARTS: Final = 4
_LEFT_OVER_SECONDS: Final = 15.0
_ASK_SECONDS: Final = 5.0

CODE_SERVER, DAEMON, WEBSERVER, SANDBOX = "code server", "daemon", "webserver", "sandbox"
CONTROL_CENTER: Final = "control center"

_LOCATIONS: Final = "{ workspaceOrError { ... on Workspace { locationEntries { displayMetadata { key value } } } } }"

_STOP_ORDER: Final = ((DAEMON, WEBSERVER, CONTROL_CENTER), (CODE_SERVER,))
"""First what starts runs, then the runs; sandboxes last, as they answer the requests of runs."""


@dataclass(frozen=True)
class Session:
    """Where the last session of a home is, or was.

    Attributes:
        url: of Dagster's UI.
        sandboxes: files of the local Amplitudes' events in the home, by port.
        pid: the process of ``nami-amp dev``.
        control_center: where the Control Center is.
    """

    url: str = ""
    sandboxes: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    control_center: str = ""


def _port_of(url: str) -> int | None:
    last = url.rpartition(":")[2]
    return int(last) if last.isdigit() else None


def session_of(settings: Settings) -> Session:
    """The last session of a home; an empty one if there was none."""
    try:
        read = json.loads(_folder(settings).joinpath("session.json").read_text("utf-8"))
        control_center = str(read.get("control_center", ""))  # an older version had none
        return Session(str(read["url"]), dict(read["sandboxes"]), int(read["pid"]), control_center)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Session()


def under_way(settings: Settings) -> Session | None:
    """The session of ``nami-amp dev`` that is under way on a home; None if none is."""
    lock = _folder(settings) / "lock"
    if not lock.exists():
        return None
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            session = session_of(settings)
            return session if _lives(session.pid) else None  # what a killed session left behind is being ended
    return None


@contextmanager
def alone(settings: Settings) -> Iterator[int]:
    """Holds the lock of a home, so that no second session begins.

    Yields:
        The lock's file descriptor: for as long as any process has it open, the lock is held.

    Raises:
        Busy: one is under way; the message says where.
        Blocked: the folder cannot be written.
    """
    folder = _folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("ab")
    except OSError as error:
        raise Blocked(f"cannot write to {folder}: {error.strerror or error}") from None
    with file:
        until = time.monotonic() + _LEFT_OVER_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # What a killed session left behind ends within seconds; a session that lives does not.
                if _lives(session_of(settings).pid) or time.monotonic() >= until:
                    raise Busy(_said_of(settings)) from None
                time.sleep(0.2)
        yield file.fileno()


def _said_of(settings: Settings) -> str:
    found = session_of(settings)
    where = f" at {found.url} (process {found.pid})" if found.url else ""
    return f"'nami-amp dev' is under way already on {settings.home.absolute()}{where}; Ctrl-C there ends it"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def check_environment() -> None:
    """Sees to it that Dagster's processes will have the settings of this one.

    Raises:
        Misconfigured: Dagster would take other values from ``.env`` than the environment has.
    """
    names = contradictions()
    if names:
        raise Misconfigured(
            f"{', '.join(names)}: the environment and .env in this folder say different things, and Dagster takes what "
            "is in .env; unset the variable, or start this in another folder"
        )


def code_server_command(place: Path) -> list[str]:
    """The command that serves our code on a socket.

    Not that of ``dagster code-server``: its inner process, which holds the code, ends when a laptop sleeps, and nothing
    notices that.
    """
    code = ["--module-name", "nami_amp_pipeline.definitions", "--location-name", CODE_LOCATION]
    how = ["--use-python-environment-entry-point", "--log-level", "warning"]
    return [*_PART, "dagster", "api", "grpc", "--socket", str(place), *code, *how]


def daemon_command(workspace: Path) -> list[str]:
    """The command that starts Dagster's daemon."""
    return [*_PART, "dagster._daemon", "run", "--workspace", str(workspace)]


def webserver_command(port: int, workspace: Path) -> list[str]:
    """The command that starts Dagster's pages."""
    where = ["--host", HOST, "--port", str(port)]
    return [*_PART, "dagster_webserver", *where, "--workspace", str(workspace)]


@dataclass
class Dev:
    """One session.

    Args:
        settings: of the home.
        endpoints: of Amplitude, of the integrations.
        sandbox: the command that starts a local Amplitude, for a port and a file of its events.
        control_center: the command that starts the Control Center, for a port.
        wanted_port: for Dagster's UI; None for that of the last session, or one that is free.

    Attributes:
        strangers: ports of endpoints of this machine where something listens that is no local Amplitude.
    """

    settings: Settings
    endpoints: Sequence[str]
    sandbox: Callable[[int, Path], Sequence[str]]
    control_center: Callable[[int], Sequence[str]]
    wanted_port: int | None = None
    strangers: list[int] = field(default_factory=list, init=False)
    _ports: dict[str, int] = field(default_factory=dict, init=False)
    _lost: set[int] = field(default_factory=set, init=False)

    def start(self, children: Children, sockets: Path) -> Session:
        """Starts everything, and waits until all of it answers.

        A process that finds its port taken, although it was free just before, ends; then all are started once more on
        other ports, as each is told the addresses of the others.

        Args:
            children: that will hold the processes.
            sockets: a folder with a short path.

        Raises:
            Blocked: a port that was chosen is taken, or a process does not answer in time.
            Misconfigured: Dagster's settings cannot be used.
            ChildDied: a process ended.
            Ended: a signal came.
        """
        with dagster_instance(self.settings):  # makes it where it is missing, and says what is wrong with it
            pass
        for number in count(1):
            try:
                return self._start(children, sockets / str(number))
            except ChildDied as died:
                port = self._ports.get(died.child.name)
                if port is None or number == _MOST_STARTS or not was_lost(port, died.child.log):
                    raise
                if died.child.name == WEBSERVER and self.wanted_port is not None:
                    raise taken(port) from None
                self._lost.add(port)
                stop(children)
        raise AssertionError("unreachable")

    def _start(self, children: Children, sockets: Path) -> Session:
        last = session_of(self.settings)
        sockets.mkdir()
        with ExitStack() as held:
            silent = self._silent()
            avoid = {*self._lost, *local_ports(self.endpoints)}
            pages = held.enter_context(closing(hold_port(self.wanted_port, _port_of(last.url), PORT, avoid)))
            beside = held.enter_context(
                closing(hold_port(None, _port_of(last.control_center), CONTROL_CENTER_PORT, avoid))
            )
            session = Session(
                f"http://{HOST}:{pages.port}",
                _journals(silent, last),
                os.getpid(),
                f"http://{HOST}:{beside.port}",
            )
            self._write(session)
            environ = self._environ(session)
            for port in silent:
                self._start_sandbox(children, port, session.sandboxes[str(port)], environ)
            center = self._start_control_center(children, beside, environ)
            self._start_dagster(children, sockets, session, pages, environ)
            self._await(children, center, lambda: _says(center, session.control_center))
        return session

    def _start_control_center(self, children: Children, held: HeldPort, environ: Mapping[str, str]) -> Child:
        local = [endpoint for endpoint in self.endpoints if local_ports([endpoint])]
        # Without a sign-in, as it is on this machine only; a local Amplitude of the home may be chosen there.
        allowed = ",".join(dict.fromkeys(filter(None, (self.settings.control_center_endpoints, *local))))
        own = {
            "NAMI_AMP_CONTROL_CENTER_ENDPOINTS": allowed,
            "NAMI_AMP_CONTROL_CENTER_SIGN_IN": "none",
            "NAMI_AMP_CONTROL_CENTER_URL": "",
        }
        return self._start_on(children, CONTROL_CENTER, held, self.control_center(held.port), {**environ, **own})

    def _start_on(
        self, children: Children, name: str, held: HeldPort, command: Sequence[str], environ: Mapping[str, str]
    ) -> Child:
        """Starts a process on a port that was held for it."""
        self._ports[name] = held.port
        held.close()
        return children.start(name, command, self.log(name), environ)

    def _start_dagster(
        self, children: Children, sockets: Path, session: Session, held: HeldPort, environ: Mapping[str, str]
    ) -> None:
        place = sockets / "code-server"
        code = children.start(CODE_SERVER, code_server_command(place), self.log(CODE_SERVER), environ)
        workspace = sockets / "workspace.yaml"
        server = {"socket": str(place), "location_name": CODE_LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        self._await(children, code, lambda: _serves(place))
        children.start(DAEMON, daemon_command(workspace), self.log(DAEMON), environ)
        pages = self._start_on(children, WEBSERVER, held, webserver_command(held.port, workspace), environ)
        self._await(children, pages, lambda: _shows(session.url, place))

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return _folder(self.settings) / f"{name.replace(' ', '-')}.log"

    def _silent(self) -> list[int]:
        """Ports of endpoints of this machine where nothing listens; notes where something else than a sandbox does."""
        ports = local_ports(self.endpoints)
        silent = [port for port in ports if is_free(port)]
        self.strangers = [port for port in ports if port not in silent and not _is_sandbox(port)]
        return silent

    def _start_sandbox(self, children: Children, port: int, name: str, environ: Mapping[str, str]) -> None:
        called = SANDBOX if name == "sandbox.ndjson" else f"{SANDBOX} {port}"
        self._ports[called] = port
        child = children.start(called, self.sandbox(port, self.settings.home / name), self.log(called), environ)
        self._await(children, child, lambda: _says(child, f"http://{HOST}:{port}"))

    def _await(self, children: Children, child: Child, ready: Callable[[], bool]) -> None:
        if not children.wait_until(ready, START_SECONDS):
            raise Blocked(f"the {child.name} did not answer within {START_SECONDS:.0f} s; its log is {child.log}")

    def _environ(self, session: Session) -> dict[str, str]:
        environ = {**os.environ, "DAGSTER_HOME": str(dagster_home(self.settings)), "PYTHONUNBUFFERED": "1"}
        if not self.settings.dagster_url:
            environ["NAMI_AMP_DAGSTER_URL"] = session.url  # alerts lead to these pages
        return environ

    def _write(self, session: Session) -> None:
        file = _folder(self.settings) / "session.json"
        aside = file.with_name("session.json.part")
        aside.write_text(json.dumps(asdict(session), indent=2) + "\n", "utf-8")
        aside.replace(file)


def _journals(silent: Sequence[int], last: Session) -> dict[str, str]:
    """The file of events for each port: the one that it had; the first gets that of the demo."""
    known = dict(last.sandboxes)
    for port in silent:
        taken_names = set(known.values())
        demo = "sandbox.ndjson"
        known.setdefault(str(port), demo if demo not in taken_names else f"sandbox-{port}.ndjson")
    return known


def stop(children: Children) -> None:
    """Stops everything in order, so that a run that is under way can record what it did."""
    children.stop(_STOP_ORDER)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that only this user can enter, whose path is short enough for sockets."""
    longest_path = 60
    where = None if len(tempfile.gettempdir()) < longest_path else "/tmp"  # noqa: S108 - a folder of its own in it
    with tempfile.TemporaryDirectory(prefix="nami-amp-dev-", dir=where, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _is_sandbox(port: int) -> bool:
    """Whether what listens on a port of this machine is a local Amplitude."""
    return "projects" in (_asked(f"http://{HOST}:{port}/sandbox/summary") or ())


def _says(child: Child, url: str) -> bool:
    """Whether a process of this program has said that it listens; another one may answer at the same address."""
    return f" at {url}" in child.log.read_text("utf-8", "replace")


def _shows(url: str, place: Path) -> bool:
    """Whether Dagster's pages are there, with the code of this session; those of another may answer instead."""
    answer = _asked(f"{url}/graphql", {"query": _LOCATIONS})
    return answer is not None and str(place) in json.dumps(answer, ensure_ascii=False)


def _asked(url: str, body: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What a server of this machine answers, if it is a JSON object."""
    with requests.Session() as asking:
        asking.trust_env = False  # no proxy leads to this machine
        try:
            found = asking.request("GET" if body is None else "POST", url, json=body, timeout=_ASK_SECONDS).json()
        except (requests.RequestException, ValueError):
            return None
    return found if isinstance(found, dict) else None


def _serves(place: Path) -> bool:
    """Whether the code server listens, which it does once it has loaded the code."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_ASK_SECONDS)
        return place.exists() and asking.connect_ex(str(place)) == 0


def _folder(settings: Settings) -> Path:
    return settings.home.absolute() / "dev"
