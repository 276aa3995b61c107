"""``run_micro_batch`` runs through Dagster in this process: quiet, in the same history, and with errors as they are."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import duckdb
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.dagster_support import instance
from nami_amp_pipeline.dagster_support.instance import dagster_home, dagster_instance
from nami_amp_pipeline.errors import Blocked, Misconfigured, StoreUnavailable, Unexpected, WarehouseUnavailable
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.table import CAPTURE
from nami_amp_pipeline_tests.support.scene import BAD_KEY, GOOD_KEY, WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

ROW = {
    "integration", "captured", "delivered", "skipped", "dead_letters", "pending", "watermark", "lag_seconds", "error"
}  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with scene(tmp_path) as made:
        yield made


@pytest.mark.contract("6.5")
@pytest.mark.slow
def test_report_is_of_this_run_and_the_run_is_in_the_history(stage: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio")
    stage.add("fit")
    report = run_micro_batch(stage.settings)
    assert report.ok
    assert report.to_json()["run_id"] == report.run_id
    assert [row["integration"] for row in report.integrations] == ["fit/main", "radio/main"]
    for row in report.integrations:
        assert set(row) >= ROW
        assert (
            row["captured"] == row["delivered"] + sum(row["skipped"].values()) + sum(row["dead_letters"].values()) > 0
        )
        assert (row["pending"], row["error"]) == (0, None)
        assert row["watermark"].endswith("Z")
    again = run_micro_batch(stage.settings)
    assert [(row["captured"], row["delivered"]) for row in again.integrations] == [(0, 0), (0, 0)]
    assert [row["watermark"] for row in again.integrations] == [row["watermark"] for row in report.integrations]
    assert capfd.readouterr() == ("", "")

    with dagster_instance(stage.settings) as instance:
        runs = {record.dagster_run.run_id: record.dagster_run for record in instance.get_run_records()}
        assert set(runs) == {report.run_id, again.run_id}
        assert all(run.status is dg.DagsterRunStatus.SUCCESS for run in runs.values())
        delivered = instance.get_materialized_partitions(dg.AssetKey("amplitude_deliveries"))
        assert delivered == {"radio|main", "fit|main"}
        assert instance.get_materialized_partitions(dg.AssetKey("nami_events")) == {"radio", "fit"}


@pytest.mark.slow
def test_log_goes_to_standard_error_if_asked_for(stage: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    run_micro_batch(stage.settings, verbose=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "amplitude_deliveries: " in printed.err
    assert len(printed.err.splitlines()) == 4


@pytest.mark.slow
def test_no_news_changes_no_file(stage: Scene) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in stage.settings.data_dir.rglob("*") if path.is_file()}

    stage.load(apps=("radio",))
    stage.add("radio")
    run_micro_batch(stage.settings)
    before = files()
    assert before
    assert run_micro_batch(stage.settings).ok
    assert files() == before


@pytest.mark.slow
def test_refused_key_is_a_line_and_found_nowhere(stage: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio")
    stage.add("fit", key=BAD_KEY)
    report = run_micro_batch(stage.settings)
    assert not report.ok
    assert report.error is None
    (problem,) = report.problems
    assert problem.startswith("fit/main: ")
    rows = {row["integration"]: row for row in report.integrations}
    assert rows["radio/main"]["delivered"] > 0
    assert rows["radio/main"]["error"] is None
    assert rows["fit/main"]["pending"] == rows["fit/main"]["captured"] > 0
    with dagster_instance(stage.settings) as instance:
        everything = repr(instance.all_logs(report.run_id)) + repr(instance.get_run_by_id(report.run_id))
    everything += repr(report) + repr(stage.settings) + "".join(capfd.readouterr())
    for key in (GOOD_KEY, BAD_KEY):
        assert key not in everything
        for path in stage.home.rglob("*"):
            assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_only_the_named_integrations_are_run(stage: Scene) -> None:
    stage.load(apps=("radio", "fit"))
    stage.add("radio")
    stage.add("fit")
    report = run_micro_batch(stage.settings, ["fit/main"])
    assert [row["integration"] for row in report.integrations] == ["fit/main"]
    assert report.integrations[0]["delivered"] > 0


@pytest.mark.slow
def test_integration_that_is_added_later_takes_up_what_was_read_before(stage: Scene) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")
    run_micro_batch(stage.settings)
    stage.add("radio", "later")
    rows = {row["integration"]: row for row in run_micro_batch(stage.settings).integrations}
    assert rows["radio/main"]["captured"] == 0
    assert rows["radio/later"]["captured"] == rows["radio/later"]["delivered"] > 0


@pytest.mark.slow
def test_interrupt_is_one_for_the_caller_too(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")

    def interrupt(*_: object, **_more: object) -> None:
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr("nami_amp_pipeline.stages.table.snapshot", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_micro_batch(stage.settings)


def test_unknown_integration_is_said_before_anything_runs(stage: Scene) -> None:
    with pytest.raises(Misconfigured, match="there is no integration radio/nope"):
        run_micro_batch(stage.settings, ["radio/nope"])
    assert not dagster_home(stage.settings).exists()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["gone", "no table", "wrong type", "locked"])
def test_warehouse_that_cannot_be_read_is_reported_and_stops_nothing_else(
    stage: Scene, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.load(apps=("radio",))
    one = stage.add("radio")
    tick = MicroBatch.begin(stage.context)
    tick.run(CAPTURE)
    path = stage.home / "warehouse.duckdb"
    if spoil == "gone":
        path.unlink()
    elif spoil == "locked":
        _lock(path, monkeypatch)
    else:
        with duckdb.connect(str(path)) as connection:
            connection.execute(
                "DROP TABLE nami_events" if spoil == "no table" else "ALTER TABLE nami_events ALTER user_id TYPE BLOB"
            )
    report = run_micro_batch(stage.settings)
    assert isinstance(report.error, WarehouseUnavailable)
    (row,) = report.integrations
    assert row["error"] == str(report.error)
    assert "\n" not in row["error"]
    assert row["delivered"] > 0
    assert stage.status(one)["radio/main"].pending == 0
    with dagster_instance(stage.settings) as instance:
        run = instance.get_run_by_id(report.run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.FAILURE


def _lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes DuckDB find the file locked, as another process's writer would."""

    def refuse(*_: object, **_more: object) -> None:
        raise WarehouseUnavailable(f"{path} is locked by another process; the next run tries again")

    monkeypatch.setattr("nami_amp_pipeline.warehouse.duckdb_file.attach", refuse)


@pytest.mark.slow
def test_store_that_cannot_be_written_is_raised_as_it_is(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")

    def fail(*_: object, **_more: object) -> None:
        raise StoreUnavailable("state store: it is gone")

    monkeypatch.setattr("nami_amp_pipeline.stages.table.prepare", fail)
    with pytest.raises(StoreUnavailable, match="it is gone") as caught:
        run_micro_batch(stage.settings)
    assert caught.value.__cause__ is None


@pytest.mark.slow
def test_bug_is_not_hidden(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.load(apps=("radio",))
    stage.add("radio")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("nami_amp_pipeline.micro_batch.run_stage", fail)
    report = run_micro_batch(stage.settings)
    assert not report.ok
    assert isinstance(report.error, Unexpected)
    assert "this is a bug, please report it: ZeroDivisionError: a bug" in report.problems[0]


@pytest.mark.slow
def test_dagster_home_is_used_where_it_is_set(stage: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("DAGSTER_HOME", str(elsewhere))
    with pytest.raises(Misconfigured, match="not a folder"):
        run_micro_batch(stage.settings)
    elsewhere.mkdir()
    report = run_micro_batch(stage.settings)
    with dg.DagsterInstance.from_config(str(elsewhere)) as instance:
        assert instance.get_run_by_id(report.run_id) is not None
    (elsewhere / "dagster.yaml").write_text("no_such_setting: 7\n")
    with pytest.raises(Misconfigured, match=r"dagster\.yaml cannot be used"):
        run_micro_batch(stage.settings)


@pytest.mark.slow
def test_two_at_once_on_a_fresh_home_make_one_whole_history(stage: Scene) -> None:
    failures: list[BaseException] = []

    def begin() -> None:
        try:
            with dagster_instance(stage.settings) as instance:
                instance.get_runs_count()
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (instance.dagster_home(stage.settings) / "dagster.yaml").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("database is locked", "is locked by another process; the next run tries again"),
        ("disk I/O error", "cannot be read or written: disk I/O error"),
    ],
)
def test_a_history_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, said: str, told: str) -> None:
    """A process that stands still in the middle of writing it keeps Dagster's SQLite files locked."""
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path)})
    with pytest.raises(Blocked, match=f"Dagster's history in .* {told}$"), dagster_instance(settings):
        raise sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError(said))
