"""A process of the service keeps its connections, sees a file that was replaced, and writes what others read."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from dagster._core.test_utils import create_run_for_test

from nami_amp_pipeline.clock import system_clock
from nami_amp_pipeline.dagster_support import kept_connections, part
from nami_amp_pipeline.dagster_support.instance import DAGSTER_YAML
from nami_amp_pipeline.state import Store, store
from nami_amp_pipeline.state.kept_engines import KeptEngines
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline_tests.support.service import wait_for


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is one of the service, until the test is over."""
    for module in kept_connections._STORAGES:
        for name in ("create_engine", "check_alembic_revision"):
            monkeypatch.setattr(module, name, getattr(module, name))
    kept = KeptEngines(16)
    monkeypatch.setattr(kept_connections, "_kept", kept)
    monkeypatch.setattr(store, "_kept", None)
    kept_connections.keep_connections()
    yield
    kept.close()
    assert store._kept is not None
    store._kept.close()


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each connection that is made to a SQLite file."""
    made: list[str] = []
    real = sqlite3.dbapi2.connect

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(str(arguments[0]))
        connection: sqlite3.Connection = real(*arguments, **options)
        return connection

    monkeypatch.setattr(sqlite3.dbapi2, "connect", connect)
    return made


def _engine_of(path: Path) -> Callable[[], sa.Engine]:
    return lambda: sa.create_engine(f"sqlite:///{path}")


def _numbers(engine: sa.Engine) -> list[int]:
    with engine.begin() as connection:
        return list(connection.exec_driver_sql("SELECT n FROM numbers").scalars())


def _file(path: Path, number: int) -> Path:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE numbers AS SELECT ? AS n", [number])
    connection.close()
    return path


def test_an_engine_is_made_once_and_stays_open(tmp_path: Path, connects: list[str]) -> None:
    kept, path = KeptEngines(2), _file(tmp_path / "a.db", 7)
    connects.clear()
    for _ in range(3):
        engine = kept.get("a", _engine_of(path))
        assert _numbers(engine) == [7]
        engine.dispose()
    assert len(connects) == 1
    kept.close()


def test_a_file_that_was_replaced_or_removed_is_opened_anew(tmp_path: Path) -> None:
    kept, path = KeptEngines(2), _file(tmp_path / "a.db", 7)
    engine = kept.get("a", _engine_of(path))
    assert _numbers(engine) == [7]
    _file(tmp_path / "b.db", 8).replace(path)
    assert _numbers(engine) == [8]
    path.unlink()
    with pytest.raises(sa.exc.OperationalError, match="no such table"):
        _numbers(engine)
    kept.close()


def test_of_many_files_those_last_used_stay_open(tmp_path: Path, connects: list[str]) -> None:
    kept = KeptEngines(2)
    files = {name: _file(tmp_path / f"{name}.db", number) for number, name in enumerate("abc")}
    connects.clear()
    for name in "abacab":
        _numbers(kept.get(name, _engine_of(files[name])))
    assert [Path(each).stem for each in connects] == ["a", "b", "c", "b"]
    kept.close()


@pytest.mark.usefixtures("keeping")
def test_stores_of_a_service_share_connections_and_no_owner(tmp_path: Path, connects: list[str]) -> None:
    for _ in range(3):
        own = Store(f"sqlite:///{tmp_path / 'state.db'}", system_clock)
        create_or_upgrade(own)
        assert own.schema_version() > 0
        own.close()
    assert len(connects) == 1
    first, second = (Store(f"sqlite:///{tmp_path / 'state.db'}", system_clock) for _ in range(2))
    assert first.acquire(["alerts"])
    assert not second.acquire(["alerts"])


def test_stores_of_others_close_their_connections(tmp_path: Path, connects: list[str]) -> None:
    for _ in range(2):
        own = Store(f"sqlite:///{tmp_path / 'state.db'}", system_clock)
        create_or_upgrade(own)
        assert own.schema_version() > 0
        own.close()
    assert len(connects) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["state.db"]


@pytest.mark.usefixtures("keeping")
def test_a_history_is_opened_and_asked_without_connections_and_migrations(
    tmp_path: Path, connects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML)

    def look() -> list[str]:
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            instance.event_log_storage.get_maximum_record_id()
            return [run.job_name or "" for run in instance.get_runs()]

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run = create_run_for_test(instance, job_name="mine")
        instance.report_run_failed(run, "for a test")
        assert instance.get_records_for_run(run.run_id).records
    look()
    connects.clear()
    loaded: list[object] = []
    monkeypatch.setattr(ScriptDirectory, "from_config", loaded.append)
    assert [look() for _ in range(3)] == [["mine"]] * 3
    assert (connects, loaded) == ([], [])
    code = (
        "import dagster as dg, sys\nwith dg.DagsterInstance.from_config(sys.argv[1]) as own:\n"
        "    print([run.job_name for run in own.get_runs()], own.all_logs(sys.argv[2])[-1].message)"
    )
    read = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), run.run_id], capture_output=True, text=True, check=True
    )
    assert read.stdout.startswith("['mine']")
    assert "for a test" in read.stdout


@pytest.mark.usefixtures("keeping")
def test_the_log_of_a_run_is_shown_while_it_is_written(tmp_path: Path) -> None:
    """Dagster's pages look at it as its file changes, and not at the file beside it that SQLite writes first."""
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML)
    told: list[str] = []
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run = create_run_for_test(instance)
        instance.report_engine_event("before", run)
        instance.watch_event_logs(run.run_id, None, lambda entry, _: told.append(entry.message))
        for number in range(3):
            instance.report_engine_event(f"event {number}", run)
            wait_for(lambda: told[-1:] == [f"event {number}"], seconds=20)  # noqa: B023 - asked at once


def test_a_history_on_postgresql_is_kept_where_dagster_would_connect_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_connections, "_kept", KeptEngines(2))
    made: list[tuple[object, dict[str, Any]]] = []

    def make(url: str, tokens: object = None, **options: Any) -> sa.Engine:
        made.append((tokens, options))
        return sa.create_engine(url, **options)

    url = "postgresql://nobody@127.0.0.1:1/none"
    given: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "poolclass": sa.pool.NullPool}
    first, second = (kept_connections.kept_postgres_engine(make, url, None, **given) for _ in range(2))
    assert first is second
    assert made == [
        (None, {"isolation_level": "AUTOCOMMIT", "pool_size": 2, "max_overflow": -1, "pool_pre_ping": True})
    ]
    made.clear()
    kept_connections.kept_postgres_engine(make, url, "passwords that change", **given)
    kept_connections.kept_postgres_engine(make, url, None, pool_size=1)  # as the webserver asks for it
    assert made == [("passwords that change", given), (None, {"pool_size": 1})]


def test_where_a_history_is_on_postgresql() -> None:
    root = Path(__file__).parents[1]
    assert [kept_connections.is_on_postgres(root / folder) for folder in ("deploy", "deploy/celery", ".", "no")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_loops_of_dagster_go_round_less_often() -> None:
    code = (
        "from nami_amp_pipeline.dagster_support import part\n"
        "import uvicorn, dagster._daemon.controller as daemon, dagster._grpc.server_watcher as watcher\n"
        "before = watcher.WATCH_INTERVAL, daemon.RELOAD_WORKSPACE_INTERVAL\n"
        "part.look_seldom()\n"
        "print(before, (watcher.WATCH_INTERVAL, daemon.RELOAD_WORKSPACE_INTERVAL))\n"
        "print(uvicorn.Server.main_loop.__module__, daemon.DEFAULT_WORKSPACE_FRESHNESS_TOLERANCE)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == f"(1, 60) ({part.WATCH_SECONDS}, {part.RELOAD_SECONDS})"
    where, tolerance = said[1].split()
    assert where == part.__name__
    assert int(tolerance) > part.RELOAD_SECONDS
