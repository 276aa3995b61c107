"""What the tests start with instead of the real thing is the same, and one test leaves nothing to the next."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, migrate
from nami_amp_pipeline.storage.duckdb_engine import compute, sql
from nami_amp_pipeline_tests.support.fast_start import events_file, fresh_events, fresh_store


def test_a_copied_store_is_what_a_process_makes(tmp_path: Path) -> None:
    fresh_store(tmp_path / "copied.db")
    store = Store(f"sqlite:///{tmp_path / 'made.db'}", lambda: 0.0)
    migrate.create_or_upgrade(store)
    store.close()

    def dump(name: str) -> list[str]:
        connection = sqlite3.connect(tmp_path / name)
        try:
            return list(connection.iterdump())
        finally:
            connection.close()

    assert dump("copied.db") == dump("made.db")


def test_a_copied_events_table_is_what_its_sql_makes(tmp_path: Path) -> None:
    fresh_events(tmp_path / "copied.duckdb")
    columns = "SELECT column_name, data_type, is_nullable FROM duckdb_columns() WHERE NOT internal"
    with duckdb.connect() as made, duckdb.connect(str(tmp_path / "copied.duckdb")) as copied:
        made.execute(sql("nami_events"))
        assert made.execute(columns).fetchall() == copied.execute(columns).fetchall() != []


def test_a_session_finds_nothing_of_those_before_it(tmp_path: Path) -> None:
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)}, tmp_path / "no.env")
    for _ in range(3):
        with compute(settings) as connection:
            connection.execute("CREATE TEMP TABLE mine (n INTEGER); CREATE TEMP VIEW seen AS FROM mine")
            connection.execute("CREATE TEMP MACRO twice(n) AS 2 * n; SET VARIABLE told = 1")
            assert connection.execute("SELECT getvariable('spaces') IS NOT NULL").fetchall() == [(True,)]
    with compute(settings) as connection:
        assert connection.execute("SELECT getvariable('told')").fetchall() == [(None,)]


def test_sessions_beside_each_other_may_attach_under_one_name(tmp_path: Path) -> None:
    for name in ("one", "other"):
        fresh_events(tmp_path / f"{name}.duckdb")
    with events_file(tmp_path / "one.duckdb") as one, events_file(tmp_path / "other.duckdb") as other:
        one.execute("INSERT INTO events.nami_events (id) SELECT 'a' WHERE false")
        assert other.execute("SELECT count(*) FROM events.nami_events").fetchall() == [(0,)]


def test_what_an_error_left_is_found_by_nobody(tmp_path: Path) -> None:
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)}, tmp_path / "no.env")
    with pytest.raises(duckdb.ConversionException), compute(settings) as connection:
        connection.execute("ATTACH ':memory:' AS left_over; SELECT 'no number'::INTEGER")
    with compute(settings) as connection:
        found = connection.execute("SELECT 1 FROM duckdb_databases() WHERE database_name = 'left_over'").fetchall()
    assert found == []


@pytest.mark.slow
def test_quick_runs_one_case_of_a_test_that_has_many() -> None:
    folder = Path(__file__).parent
    files = [folder / "test_odd_rows.py", folder / "test_integrations.py"]

    def collected(*more: str) -> dict[str, list[str]]:
        done = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-p", "no:randomly", "--collect-only", "-q", "-o", "addopts=", *more,
                *files,
            ],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
        cases: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            if "::" in line:
                test, _, case = line.partition("[")
                cases.setdefault(test.rpartition("/")[2], []).append(case)
        return cases

    everything, quick = collected(), collected("-m", "not slow")
    odd = {test: cases for test, cases in quick.items() if test.startswith("test_odd_rows.py")}
    assert all(cases == everything[test][:1] for test, cases in odd.items()), "the first case, and no other"
    assert max(len(everything[test]) for test in odd) > 8, "of a test with many cases one is left"
    with_postgres = [case for cases in quick.values() for case in cases if case.startswith("postgresql")]
    assert with_postgres, "a database of each kind is used all the same"
    assert len(with_postgres) < sum(case.startswith("postgresql") for cases in everything.values() for case in cases)
