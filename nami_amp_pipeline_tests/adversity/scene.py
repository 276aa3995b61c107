"""One pipeline with a local Amplitude of its own, the processes that work on it, and what must hold of them."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state.integrations import NewIntegration
from nami_amp_pipeline_tests.support.nursery import nursery
from nami_amp_pipeline_tests.support.warehouses import append

BATCH = 20
LANES = 3
PROJECTS = 2
LEASE_SECONDS = 5
LOCKED = "locked by another process"
_LIBPQ = (
    "FATAL:  terminating connection due to administrator command",
    "WARNING:  terminating connection due to immediate shutdown command",
)

_FINDINGS = ("accepted_more_than_once", "order_violations", "changed_repeats", "concurrent_same_user")


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def locked(self) -> bool:
        """Whether it said that the store, or the warehouse, is locked."""
        return LOCKED in self.err


@dataclass
class Process:
    """A process under way."""

    pid: int
    out: Path
    err: Path
    begun: float = field(default_factory=time.monotonic)


class Scene:
    """A warehouse, a store and a data folder, a sandbox and a worker's nursery.

    Args:
        folder: for everything that has no other place.
        seed: of what is loaded, and of whoever asks ``rng``.
        environ: other places and settings than the usual, as ``NAMI_AMP_…``.
    """

    def __init__(self, folder: Path, seed: int, environ: dict[str, str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.rows = 0
        self.facts: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self._number = 0
        self._alive: list[Process] = []
        self._resent = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._environ = {
            "NAMI_AMP_HOME": str(folder / "home"),
            "NAMI_AMP_WAREHOUSE_URL": f"duckdb:///{folder / 'warehouse.duckdb'}",
            "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0",
            "NAMI_AMP_BATCH_EVENTS": str(BATCH),
            "NAMI_AMP_MAX_LANES": str(LANES),
            "NAMI_AMP_SEGMENT_ROWS": "150",
            "NAMI_AMP_RUN_RETRY_SECONDS": "20",
            "NAMI_AMP_LEASE_SECONDS": str(LEASE_SECONDS),
            "NAMI_AMP_HTTP_TIMEOUT_SECONDS": "2",
            "NAMI_AMP_DUCKDB_THREADS": "1",
            **(environ or {}),
        }
        self.settings = Settings.load(self._environ, folder / "no.env")
        self.in_flight = self.settings.batch_events * LANES * PROJECTS  # events of one process at most
        self.warehouse = Path(self.settings.warehouse_url.removeprefix("duckdb:///"))
        self.store_is_postgres = self.settings.state_url.startswith("postgresql")
        self.has_postgres = self.store_is_postgres or self.settings.warehouse_url.startswith("postgresql")
        self.store_file = Path(self.settings.state_url.removeprefix("sqlite:///"))

    def __enter__(self) -> Scene:
        latency = self.rng.choice((1, 5, 30))
        self._sandbox = self._spawn({"amplitude": latency})
        self._url = self._line(self._sandbox)
        # Who only looks must not lose its session for standing still as long as a worker's lease lasts.
        self.context = Context.open(self.settings.replace(lease_seconds=300))
        for number in range(PROJECTS):
            key = Secret(f"key-{number}".ljust(32, "0"))
            new = NewIntegration("app", f"i{number}", f"{self._url}/2/httpapi", key, user_id_kind="nami_user_id",
                                 allow_custom_endpoint=True, allow_shared_key=True)  # fmt: skip
            registry.add(self.context.store, self.context.cipher, new)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._alive:
            os.kill(process.pid, signal.SIGKILL)  # not reaped yet, so the number is nobody else's
        for process in list(self._alive):
            self.end(process)
        if hasattr(self, "context"):
            self.context.store.close()

    def _line(self, process: Process) -> str:
        """What a process says first, in one line."""
        while not (said := process.out.read_text()).endswith("\n"):
            assert self.poll(process) is None, process.err.read_text()
            time.sleep(0.01)
        return said.strip()

    # -- processes -------------------------------------------------------------------------------------------------

    def start(self, *arguments: str, stop: tuple[str, int] | None = None, fsize: int | None = None) -> Process:
        """``nami-amp``, by default ``run``; it stops itself at a step if told, and may write only so large files."""
        return self._spawn({"run": list(arguments or ("run",)), "stop": stop, "fsize": fsize})

    def hold(self, what: str, path: Path, seconds: float) -> Process:
        """Locks a ``sqlite`` or ``duckdb`` file from another process; returns once it has it."""
        process = self._spawn({"hold": what, "path": str(path), "seconds": seconds})
        assert self._line(process) == "locked"
        return process

    def _spawn(self, order: dict[str, Any]) -> Process:
        self._number += 1
        out, err = (self.folder / f"{self._number}.{end}" for end in ("out", "err"))
        out.touch()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NAMI_AMP_", "DAGSTER_"))}
        order |= {"environ": {**kept, **self._environ}, "out": str(out), "err": str(err)}
        process = Process(nursery().ask(order)["pid"], out, err)
        self._alive.append(process)
        return process

    def poll(self, process: Process) -> int | None:
        """The exit status of a process that has ended."""
        if process not in self._alive:
            raise ValueError("it was waited for")
        code: int | None = nursery().ask({"poll": process.pid})["status"]
        if code is not None:
            self._alive.remove(process)
        return code

    def wait(self, process: Process, seconds: float = 240.0) -> Outcome:
        """Waits for the end of a process, which must be a good one: done, or one line and 1."""
        until = time.monotonic() + seconds
        while (code := self.poll(process)) is None:
            assert time.monotonic() < until, f"a process hangs for {seconds} s"
            time.sleep(0.02)
        outcome = Outcome(code, process.out.read_text(), process.err.read_text(), time.monotonic() - process.begun)
        process.out.unlink()
        process.err.unlink(missing_ok=True)
        self._examine(outcome)
        return outcome

    def run(self, *arguments: str, fsize: int | None = None) -> Outcome:
        """``nami-amp`` to its end."""
        return self.wait(self.start(*arguments, fsize=fsize))

    def is_stopped(self, process: Process, seconds: float = 60.0) -> bool:
        """Waits until a process has stopped, or has ended instead."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "TZ":
                return state == "T"
            time.sleep(0.01)
        raise AssertionError("a process neither stopped nor ended")

    def signal(self, process: Process, *, stop: bool) -> None:
        """Stops a process, or lets it go on."""
        os.kill(process.pid, signal.SIGSTOP if stop else signal.SIGCONT)  # not reaped yet: the number is its own

    def has_ended(self, process: Process) -> bool:
        """Whether a process has ended and only waits to be asked for its status."""
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def end(self, process: Process) -> None:
        """Waits for one that only held a lock, or is killed."""
        while self.poll(process) is None:
            time.sleep(0.02)

    def _examine(self, outcome: Outcome) -> None:
        lines = outcome.err.splitlines()
        for line in list(lines):
            if line in _LIBPQ and self.has_postgres:
                # A session that ends just as it begins: libpq says so itself, before psycopg2 can tell it not to.
                self.facts["lines of libpq's own"] += 1
                lines.remove(line)
        for line in lines:
            # Names of runs, files and sizes would make each its own.
            text = re.sub(r"(/[\w.-]+)+", "PATH", re.sub(r"[0-9a-f]{8}[0-9a-f-]{24,28}", "ID", line))
            self.said[re.sub(r"\d[\d,.]*", "N", text)[:200]] += 1
        assert "Traceback" not in outcome.err + outcome.out, outcome.err
        if outcome.status == -signal.SIGALRM:  # it woke up too late between its last look and a send
            self.facts["ended by its alarm"] += 1
            self.facts["runs"] += 1
            return
        assert outcome.status in (0, 1), outcome
        assert all(line.startswith("nami-amp: ") for line in lines), outcome.err
        assert not any("this is a bug" in line for line in lines), outcome.err
        assert outcome.status == 0 or lines, outcome
        self.facts["runs"] += 1
        self.facts["ended with 1"] += outcome.status

    # -- what is there ---------------------------------------------------------------------------------------------

    def load(self, count: int, width: int = 0, users: int = 40) -> None:
        """Appends rows; a user's later rows are of later events."""
        now = datetime.now(UTC)
        rows = []
        for number in range(self.rows, self.rows + count):
            payload = {"active_entitlements": [{"entitlement_ref_id": f"e{number}", "sku_ref_id": "s"}], "n": number}
            if width:
                payload["filling"] = self.rng.randbytes(width // 2).hex()
            rows.append(
                {
                    "id": f"event-{number}",
                    "app_id": "app",
                    "event_type": "user.subscription.renewed",
                    "user_id": f"user{self.rng.randrange(users)}",
                    "created_date": datetime(2026, 9, 1, tzinfo=UTC) + timedelta(seconds=number),
                    "ingested_at": now + timedelta(microseconds=number),
                    "payload": orjson.dumps(payload).decode(),
                }
            )
        append(self.settings.warehouse_url, rows)
        self.rows += count

    def audit(self) -> dict[str, Any]:
        """What the sandbox saw."""
        with urllib.request.urlopen(f"{self._url}/sandbox/audit", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @property
    def all_accepted(self) -> bool:
        """Whether each integration's project has every event."""
        return int(self.audit()["accepted"]) == self.rows * PROJECTS

    def check(self, *, broken_off: int) -> None:
        """What must hold once everything is delivered.

        Args:
            broken_off: processes since the last check that may have left requests without a record of their answer.
        """
        audit = self.audit()
        for finding in _FINDINGS:
            assert audit[finding] == 0, (finding, audit["examples"][finding][:3])
        assert audit["accepted"] == self.rows * PROJECTS, (audit["accepted"], self.rows)
        resent = audit["duplicates"] - self._resent
        self._resent = audit["duplicates"]
        assert resent <= broken_off * self.in_flight, (
            f"{resent} events sent again, of {broken_off} processes broken off"
        )
        self.facts["most sent again in a round"] = max(self.facts["most sent again in a round"], resent)
        self.facts["sent again"] += resent
        self.check_conservation()
        for one in status(self.context, registry.all_integrations(self.context.store)):
            assert one.delivered == self.rows, one
            assert one.pending == 0, one
        left = [str(file) for file in self.settings.data_dir.rglob("*.part")]
        assert not left, left

    def check_conservation(self) -> None:
        """What must hold at every moment."""
        for one in status(self.context, registry.all_integrations(self.context.store)):
            ends = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
            assert one.captured == ends + one.pending, one
            assert min(one.delivered, one.pending) >= 0, one
