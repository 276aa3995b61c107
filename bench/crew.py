"""Celery's workers on this machine, as ``deploy/celery`` starts them, with a Redis of their own.

Runs are handed to Celery by Dagster's launcher in this process, at once: neither daemon nor webserver takes time from
the workers, and a schedule that would start runs of its own does not run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection, create_server
from types import TracebackType
from typing import Any, cast

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG

from bench import watch
from bench.part import say
from bench.scene import Home, Wrong
from nami_amp_pipeline.defs.ours import MICRO_BATCH, SHARD_TAG
from nami_amp_pipeline.operations.shards import shards

DEPLOY = Path(__file__).parent.parent / "deploy" / "celery"
_BIN = Path(sys.executable).parent
_ALL = "dagster"
_START_SECONDS = 120
_STOP_SECONDS = 15
_TICK_SECONDS = 900


@dataclass(frozen=True)
class ShardedTick:
    """One tick.

    Attributes:
        seconds: from handing over the first run to the end of the last.
        cpu: seconds of processor of all workers.
        runs: of each shard, when it began and ended, in seconds since the first was handed over.
    """

    seconds: float
    cpu: float
    runs: Mapping[str, tuple[float, float]]


def celery_environ(dagster_database: str) -> dict[str, str]:
    """What a home of a crew is given: Dagster's database, and a port for Redis that nobody listens on."""
    with closing(create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    return {"DAGSTER_PG_URL": dagster_database, "CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0"}


class Crew:
    """Workers that are warm, for a ``with`` statement.

    Args:
        home: with what :func:`celery_environ` gave.
        workers: how many.
        shards: how many runs a tick is.
    """

    def __init__(self, home: Home, workers: int, shards: int) -> None:
        self._home = home
        self._workers = workers
        self._shards = shards
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._held = ExitStack()

    def __enter__(self) -> Crew:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def tick(self, workers: int) -> ShardedTick:
        """One tick, as a run for each shard.

        Args:
            workers: that may take one: the first alone, or all.
        """
        queue = _ALL if workers > 1 else "worker-1"
        return self._execute([queue] * self._shards)

    def _start(self) -> None:
        folder = self._home.folder / "dagster"
        folder.mkdir(parents=True)
        shutil.copy(DEPLOY / "dagster.yaml", folder / "dagster.yaml")
        environ = self._home.environ
        environ |= {
            "DAGSTER_HOME": str(folder),
            "NAMI_AMP_SHARDS": str(self._shards),
            "PATH": f"{_BIN}:{os.environ['PATH']}",  # dagster-celery starts celery
        }
        port = environ["CELERY_BROKER_URL"].rpartition(":")[2].partition("/")[0]
        self._run("redis", ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", ""])
        _wait_for(int(port))
        self._held.enter_context(_set({name: environ[name] for name in ("DAGSTER_PG_URL", "CELERY_BROKER_URL")}))
        self._instance = self._held.enter_context(dg.DagsterInstance.from_config(str(folder)))
        self._instance.get_runs_count()  # the tables are made here, not by several workers at once
        names = [f"worker-{number + 1}" for number in range(self._workers)]
        for name in names:
            self._run(name, _worker(name))
        self._execute(names)  # each loads the code
        say(f"{self._workers} workers are warm")

    def _run(self, name: str, command: Sequence[str]) -> None:
        with (self._home.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command,
                cwd=self._home.folder,
                env=self._home.environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _execute(self, queues: Sequence[str]) -> ShardedTick:
        """A run for each queue, each for another shard; more queues than shards begin again with the first shard."""
        every = [str(shard or "") for shard in shards(self._shards)]
        runs = [self._made(every[number % len(every)], queue) for number, queue in enumerate(queues)]
        before, began = self._cpu(), time.time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the launcher names its task anew for each run
            for run in runs:
                self._instance.launch_run(run.run_id, cast("Any", None))  # a workspace, which the launcher never asks
        records = self._ended([run.run_id for run in runs], began)
        took = {
            f"{record.dagster_run.tags[SHARD_TAG]} by {record.dagster_run.tags[DAGSTER_CELERY_QUEUE_TAG]}": (
                (record.start_time or 0) - began,
                (record.end_time or 0) - began,
            )
            for record in records
        }
        return ShardedTick(max(end for _, end in took.values()), self._cpu() - before, took)

    def _made(self, shard: str, queue: str) -> dg.DagsterRun:
        from nami_amp_pipeline.definitions import defs

        repository = RepositoryPythonOrigin(
            sys.executable, ModuleCodePointer("nami_amp_pipeline.definitions", "defs", None)
        )
        return self._instance.create_run_for_job(
            job_def=defs.resolve_job_def(MICRO_BATCH),
            run_config={"shard": shard, "console_log_level": "CRITICAL"},
            tags={SHARD_TAG: shard, DAGSTER_CELERY_QUEUE_TAG: queue},
            job_code_origin=JobPythonOrigin(MICRO_BATCH, repository),
        )

    def _ended(self, run_ids: Sequence[str], began: float) -> Sequence[dg.RunRecord]:
        while True:
            records = self._instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids)))
            if any(record.dagster_run.is_failure_or_canceled for record in records):
                raise Wrong(f"a run failed; {self._said()}")
            if all(record.dagster_run.is_success for record in records):
                return records
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise Wrong(f"{name} ended; {self._said()}")
            if time.time() - began > _TICK_SECONDS:
                raise Wrong(f"the runs did not end; {self._said()}")
            time.sleep(0.2)

    def _said(self) -> str:
        logs = {name: (self._home.folder / f"{name}.log").read_text()[-1_000:] for name in self._processes}
        return "\n".join(f"{name}: {text}" for name, text in logs.items())

    def _cpu(self) -> float:
        return sum(watch.cpu_seconds(process.pid) for name, process in self._processes.items() if name != "redis")

    def _stop(self) -> None:
        for process in self._processes.values():
            for pid in watch.family(process.pid)[1:2] or [process.pid]:  # of a worker, Celery itself
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._held.close()


def _worker(name: str) -> list[str]:
    """The command of ``deploy/celery/compose.yaml``, listening on a queue of its own as well.

    Of several ``--queue``, Celery would hear the last alone.
    """
    return [
        str(_BIN / "dagster-celery"), "worker", "start",
        "--config-yaml", str(DEPLOY / "worker.yaml"), "--app", "dagster_celery.app",
        "--queue", f"{_ALL},{name}", "--name", name, "--", "--concurrency", "1",
        "--disable-prefetch",
    ]  # fmt: skip


def _wait_for(port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            with create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class _set:  # noqa: N801 - used as a function
    """Variables of this process for a while: Dagster reads them when an instance is opened."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self._own = own

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._own}
        os.environ.update(self._own)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
