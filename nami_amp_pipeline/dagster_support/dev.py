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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
import yaml

from nami_amp_pipeline.dagster_support.children import Child, Children
from nami_amp_pipeline.dagster_support.instance import CODE_LOCATION, dagster_home, dagster_instance
from nami_amp_pipeline.errors import Blocked, Busy, Misconfigured
from nami_amp_pipeline.settings import Settings, contradictions

PORT: Final = 3000
"""Where Dagster's UI is, if nothing else is there and no port is remembered."""

CONTROL_CENTER_PORT: Final = 8770
"""The same for the Control Center."""

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 180.0
"""How long the processes may take until they answer: a slow machine loads Dagster for a minute."""

_HERE: Final = (HOST, "localhost")
_PORTS_TRIED: Final = 20
_LEFT_OVER_SECONDS: Final = 15.0
_ASK_SECONDS: Final = 5.0

CODE_SERVER, DAEMON, WEBSERVER, SANDBOX = "code server", "daemon", "webserver", "sandbox"
CONTROL_CENTER: Final = "control center"

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
            return session_of(settings)
    return None


@contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Holds the lock of a home, so that no second session begins.

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
        yield


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


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as asking:
        asking.settimeout(_ASK_SECONDS)
        if asking.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_port(wanted: int | None, last: int | None, first: int = PORT) -> int:
    """A port for pages: the one that is wanted, that of the last session, or the first that is free.

    Raises:
        Blocked: it is taken, or none is free.
    """
    if wanted is not None:
        if not is_free(wanted):
            raise Blocked(f"port {wanted} is taken: give --port another one, or leave it out")
        return wanted
    usual = range(first, first + _PORTS_TRIED)
    for port in [last, *usual] if last else usual:
        if is_free(port):
            return port
    with socket.socket() as found:
        found.bind((HOST, 0))
        free: int = found.getsockname()[1]
        return free


def local_ports(endpoints: Sequence[str]) -> list[int]:
    """The ports of endpoints where a local Amplitude of this machine can be, each once, in their order."""
    here = [parts for parts in map(urlsplit, endpoints) if parts.scheme == "http" and parts.hostname in _HERE]
    return list(dict.fromkeys(parts.port for parts in here if parts.port))


@dataclass
class Dev:
    """One session.

    Args:
        settings: of the home.
        endpoints: of the integrations that are on.
        sandbox: the command that starts a local Amplitude, for a port and a file of its events.
        control_center: the command that starts the Control Center, for a port.
        wanted_port: for Dagster's UI; None for that of the last session, or one that is free.
    """

    settings: Settings
    endpoints: Sequence[str]
    sandbox: Callable[[int, Path], Sequence[str]]
    control_center: Callable[[int], Sequence[str]]
    wanted_port: int | None = None

    def start(self, children: Children, sockets: Path) -> Session:
        """Starts everything, and waits until all of it answers.

        Args:
            children: that will hold the processes.
            sockets: a folder with a short path.

        Raises:
            Blocked: a port is taken, or a process does not answer in time.
            Misconfigured: Dagster's settings cannot be used.
            ChildDied: a process ended.
            Ended: a signal came.
        """
        last = session_of(self.settings)
        with dagster_instance(self.settings):  # makes it where it is missing, and says what is wrong with it
            pass
        port = choose_port(self.wanted_port, _port_of(last.url))
        beside = choose_port(None, _port_of(last.control_center), CONTROL_CENTER_PORT)
        session = Session(f"http://{HOST}:{port}", self._journals(last), os.getpid(), f"http://{HOST}:{beside}")
        self._write(session)
        environ = self._environ(session)
        for number, name in session.sandboxes.items():
            if int(number) in self._silent:
                self._start_sandbox(children, int(number), name, environ)
        pages = self._start_control_center(children, beside, environ)
        self._start_dagster(children, sockets, session, port, environ)
        self._await(children, pages, lambda: answers(f"{session.control_center}/static/icon.svg"))
        return session

    def _start_control_center(self, children: Children, port: int, environ: Mapping[str, str]) -> Child:
        local = [endpoint for endpoint in self.endpoints if local_ports([endpoint])]
        # Without a sign-in, as it is on this machine only; a local Amplitude of the home may be chosen there.
        allowed = ",".join(dict.fromkeys(filter(None, (self.settings.control_center_endpoints, *local))))
        own = {
            "NAMI_AMP_CONTROL_CENTER_ENDPOINTS": allowed,
            "NAMI_AMP_CONTROL_CENTER_SIGN_IN": "none",
            "NAMI_AMP_CONTROL_CENTER_URL": "",
        }
        command = self.control_center(port)
        return children.start(CONTROL_CENTER, command, self.log(CONTROL_CENTER), {**environ, **own})

    def _start_dagster(
        self, children: Children, sockets: Path, session: Session, port: int, environ: Mapping[str, str]
    ) -> None:
        place = sockets / "code-server"
        dagster = [sys.executable, "-m", "dagster"]
        code = children.start(
            CODE_SERVER,
            [*dagster, "code-server", "start", "--socket", str(place), "--module-name", "nami_amp_pipeline.definitions",
             "--location-name", CODE_LOCATION, "--use-python-environment-entry-point", "--log-level", "warning"],
            self.log(CODE_SERVER),
            environ,
        )  # fmt: skip
        workspace = sockets / "workspace.yaml"
        server = {"socket": str(place), "location_name": CODE_LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        self._await(children, code, lambda: _serves(place))
        children.start(
            DAEMON,
            [sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(workspace)],
            self.log(DAEMON),
            environ,
        )
        pages = children.start(
            WEBSERVER,
            [sys.executable, "-m", "dagster_webserver", "--host", HOST, "--port", str(port), "--workspace",
             str(workspace)],
            self.log(WEBSERVER),
            environ,
        )  # fmt: skip
        self._await(children, pages, lambda: answers(f"{session.url}/server_info"))

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return _folder(self.settings) / f"{name.replace(' ', '-')}.log"

    @cached_property
    def _silent(self) -> list[int]:
        return [port for port in local_ports(self.endpoints) if is_free(port)]

    def _journals(self, last: Session) -> dict[str, str]:
        """The file of events for each port: the one that it had; the first gets that of the demo."""
        known = dict(last.sandboxes)
        for port in self._silent:
            taken = set(known.values())
            known.setdefault(str(port), "sandbox.ndjson" if "sandbox.ndjson" not in taken else f"sandbox-{port}.ndjson")
        return known

    def _start_sandbox(self, children: Children, port: int, name: str, environ: Mapping[str, str]) -> None:
        called = SANDBOX if name == "sandbox.ndjson" else f"{SANDBOX} {port}"
        command = self.sandbox(port, self.settings.home / name)
        child = children.start(called, command, self.log(called), environ)
        self._await(children, child, lambda: answers(f"http://{HOST}:{port}/sandbox/summary"))

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


def stop(children: Children) -> None:
    """Stops everything in order, so that a run that is under way can record what it did."""
    children.stop(_STOP_ORDER)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder that only this user can enter, whose path is short enough for sockets."""
    longest_path = 60
    where = None if len(tempfile.gettempdir()) < longest_path else "/tmp"  # noqa: S108 - a folder of its own in it
    with tempfile.TemporaryDirectory(prefix="nami-amp-dev-", dir=where) as name:
        yield Path(name)


def answers(url: str) -> bool:
    """Whether a page of this machine answers."""
    with requests.Session() as asking:
        asking.trust_env = False  # no proxy leads to this machine
        try:
            return asking.get(url, timeout=_ASK_SECONDS).ok
        except requests.RequestException:
            return False


def _serves(place: Path) -> bool:
    """Whether the code server listens, which it does once it has loaded the code.

    A client of gRPC would start threads, with which the next process cannot be forked safely: it aborts now and then.
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(_ASK_SECONDS)
        return place.exists() and asking.connect_ex(str(place)) == 0


def _folder(settings: Settings) -> Path:
    return settings.home.absolute() / "dev"
