"""Starts processes from one that has everything imported and nothing open, so that a start takes no time.

``python -m nami_amp_pipeline_tests.adversity.worker`` reads one JSON object a line and answers each with one:
``{"run": […], "out": …, "err": …, "stop": ["deliver.post", 3], "fsize": …}`` runs ``nami-amp`` with those arguments;
``{"hold": "sqlite", "path": …, "out": …, "seconds": …}`` locks a file; both are answered with ``{"pid": …}``.
``{"poll": pid}`` is answered with ``{"status": …}``, which is null as long as it runs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

import nami_amp_pipeline.runner  # noqa: F401 - what the command would import when it runs
from nami_amp_pipeline import cli
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state.store import Lease, Store, Transaction
from nami_amp_pipeline_tests.support import stopping

IN_TRANSACTION = "transaction"
"""A step of this module: all of a transaction is done but its commit, so that the store is locked."""


def stop_at(name: str, time_of_many: int) -> None:
    """Makes this process stop (SIGSTOP) at a step, or at a place on the way to the socket."""
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
    def begun(self: Store, *, under: Iterable[Lease] = ()) -> Iterator[Transaction]:
        with begin(self, under=under) as tx:
            yield tx
            step(IN_TRANSACTION)

    setattr(Context, "open", staticmethod(opened))  # noqa: B010 - a type checker would mind an assignment
    setattr(Store, "begin", begun)  # noqa: B010


def run(order: dict[str, Any]) -> int:
    """``nami-amp``; returns its exit status."""
    if order.get("stop"):
        stop_at(*order["stop"])
    if order.get("fsize"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["fsize"], order["fsize"]))
    sys.argv = ["nami-amp", *order["run"]]
    try:
        cli.main()
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


def spawn(act: Callable[[dict[str, Any]], int], order: dict[str, Any]) -> int:
    """Starts a child with its output in files; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        for descriptor, name in ((0, os.devnull), (1, order["out"]), (2, order.get("err", os.devnull))):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        status = act(order)
    except BaseException:  # noqa: BLE001 - whoever started it must see it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Reads orders until there are no more."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "poll" in order:
            pid, result = os.waitpid(order["poll"], os.WNOHANG)
            answer = {"status": os.waitstatus_to_exitcode(result) if pid else None}
        else:
            answer = {"pid": spawn(run if "run" in order else hold, order)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
