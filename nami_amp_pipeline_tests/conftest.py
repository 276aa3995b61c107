"""Fixtures of all tests: a real PostgreSQL, started once and only where a test wants it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nami_amp_pipeline import redaction
from nami_amp_pipeline_tests.support.fast_start import copied_stores, memory_folder, shared_engine
from nami_amp_pipeline_tests.support.postgres import Postgres

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_servers: list[Postgres] = []

_FIRST = (
    "test_service.py", "test_service_broken_runs.py", "test_celery.py", "test_clean_environment.py",
    "test_right_to_send.py", "test_adversity.py", "test_shutdown.py", "test_dev.py", "test_dev_processes.py",
)  # fmt: skip
"""Files whose tests wait for other processes most of the time."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server."""
    server = Postgres()
    _servers.append(server)
    yield server
    _servers.remove(server)
    server.stop()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A real browser, started once and only where a test wants it."""
    from nami_amp_pipeline_tests.support.browser import chromium

    driver = chromium(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def databases() -> Iterator[None]:
    """Drops the databases that a test has made; those of a fixture for several tests stay."""
    with ExitStack() as stack:
        for server in _servers:
            stack.enter_context(server.databases_for_a_while())
        yield


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Has signals do after each test what they did before: a run of Dagster's in this process changes SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_secrets_met() -> None:
    """Forgets the secrets of earlier tests, which would be taken out of the texts of this one."""
    vars(redaction.SHARED).update(vars(redaction.Redactor()))


@pytest.fixture(autouse=True)
def dagster_state() -> Iterator[None]:
    """Forgets the instance of a run in this process, which Dagster would ask when later tests load definitions."""
    yield
    if "dagster" in sys.modules:
        from dagster._core.storage.defs_state.base import _current_storage

        _current_storage.set(None)


@pytest.fixture(autouse=True, scope="session")
def fast_start() -> Iterator[None]:
    """Spares this process what takes its time at every start and is the same each time."""
    with shared_engine(), copied_stores():
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty state store, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh_database()


@pytest.fixture(params=["duckdb", "postgresql"])
def warehouse_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a warehouse, of each kind; the one on PostgreSQL is an empty database."""
    if request.param == "duckdb":
        return f"duckdb:///{tmp_path / 'warehouse.duckdb'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh_database()


@pytest.hookimpl(tryfirst=True)  # before -m chooses, and in the order of the files
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts those first that wait, and marks cases as slow that a test has many of, so that ``make quick`` runs some.

    The worker that begins with the first ones waits while others compute, and none is left for the end. Slow are all
    but the first case of a test with ``slow_cases``; of other tests all with PostgreSQL, but for the first.
    """
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))
    seen: set[tuple[str, bool]] = set()
    for item in items:
        chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        kinds = {chosen[name] for name in ("state_url", "warehouse_url") if name in chosen}
        with_postgres = "postgresql" in kinds
        case = (item.nodeid.partition("[")[0], with_postgres)
        if item.get_closest_marker("slow_cases") is not None:
            is_slow = case in seen or with_postgres
        else:
            is_slow = with_postgres and (case in seen or len(kinds) > 1)
        if is_slow:
            item.add_marker(pytest.mark.slow)
        else:
            seen.add(case)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of every later search for garbage, which takes a tenth of the time otherwise."""
    import hypothesis  # noqa: F401 - its plugin does so at the end, and looks through what refers to what

    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_configure() -> None:
    """Has files lie in memory if they can, and signals work as in a foreground job, however the tests were started.

    Most of the time that a commit takes, it waits for a disk. A shell's background job ignores SIGINT, Dagster has
    SIGTERM do what SIGINT does, and every process that a test starts would inherit both.
    """
    folder = memory_folder()
    if folder is not None and "TMPDIR" not in os.environ:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
