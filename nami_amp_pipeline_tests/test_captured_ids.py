"""The ledger of captured ids: what was captured is known, however it lies on disk, and ticks do not pay for history."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.retention.report import Removed, RetentionReport
from nami_amp_pipeline.retention.segments import expire_segments
from nami_amp_pipeline.stages import captured_ids as ledger
from nami_amp_pipeline.stages.captured_ids import KEY_COLUMNS, Ledger
from nami_amp_pipeline.stages.pipeline import capture_apps
from nami_amp_pipeline.state import integrations as state
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.storage.segment_writer import SegmentWriter
from nami_amp_pipeline_tests.support.harness import START, Pipeline

pytestmark = pytest.mark.slow_cases

DAY = timedelta(days=1)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    made = Pipeline(tmp_path, {"NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "600"})
    made.add("app", start_from=None, user_id_kind="nami_user_id")
    return made


def load(pipeline: Pipeline, *numbers: int) -> None:
    now = START.fromtimestamp(pipeline.clock.now, START.tzinfo)
    pipeline.insert(
        [
            {
                "id": f"event-{number}",
                "app_id": "app",
                "event_type": "user.subscription.renewed",
                "user_id": f"user-{number % 7}",
                "created_date": now,
                "ingested_at": now,
                "payload": "{}",
            }
            for number in numbers
        ]
    )


def runs(pipeline: Pipeline) -> list[int]:
    with pipeline.context.store.begin() as tx:
        return sorted(tx.execute(sa.select(tables.captured_ids.c.rows)).scalars(), reverse=True)


def sent(pipeline: Pipeline) -> list[str]:
    return [event["insert_id"] for wire in pipeline.wires.values() for event in wire.events]


@pytest.mark.contract("1.4")
@pytest.mark.slow
def test_rows_that_are_loaded_again_are_known_however_many_ticks_later(pipeline: Pipeline) -> None:
    for tick in range(20):
        load(pipeline, *range(tick * 10, tick * 10 + 10), *range(0, tick * 10, 17))
        pipeline.tick()
        pipeline.clock.sleep(300)
    assert sorted(sent(pipeline)) == sorted(f"event-{number}" for number in range(200))


@pytest.mark.slow
def test_runs_stay_few_and_each_is_twice_as_large_as_the_next(pipeline: Pipeline) -> None:
    for tick in range(40):
        load(pipeline, *range(tick * 10, tick * 10 + 10))
        capture_apps(pipeline.context)
        pipeline.clock.sleep(300)
    rows = runs(pipeline)
    assert sum(rows) == 400
    assert len(rows) <= 6
    assert all(large >= 2 * small for large, small in itertools.pairwise(rows))
    kept = {path.name for path in (pipeline.settings.data_dir / "ledger").iterdir()}
    assert len(kept) == len(rows)


@pytest.mark.slow
def test_a_day_that_is_over_becomes_one_run(pipeline: Pipeline) -> None:
    for tick in range(7):
        load(pipeline, *range(tick * 100, tick * 100 + 100 // (tick + 1)))
        capture_apps(pipeline.context)
        pipeline.clock.sleep(300)
    assert len(runs(pipeline)) > 1
    pipeline.clock.sleep(DAY.total_seconds())
    load(pipeline, 1_000)
    capture_apps(pipeline.context)
    load(pipeline, 1_001)
    capture_apps(pipeline.context)
    assert len(runs(pipeline)) == 2


@pytest.mark.parametrize("step", ["ledger.commit", "ledger.committed"])
@pytest.mark.slow
def test_a_process_that_ends_before_the_ledger_is_written_changes_nothing(pipeline: Pipeline, step: str) -> None:
    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if name == step:
            raise Killed

    pipeline.context.step = kill
    for tick in range(3):
        load(pipeline, *range(tick * 10), *range(tick * 10, tick * 10 + 10))
        with pytest.raises(Killed):
            pipeline.tick()
        pipeline.clock.sleep(300)
    pipeline.context.step = lambda _: None
    load(pipeline, *range(30))
    pipeline.tick()
    assert sorted(sent(pipeline)) == sorted(f"event-{number}" for number in range(30))


def test_a_segment_that_is_in_no_run_yet_counts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nami_amp_pipeline.stages.capture.fold", lambda *_: None)
    for _ in range(3):
        load(pipeline, 1, 2, 3)
        pipeline.tick()
    assert runs(pipeline) == []
    assert sorted(sent(pipeline)) == ["event-1", "event-2", "event-3"]


def keys_on_disk(pipeline: Pipeline) -> list[tuple[int, int]]:
    with pipeline.context.store.begin() as tx:
        (file,) = tx.execute(sa.select(tables.captured_ids.c.file)).scalars()
    run = pipeline.context.folder.open_ipc(file).read_all()
    return list(zip(run["high"].to_pylist(), run["low"].to_pylist(), strict=True))


@pytest.mark.slow
def test_ids_at_hand_and_ids_read_from_segments_make_the_same_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nami_amp_pipeline.stages.capture.fold", lambda *_: None)
    load(pipeline, 1, 2, 3)
    pipeline.tick()
    monkeypatch.undo()
    load(pipeline, 4, 5)
    pipeline.tick()  # the first three are read, and these two are at hand
    expected = duckdb.execute(
        f"SELECT {KEY_COLUMNS} FROM (SELECT 'app' AS app_id, format('event-{{}}', n) AS id FROM range(1, 6) AS r(n)) "
        "ORDER BY high"
    ).fetchall()
    assert keys_on_disk(pipeline) == expected


@pytest.mark.slow
def test_a_row_that_vanishes_while_it_is_read_is_not_taken_for_captured(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = SegmentWriter.add
    monkeypatch.setattr(SegmentWriter, "add", lambda self, table: add(self, table.slice(1)))
    load(pipeline, 1, 2, 3)
    pipeline.tick()
    monkeypatch.undo()
    assert len(keys_on_disk(pipeline)) == len(sent(pipeline)) == 2
    pipeline.tick()
    assert sorted(sent(pipeline)) == ["event-1", "event-2", "event-3"]


def expire(pipeline: Pipeline, *, dry_run: bool = False) -> Removed:
    """Removes what is past its retention; returns what of the ledger went."""
    report = RetentionReport(dry_run=dry_run)
    expire_segments(pipeline.context, report)
    return report.removed.get("captured_ids", Removed())


def settle(pipeline: Pipeline) -> None:
    """Ticks until everything that was read so far is taken as complete."""
    for _ in range(3):
        pipeline.clock.sleep(601)
        load(pipeline, next(fillers))
        pipeline.tick()


fillers = iter(range(10_000, 20_000))


@pytest.mark.slow
def test_runs_past_their_retention_go_and_their_ids_are_new_again(pipeline: Pipeline) -> None:
    load(pipeline, 1, 2)
    pipeline.tick()
    settle(pipeline)
    pipeline.clock.sleep(29 * DAY.total_seconds())
    load(pipeline, 1, 3)
    pipeline.tick()
    settle(pipeline)
    assert expire(pipeline) == Removed()
    pipeline.clock.sleep(2 * DAY.total_seconds())
    planned = expire(pipeline, dry_run=True)
    assert planned.files == 1
    assert planned.bytes > 80
    assert runs(pipeline) == [5, 4]
    assert expire(pipeline) == planned
    assert runs(pipeline) == [4]
    assert len(list((pipeline.settings.data_dir / "ledger").iterdir())) == 1
    load(pipeline, 1, 3)
    pipeline.tick()
    counted = Counter(sent(pipeline))
    assert [counted[f"event-{number}"] for number in (1, 2, 3)] == [2, 1, 1]


@pytest.mark.slow
def test_an_app_that_was_not_read_for_longer_than_the_retention_gets_nothing_twice(pipeline: Pipeline) -> None:
    """Where it stopped it reads a window of rows once more; their ids must not be forgotten meanwhile."""
    load(pipeline, 1, 2)
    pipeline.tick()
    for days in (31, 400):
        pipeline.clock.sleep(days * DAY.total_seconds())
        expire(pipeline)
        load(pipeline, next(fillers))
        pipeline.tick()
        pipeline.tick()
    assert max(Counter(sent(pipeline)).values()) == 1
    settle(pipeline)
    pipeline.clock.sleep(31 * DAY.total_seconds())
    assert expire(pipeline).files >= 2


def test_ids_that_share_half_of_their_bits_are_told_apart() -> None:
    run = (np.array([1, 5, 5, 5, 9], np.uint64), np.array([1, 7, 8, 9, 1], np.uint64))
    wanted = (np.array([0, 1, 1, 5, 5, 5, 9, 10], np.uint64), np.array([1, 1, 2, 9, 7, 6, 1, 1], np.uint64))
    assert ledger._contains(run, wanted).tolist() == [False, True, False, True, True, False, True, False]


def test_the_bits_of_an_id_are_the_same_in_every_version() -> None:
    """They stand in files that later versions read."""
    with duckdb.connect() as connection:
        connection.register("ids", pa.table({"app_id": ["radio"], "id": ["event-1"]}))
        ((high, low),) = connection.execute(f"SELECT {KEY_COLUMNS} FROM ids").fetchall()
    assert (high, low) == (18382183507959341937, 9351613501736252559)


def test_a_run_whose_file_is_gone_stops_the_capture_in_one_line(pipeline: Pipeline) -> None:
    load(pipeline, 1)
    pipeline.tick()
    for path in (pipeline.settings.data_dir / "ledger").iterdir():
        path.unlink()
    with pytest.raises(Exception, match="ledger of captured ids is missing"):
        Ledger(pipeline.context)


@pytest.mark.parametrize("others", ["up to date", "behind"])
@pytest.mark.slow
def test_a_new_integration_with_an_early_start_gets_all_and_brings_nothing_twice(
    pipeline: Pipeline, others: str
) -> None:
    """Not even what the ledger has forgotten by then."""
    if others == "behind":  # it holds the segments back, from which the new one takes what it can
        state.set_enabled(pipeline.context.store, pipeline.add("app", "off", start_from=None).key, enabled=False)
    load(pipeline, 1, 2)
    pipeline.tick()
    settle(pipeline)
    pipeline.clock.sleep(40 * DAY.total_seconds())
    settle(pipeline)
    expire(pipeline)
    first = next(iter(pipeline.wires))
    before = Counter(event["insert_id"] for event in pipeline.wires[first].events)
    load(pipeline, 3)
    late = pipeline.add("app", "late", start_from=None, user_id_kind="nami_user_id")
    pipeline.tick()
    load(pipeline, 4)
    pipeline.tick()
    now = Counter(event["insert_id"] for event in pipeline.wires[first].events)
    assert now - before == Counter({"event-3": 1, "event-4": 1})
    everything = Counter(event["insert_id"] for event in pipeline.sent(late))
    assert everything == now
    assert max(everything.values()) == 1
    for one in (late, *[one for one in state.all_integrations(pipeline.context.store) if one.id == first]):
        numbers = pipeline.status(one)
        assert (numbers.captured, numbers.delivered, numbers.pending) == (len(now), len(now), 0)
