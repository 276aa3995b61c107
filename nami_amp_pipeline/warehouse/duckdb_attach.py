"""Opening a DuckDB file that another process may have open for writing: waited for, and said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.storage.duckdb_engine import literal
from nami_amp_pipeline.warehouse.base import one_line

LOCK_PATIENCE_SECONDS = 10.0


def attach(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    sleep: Callable[[float], None],
    *,
    read_only: bool,
    locked: str,
) -> None:
    """Attaches a file as ``warehouse``.

    Args:
        connection: where to.
        path: of the file; it is made where it is missing, unless it is to be read only.
        sleep: waits so many seconds.
        read_only: whether nothing is to be written.
        locked: what to say of a lock that does not go, behind the path.

    Raises:
        WarehouseUnavailable: it is no DuckDB file, cannot be opened, or is locked for too long.
    """
    waited, pause = 0.0, 0.05
    while True:
        try:
            connection.execute(f"ATTACH {literal(str(path))} AS warehouse{' (READ_ONLY)' if read_only else ''}")
            return
        except duckdb.Error as error:
            if not isinstance(error, duckdb.IOException) or "lock" not in str(error).lower():
                said = one_line(error)[:200]
                raise WarehouseUnavailable(f"cannot open {path} as a DuckDB file: {said}") from None
        if waited >= LOCK_PATIENCE_SECONDS:
            raise WarehouseUnavailable(f"{path} is locked by another process{locked}")
        sleep(pause)
        waited += pause
        pause = min(pause * 2, 1.0)


def quoted(name: str) -> str:
    """A name as SQL writes it, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'
