"""Starts processes from one that has everything imported and nothing open, so that a start takes no time.

Each is a process of its own all the same: with its own environment, working directory, output and exit status, and to
be stopped and killed. What only an installed program has is its start: ``test_cli_run.py`` and ``test_demo.py`` have
that. ``ps`` shows the command line and the environment of the nursery.

``python -m nami_amp_pipeline_tests.support.nursery`` reads one JSON object a line and answers each with one:
``{"run": […], "out": …, "err": …, "environ": {…}, "cwd": …}`` runs ``nami-amp`` with those arguments; with
``"stop": ["deliver.post", 3]`` it stops itself there, with ``"fsize": …`` it can write no larger files, with
``"program": "package.module:main"`` it is another program.
``{"hold": "sqlite", "path": …, "out": …, "seconds": …}`` locks a file; ``{"amplitude": 30, "out": …}``
serves a local Amplitude that takes so many milliseconds. All are answered with ``{"pid": …}``.
``{"poll": pid}`` is answered with ``{"status": …}``, which is null as long as it runs.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state.store import Lease, Store, Transaction

IN_TRANSACTION = "transaction"
"""A step of this module: all of a transaction is done but its commit, so that the store is locked."""

NAMI_AMP = "nami_amp_pipeline.cli:main"

_ROOT = Path(__file__).parents[2]


class Nursery:
    """The process that starts others; its children are its own, and none is reaped before it was asked for."""

    def __init__(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NAMI_AMP_", "DAGSTER_"))}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nami_amp_pipeline_tests.support.nursery"],
            env={**kept, "PYTHONPATH": str(_ROOT)},  # the program is that of these tests
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, order: Mapping[str, Any]) -> Any:
        """Gives an order; returns the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends it, and none of its children."""
        self._process.communicate()


@cache
def nursery() -> Nursery:
    """The one of this process, for all tests."""
    made = Nursery()
    atexit.register(made.close)
    return made


class Started:
    """A process from the nursery, with the methods of :class:`subprocess.Popen` that tests use.

    Args:
        arguments: of the command.
        cwd: its working directory.
        environ: its whole environment.
        typed: what is on its standard input.
        program: the function that is its entry point, ``nami-amp`` by default.

    Attributes:
        pid: its number, which is nobody else's until :meth:`poll` has said that it ended.
        returncode: its exit status, once :meth:`poll` has said that it ended.
    """

    def __init__(
        self, arguments: Iterable[str], cwd: Path, environ: Mapping[str, str], typed: str = "", program: str = NAMI_AMP
    ) -> None:
        self._files = tempfile.TemporaryDirectory()
        self._input, self._out, self._err = (Path(self._files.name) / name for name in ("in", "out", "err"))
        self._input.write_text(typed, encoding="utf-8")
        self.returncode: int | None = None
        self.pid: int = nursery().ask(
            {
                "run": list(arguments), "cwd": str(cwd), "environ": dict(environ), "input": str(self._input),
                "out": str(self._out), "err": str(self._err), "program": program,
            }
        )["pid"]  # fmt: skip

    def poll(self) -> int | None:
        """The exit status, or None as long as it runs."""
        if self.returncode is None:
            self.returncode = nursery().ask({"poll": self.pid})["status"]
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Waits for its end; returns what it wrote to standard output and to standard error."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < until, f"it runs for {timeout} seconds: {self._err.read_text()}"
            time.sleep(0.01)
        said, complained = self._out.read_text("utf-8"), self._err.read_text("utf-8")
        self._files.cleanup()
        return said, complained

    def ended(self, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Waits for its end; returns what :func:`subprocess.run` would."""
        said, complained = self.communicate(timeout)
        assert self.returncode is not None
        return subprocess.CompletedProcess([], self.returncode, said, complained)

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


# -- in the nursery ----------------------------------------------------------------------------------------------------


def stop_at(name: str, time_of_many: int) -> None:
    """Makes this process stop (SIGSTOP) at a step, or at a place on the way to the socket."""
    from nami_amp_pipeline_tests.support import stopping

    if name in stopping.PLACES:
        stopping.stop_at(name, time_of_many)
        return
    seen: Counter[str] = Counter()

    def step(at: str) -> None:
        seen[at] += 1
        if at == name and seen[at] == time_of_many:
            os.kill(os.getpid(), signal.SIGSTOP)

    open_context, begin = Context.open, Store.begin

    def opened(*args: Any, **kwargs: Any) -> Context:
        context = open_context(*args, **kwargs)
        context.step = step
        return context

    @contextmanager
    def begun(self: Store, *, under: Iterable[Lease] = (), ending: Sequence[Lease] = ()) -> Iterator[Transaction]:
        with begin(self, under=under, ending=ending) as tx:
            yield tx
            step(IN_TRANSACTION)

    setattr(Context, "open", staticmethod(opened))  # noqa: B010 - a type checker would mind an assignment
    setattr(Store, "begin", begun)  # noqa: B010


def run(order: dict[str, Any]) -> int:
    """A program; returns its exit status."""
    if order.get("stop"):
        stop_at(*order["stop"])
    if order.get("fsize"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["fsize"], order["fsize"]))
    module, _, function = order.get("program", NAMI_AMP).partition(":")
    sys.argv = [module.partition(".")[0], *order["run"]]
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def hold(order: dict[str, Any]) -> int:
    """Locks a SQLite store or a DuckDB file for so many seconds; says when it has it."""
    connection: sqlite3.Connection | duckdb.DuckDBPyConnection
    if order["hold"] == "sqlite":
        connection = sqlite3.connect(order["path"], timeout=120, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
    else:
        connection = _opened(order["path"])
    sys.stdout.write("locked\n")
    sys.stdout.flush()
    time.sleep(order["seconds"])
    connection.close()
    return 0


def _opened(path: str) -> duckdb.DuckDBPyConnection:
    while True:
        try:
            return duckdb.connect(path)
        except duckdb.IOException:
            time.sleep(0.05)


def amplitude(order: dict[str, Any]) -> int:
    """A local Amplitude; says its address, and serves until it is killed, or the nursery has ended."""
    import random

    from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer

    options = Options(index_mode="none", latency_ms=order["amplitude"], throttle=False)
    with SandboxServer(Sandbox(options=options, rng=random.Random(0))) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.5)
    return 0


_ACTS: dict[str, Callable[[dict[str, Any]], int]] = {"run": run, "hold": hold, "amplitude": amplitude}


def _spawn(order: dict[str, Any]) -> int:
    """Starts a child with its output in files; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        if "environ" in order:
            os.environ.clear()
            os.environ.update(order["environ"])
            time.tzset()
            tempfile.tempdir = None
        os.chdir(order.get("cwd", "."))
        for descriptor, name, mode in (
            (0, order.get("input", os.devnull), os.O_RDONLY),
            (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, order.get("err", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            file = os.open(name, mode, 0o600)
            os.dup2(file, descriptor)
            os.close(file)
        (act,) = (act for name, act in _ACTS.items() if name in order)
        status = act(order)
    except BaseException:  # noqa: BLE001 - whoever started it must see it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Reads orders until there are no more."""
    import nami_amp_pipeline.runner
    import nami_amp_pipeline.sandbox  # noqa: F401 - what the commands would import when they run

    gc.collect()
    gc.freeze()  # what was imported is not looked through again in each child
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "poll" in order:
            pid, result = os.waitpid(order["poll"], os.WNOHANG)
            answer = {"status": os.waitstatus_to_exitcode(result) if pid else None}
        else:
            answer = {"pid": _spawn(order)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
