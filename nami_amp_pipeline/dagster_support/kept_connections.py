"""Keeps connections to Dagster's history and to the state store open, in a process of the service.

Dagster connects for each question, and on SQLite makes an engine for it, which compiles each statement anew. Wherever
it opens a history on SQLite, as for each evaluation of a sensor, it loads all its migrations to know the newest
version. At rest that would be most of what the daemon and the code server do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
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
"""So many engines are kept: each run has a file of its own."""

KEPT_OPEN: Final = 2
"""Connections to each that are kept: Dagster takes one while it has another.

More are made as they are asked for: who waits for another of the same thread would wait for ever.
"""

_STORAGES: Final = (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)

_SHARED: Final = ("runs", "schedules", sqlite_event_log.INDEX_SHARD_NAME)
"""Files that are not of one run."""

_kept: Final = KeptEngines(MOST_FILES)

_Version = str | tuple[str, ...] | None


def keep_connections() -> None:
    """Does so in this process from now on, with the histories on SQLite."""
    keep_engines()
    for module in _STORAGES:
        vars(module)["create_engine"] = kept_engine
        vars(module)["check_alembic_revision"] = versions


def keep_postgres_connections() -> None:
    """The same with histories on PostgreSQL, whose driver takes time to load."""
    for name in ("event_log.event_log", "run_storage.run_storage", "schedule_storage.schedule_storage"):
        module = vars(import_module(f"dagster_postgres.{name}"))
        module["create_pg_engine"] = partial(kept_postgres_engine, module["create_pg_engine"])


def is_on_postgres(home: Path) -> bool:
    """Whether the history of a ``DAGSTER_HOME`` is on PostgreSQL."""
    with suppress(OSError):
        return "postgres" in (home / "dagster.yaml").read_text("utf-8", "replace")
    return False


def kept_engine(url: str, connect_args: dict[str, Any] | None = None, **_of_the_pool: object) -> sa.Engine:
    """The engine of a file; the same each time.

    Args:
        url: of the file.
        connect_args: for a new connection.
    """

    def make() -> sa.Engine:
        given = connect_args or {}
        if Path(sa.make_url(url).database or "").stem in _SHARED:
            return sa.create_engine(url, connect_args=given, pool_size=KEPT_OPEN, max_overflow=-1)
        # Dagster's pages watch the file of a run, which SQLite writes when a connection is closed.
        return sa.create_engine(url, connect_args=given, poolclass=sa.pool.NullPool)

    return _kept.get(url, make)


def kept_postgres_engine(make: Callable[..., sa.Engine], url: str, tokens: object = None, **options: Any) -> sa.Engine:
    """The engine of a database; the same each time, unless whoever asks keeps connections already.

    Args:
        make: Dagster's function.
        url: of the database.
        tokens: gives passwords that change.
        options: of the engine.
    """
    if options.get("poolclass") is not sa.pool.NullPool or tokens is not None:
        return make(url, tokens, **options)
    kept = {
        **{name: value for name, value in options.items() if name != "poolclass"},
        "pool_size": KEPT_OPEN,
        "max_overflow": -1,
        "pool_pre_ping": True,
    }
    return _kept.get((url, repr(sorted(kept.items()))), lambda: make(url, **kept))


def versions(config: Config, connection: sa.Connection) -> tuple[_Version, _Version]:
    """The version of a history, and the newest that this Dagster knows."""
    return MigrationContext.configure(connection).get_current_revision(), _newest(config)


@cache
def _newest(config: Config) -> _Version:
    """Dagster has one ``config`` for each of its storages."""
    return ScriptDirectory.from_config(config).as_revision_number("head")
