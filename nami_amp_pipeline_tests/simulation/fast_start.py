"""What real processes do at every start and a simulation need not: making tables, opening the compute engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import duckdb

from nami_amp_pipeline.state import Store
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.storage import duckdb_engine as compute

_FAST = Path("/dev/shm")
_engines: list[duckdb.DuckDBPyConnection] = []


def work_folder() -> Path:
    """A fresh folder, in memory where that can be had."""
    return Path(tempfile.mkdtemp(prefix="nami-amp-", dir=_FAST if _FAST.is_dir() else None))


def fresh_store(path: Path) -> None:
    """Puts a new state store there, as :meth:`Store.create` makes it."""
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


@contextmanager
def shared_engine() -> Iterator[None]:
    """Lets every stage open a session of one DuckDB, which sees nothing of the others, instead of a whole DuckDB."""

    def session(config: compute.Config) -> duckdb.DuckDBPyConnection:
        if not _engines:
            _engines.append(real({**config, "temp_directory": str(_FAST if _FAST.is_dir() else tempfile.gettempdir())}))
        return _engines[0].cursor()

    real = compute.open_engine
    compute.open_engine = session
    try:
        yield
    finally:
        compute.open_engine = real
