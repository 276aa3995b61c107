"""Keeps connections to Dagster's history on SQLite open, and reads once in a process what its newest version is.

Dagster makes an engine and opens a file for each question, and compiles each statement anew. Wherever it opens the
history, as for each evaluation of a sensor, it loads all its migrations to know the newest. At rest that is most of
what the daemon and the code server do.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any, Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

MOST_FILES: Final = 16
"""So many files have their connections kept, those last used: each run has a file of its own."""

_STORAGES: Final = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)
_FILE: Final = "file"

_engines: OrderedDict[str, sa.Engine] = OrderedDict()
_newest: dict[str, str | tuple[str, ...] | None] = {}
_lock: Final = threading.Lock()


def keep_connections() -> None:
    """Does so in this process, which is one of the service's. A history on PostgreSQL is not touched."""
    for module in _STORAGES:
        vars(module)["create_engine"] = kept_engine
        vars(module)["check_alembic_revision"] = versions


def kept_engine(url: str, connect_args: dict[str, Any] | None = None, **_of_the_pool: object) -> sa.Engine:
    """The engine of a file; the same each time.

    Args:
        url: of the file.
        connect_args: for a new connection.
    """
    with _lock:
        engine = _engines.get(url)
        if engine is None:
            engine = _made(url, connect_args or {})
            _engines[url] = engine
        _engines.move_to_end(url)
        left = [_engines.popitem(last=False)[1] for _ in range(len(_engines) - MOST_FILES)]
    for each in left:
        each.pool.dispose()
    return engine


def _made(url: str, connect_args: dict[str, Any]) -> sa.Engine:
    # As many as are asked for at once: one that waits for another of its own thread would wait for ever.
    engine = sa.create_engine(url, connect_args=connect_args, pool_size=1, max_overflow=-1)
    path = engine.url.database or ""

    def remember(_connection: object, record: Any) -> None:
        record.info[_FILE] = _identity(path)

    def look(_connection: object, record: Any, _proxy: object) -> None:
        if record.info[_FILE] != _identity(path):
            raise sa.exc.DisconnectionError  # the file was removed or replaced: a new connection is made

    sa.event.listen(engine, "connect", remember)
    sa.event.listen(engine, "checkout", look)
    vars(engine)["dispose"] = lambda: None  # which Dagster does after each question to an event log
    return engine


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def versions(config: Config, connection: sa.Connection) -> tuple[str | None, str | tuple[str, ...] | None]:
    """The version of a history, and the newest that this Dagster knows."""
    name = str(config.config_file_name)
    with _lock:
        if name not in _newest:
            _newest[name] = ScriptDirectory.from_config(config).as_revision_number("head")
    return MigrationContext.configure(connection).get_current_revision(), _newest[name]
