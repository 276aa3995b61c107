"""Writing many events to Dagster's history at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import dagster as dg


@contextmanager
def keep_sqlite_log_open(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Keeps the SQLite files of Dagster's events open for the length of the block; does nothing elsewhere.

    Dagster opens and closes them for each event, and the last process to close such a file copies its write-ahead log
    and waits for the disk: half the cost of an event. While this block keeps the file open, no close is the last.

    Args:
        instance: whose events.
        run_id: of the run that writes them.
    """
    path_for_shard = getattr(instance.event_log_storage, "path_for_shard", None)
    with ExitStack() as stack:
        if path_for_shard is not None:
            for shard in ("index", run_id):
                with suppress(sqlite3.Error):
                    connection = sqlite3.connect(f"file:{path_for_shard(shard)}?mode=rw", uri=True)
                    stack.callback(connection.close)
                    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield
