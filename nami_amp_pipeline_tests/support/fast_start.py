"""What real processes do at every start and most tests need not: making tables, opening the compute engine."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import duckdb

from nami_amp_pipeline import context
from nami_amp_pipeline.state import Store
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.storage import duckdb_engine as compute

_FAST = Path("/dev/shm")
_ENOUGH_BYTES = 4 << 30
_idle: dict[str, list[duckdb.DuckDBPyConnection]] = {}
_numbers = itertools.count(1)


def memory_folder() -> Path | None:
    """A folder in memory, where a commit takes no time; None where there is none, or little memory left."""
    if not (_FAST.is_dir() and os.access(_FAST, os.W_OK)):
        return None
    return _FAST if shutil.disk_usage(_FAST).free >= _ENOUGH_BYTES else None


def work_folder() -> Path:
    """A fresh folder, in memory where that can be had."""
    return Path(tempfile.mkdtemp(prefix="nami-amp-", dir=_FAST if _FAST.is_dir() else None))


def fresh_store(path: Path) -> None:
    """Puts a new state store there, as :func:`create_or_upgrade` makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_empty_store())


@cache
def _empty_store() -> bytes:
    folder = work_folder()
    try:
        store = Store(f"sqlite:///{folder / 'state.db'}", lambda: 0.0)
        create_or_upgrade(store)
        with store.begin() as tx:
            tx.exec_driver_sql("SELECT 1")
        store.close()
        assert not list(folder.glob("*-wal")), "what was written must be in the file itself"
        return (folder / "state.db").read_bytes()
    finally:
        shutil.rmtree(folder)


def fresh_events(path: Path) -> None:
    """Puts a DuckDB file there that holds the events table, empty, as ``sql/nami_events.sql`` makes it."""
    path.write_bytes(_empty_events())


@cache
def _empty_events() -> bytes:
    folder = work_folder()
    try:
        with duckdb.connect(str(folder / "events.duckdb")) as connection:
            connection.execute(compute.sql("nami_events"))
        assert [file.name for file in folder.iterdir()] == ["events.duckdb"]
        return (folder / "events.duckdb").read_bytes()
    finally:
        shutil.rmtree(folder)


@contextmanager
def events_file(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A session for writing into a DuckDB file, whose tables are those of ``events``."""
    with _Session({"threads": 1}) as session, session.cursor() as connection:
        connection.execute(f"ATTACH {compute.literal(str(path))} AS events")
        try:
            yield connection
        finally:
            connection.execute("DETACH events")


class _Session:
    """A session of a DuckDB that somebody else has used before; at its end it is free for the next."""

    def __init__(self, config: compute.Config) -> None:
        self._free = _idle.setdefault(
            repr(sorted((key, config[key]) for key in config.keys() - {"temp_directory"})), []
        )
        try:
            self._instance = self._free.pop()
        except IndexError:
            spill = f"{tempfile.gettempdir()}/spill-{os.getpid()}-{next(_numbers)}"  # DuckDB makes and removes it
            # Files come and go under the same names within a moment, so what was read of them must be forgotten.
            more: compute.Config = {"temp_directory": spill, "enable_external_file_cache": False}
            self._instance = duckdb.connect(":memory:", config={**config, **more})
        self._session = self._instance.cursor()

    def execute(self, *arguments: Any) -> duckdb.DuckDBPyConnection:
        return self._session.execute(*arguments)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        return self._session.cursor()

    def _attached(self) -> int:
        ((databases,),) = self._session.execute("SELECT count(*) FROM duckdb_databases() WHERE NOT internal").fetchall()
        return int(databases)

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # After an error nobody knows what is left of it; and the next session must not find a file still attached.
        is_clean = error is None and self._attached() == 1
        self._session.close()
        if is_clean:
            self._free.append(self._instance)
        else:
            self._instance.close()


@contextmanager
def shared_engine() -> Iterator[None]:
    """Lets every stage open a session of a DuckDB that was used before, instead of a whole DuckDB."""
    with patch.object(compute, "open_engine", _Session):
        yield


@contextmanager
def copied_stores() -> Iterator[None]:
    """Lets a process that finds no state store copy an empty one, instead of making its tables."""

    def copy_or_create(store: Store) -> None:
        path = Path(store.url.removeprefix("sqlite:///"))
        if store.is_sqlite and not path.exists():
            with suppress(OSError):
                fresh_store(path)
        create_or_upgrade(store)

    with patch.object(context, "create_or_upgrade", copy_or_create):
        yield
