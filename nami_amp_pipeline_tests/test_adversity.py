"""A few rounds of real trouble: two workers and a sleeper, a disk that is full, files that somebody else has locked.

``python -m nami_amp_pipeline_tests.adversity`` plays many.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.dagster_support import instance
from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.storage.duckdb_engine import compute
from nami_amp_pipeline_tests.adversity.disk import Disk, Filler, NoMount, small_disk
from nami_amp_pipeline_tests.adversity.locks import Locks
from nami_amp_pipeline_tests.adversity.workers import Workers
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(WARNINGS)]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk", 64) as disk:
            yield disk
    except NoMount as error:
        pytest.skip(str(error))


@pytest.mark.contract("5.2.2", "5.3.5")
def test_two_workers_at_once_and_one_that_sleeps_past_its_lease(tmp_path: Path) -> None:
    playing = Workers(tmp_path, seed=3)
    with playing.scene:
        playing.round("two at once")
        playing.round("stopped at a step")


def test_a_disk_that_fills_up(tmp_path: Path, tiny_disk: Path) -> None:
    playing = Disk(tmp_path, seed=4, place="all", disk=tiny_disk)
    with playing.scene:
        playing.round("comes and goes")


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    playing = Disk(tmp_path, seed=1, place="all", disk=None)
    with playing.scene:
        playing.round()


def test_files_that_others_have_locked(tmp_path: Path) -> None:
    playing = Locks(tmp_path, seed=5)
    with playing.scene:
        playing.round("sqlite, short")


def test_a_full_data_folder_is_said_while_the_warehouse_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Pipeline(tmp_path / "home", {"NAMI_AMP_SEGMENT_ROWS": "10"})
    one = made.add("radio", user_id_kind="nami_user_id")
    made.insert(
        [
            {"id": f"e{number}", "app_id": "radio", "event_type": "user.subscription.renewed", "user_id": "u",
             "created_date": START, "ingested_at": START, "payload": "{}"}
            for number in range(100)
        ]
    )  # fmt: skip

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
        with pytest.raises(Blocked, match="No space left on device"):
            made.tick()
    assert not list((tmp_path / "home").rglob("*.part"))
    made.tick()
    assert made.status(one).delivered == 100
    made.close()


def test_a_full_disk_under_the_compute_engine_is_said(tmp_path: Path, tiny_disk: Path) -> None:
    settings = Settings.load(
        {"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_DATA_DIR": str(tiny_disk), "NAMI_AMP_DUCKDB_MEMORY": "50MB",
         "NAMI_AMP_DUCKDB_THREADS": "1"}
    )  # fmt: skip
    Filler(tiny_disk).fill(leave=2_000_000)
    big = "SELECT i, repeat(md5(i::VARCHAR), 10) AS text FROM range(400000) rows(i) ORDER BY text"
    with pytest.raises(Blocked, match="the compute engine"), compute(settings) as connection:
        connection.execute(f"CREATE TEMP TABLE sorted AS {big}")
    with pytest.raises(Blocked, match="the compute engine cannot read or write"), compute(settings) as connection:
        connection.execute(f"COPY (FROM range(2000000)) TO '{tiny_disk / 'out.csv'}'")


def test_a_history_that_another_process_keeps_locked_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.setattr(instance, "OPENING_SECONDS", 0.2)
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)})
    home = tmp_path / "dagster"
    home.mkdir()
    with instance._alone(home), pytest.raises(Blocked, match="locked by another process"), dagster_instance(settings):
        raise AssertionError("must not get here")
    with dagster_instance(settings):
        pass


def test_a_history_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    def full(*_arguments: object) -> None:
        raise sa.exc.OperationalError("INSERT", (), sqlite3.OperationalError("database or disk is full"))

    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)})
    with dagster_instance(settings):
        pass
    monkeypatch.setattr(SqliteEventLogStorage, "store_event", full)
    with pytest.raises(Blocked, match=r"Dagster's history in .* cannot be read or written: database or disk is full"):
        run_micro_batch(settings)
    assert capfd.readouterr() == ("", "")
