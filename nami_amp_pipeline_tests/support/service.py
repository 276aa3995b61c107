"""The whole service as real processes, started by the commands of ``deploy/compose.yaml`` on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml
from cryptography.fernet import Fernet

from nami_amp_pipeline_tests.support.postgres import Postgres

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
T = TypeVar("T")
PATIENCE_SECONDS = 120.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(what: Callable[[], T], why: Callable[[], str] = lambda: "", seconds: float = PATIENCE_SECONDS) -> T:
    """Asks until the answer is true, and returns it: often at first, then twice a second, as each question costs."""
    until = time.monotonic() + seconds
    pause = 0.05
    while not (answer := what()):
        assert time.monotonic() < until, why()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return answer


@dataclass
class Service:
    """Processes of a deployment, each by its name in the compose file.

    Attributes:
        folder: everything that is on disk.
        environ: what all processes are given; the secrets too, for they are of one user here.
        url: of the pages.
        code_port: where the code server listens.
    """

    folder: Path
    environ: dict[str, str]
    url: str
    code_port: int
    compose: Mapping[str, Any]
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @staticmethod
    def prepare(folder: Path, postgres: Postgres, **settings: str) -> Service:
        """Lays the files of ``deploy/`` out as the image does, with empty databases."""
        deploy = folder / "deploy"
        (deploy / "celery").mkdir(parents=True)
        for name in ("dagster.yaml", "workspace.yaml", "celery/dagster.yaml", "celery/worker.yaml"):
            shutil.copy(ROOT / "deploy" / name, deploy / name)
        code_port, port = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        environ = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),  # the program is that of these tests, wherever it is installed from
            "DAGSTER_HOME": str(deploy),
            "DAGSTER_PG_URL": postgres.fresh_database(),
            "DAGSTER_CODE_SERVER_HOST": "127.0.0.1",
            "DAGSTER_CODE_SERVER_PORT": str(code_port),
            "NAMI_AMP_HOME": str(folder / "home"),
            "NAMI_AMP_STATE_URL": postgres.fresh_database(),
            "NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database(),
            "NAMI_AMP_ENCRYPTION_KEY": Fernet.generate_key().decode(),
            "NAMI_AMP_DAGSTER_URL": url,
            **settings,
        }
        compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
        return Service(folder, environ, url, code_port, compose)

    def _command(self, command: Sequence[str]) -> list[str]:
        port = self.url.rpartition(":")[2]
        here = {"0.0.0.0": "127.0.0.1", "4000": str(self.code_port), "3000": port}
        return [here.get(word, word.replace("127.0.0.1:3000", f"127.0.0.1:{port}")) for word in command]

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command of the compose file to its end."""
        return subprocess.run(
            self._command(command),
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def healthy(self, name: str) -> bool:
        """What the health check of a service says."""
        test = self.compose[name]["healthcheck"]["test"]
        return self.run(test[1:]).returncode == 0

    def migrate(self) -> None:
        """The service ``migrate``."""
        done = self.run(self.compose["migrate"]["command"])
        assert done.returncode == 0, done.stderr

    def start(self, name: str, command: Sequence[str] | None = None) -> None:
        """Starts a service, by its command in the compose file or by another."""
        with self.log_file(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._command(command or self.compose[name]["command"]),
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log_file(self, name: str) -> Path:
        """Where the console of a service goes."""
        return self.folder / f"{name}.log"

    def log(self, name: str) -> str:
        """What a service wrote."""
        return self.log_file(name).read_text()

    def stop(self, name: str, seconds: float = 30) -> float:
        """Stops a service as its container would be, the whole group at once; returns how long it took."""
        process = self._running.pop(name)
        begun = time.monotonic()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        return time.monotonic() - begun

    def kill(self, name: str) -> None:
        """Ends a service as a failing machine would, the whole group at once."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def group(self, name: str) -> int | None:
        """The process group of a service; None if it does not run."""
        process = self._running.get(name)
        return None if process is None else process.pid

    def answers(self, port: int) -> bool:
        """Whether something listens on a port; fails if a process is gone."""
        for name, process in self._running.items():
            assert process.poll() is None, f"{name} ended: {self.log(name)}"
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", port)) == 0

    def close(self) -> None:
        """Stops what still runs."""
        for name in list(self._running):
            self.stop(name, 10)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Asks the webserver's GraphQL."""
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=PATIENCE_SECONDS
        )
        found: dict[str, Any] = answer.json()
        assert "errors" not in found, found
        data: dict[str, Any] = found["data"]
        return data


@contextmanager
def service(folder: Path, postgres: Postgres, **settings: str) -> Iterator[Service]:
    """Databases migrated, code server and webserver up; the daemon is left to whoever wants it."""
    made = Service.prepare(folder, postgres, **settings)
    try:
        made.migrate()
        made.start("code-server")
        made.start("webserver")
        wait_for(lambda: made.answers(made.code_port), lambda: made.log("code-server"))
        wait_for(lambda: made.answers(int(made.url.rpartition(":")[2])), lambda: made.log("webserver"))
        yield made
    finally:
        made.close()
