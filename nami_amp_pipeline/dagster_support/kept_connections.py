"""Keeps connections to Dagster's history on SQLite and to the state store open, in a process of the service.

Dagster makes an engine and opens a file for each question, and compiles each statement anew. Wherever it opens the
history, as for each evaluation of a sensor, it loads all its migrations to know the newest version. At rest that would
be most of what the daemon and the code server do.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

from nami_amp_pipeline.state.kept_engines import KeptEngines
from nami_amp_pipeline.state.store import keep_engines

MOST_FILES: Final = 16
"""So many files of the history are kept open: each run has one of its own."""

_STORAGES: Final = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)

_kept: Final = KeptEngines(MOST_FILES)

_Version = str | tuple[str, ...] | None


def keep_connections() -> None:
    """Does so in this process from now on. A history on PostgreSQL stays as it is."""
    keep_engines()
    for module in _STORAGES:
        vars(module)["create_engine"] = kept_engine
        vars(module)["check_alembic_revision"] = versions


def kept_engine(url: str, connect_args: dict[str, Any] | None = None, **_of_the_pool: object) -> sa.Engine:
    """The engine of a file; the same each time.

    Args:
        url: of the file.
        connect_args: for a new connection.
    """

    def make() -> sa.Engine:
        # Two are kept, as Dagster takes one while it has another. More are made as they are asked for: who waits for
        # another of the same thread would wait for ever.
        return sa.create_engine(url, connect_args=connect_args or {}, pool_size=2, max_overflow=-1)

    return _kept.get(url, make)


def versions(config: Config, connection: sa.Connection) -> tuple[_Version, _Version]:
    """The version of a history, and the newest that this Dagster knows."""
    return MigrationContext.configure(connection).get_current_revision(), _newest(config)


@cache
def _newest(config: Config) -> _Version:
    """Dagster has one ``config`` for each of its storages."""
    return ScriptDirectory.from_config(config).as_revision_number("head")
