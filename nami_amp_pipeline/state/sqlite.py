"""How the state store uses SQLite: a write-ahead log, commits that last, and locks from the beginning of a write."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

from sqlalchemy.engine import Connection

LOCK_SECONDS: Final = 30
"""How long a transaction waits for a lock, of PostgreSQL's too."""


def prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Sets up a new connection."""
    connection.isolation_level = None  # SQLAlchemy's begin event starts the transactions
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")
    _switch_to_wal(cursor)
    cursor.execute(
        "PRAGMA synchronous=FULL"
    )  # an event whose commit is lost in a power cut could be posted differently
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _switch_to_wal(cursor: sqlite3.Cursor) -> None:
    """Switches a new file to a write-ahead log; SQLite does not wait for other processes here."""
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def begin(connection: Connection) -> None:
    """Begins a transaction: one that writes waits for the others at its beginning, not in its midst."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")
