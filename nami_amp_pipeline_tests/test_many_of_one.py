"""A great many rows of one id, and of one ``ingested_at``: captured once, and next to nothing in the ticks after it.

By hand with 1,000,000 rows in DuckDB, on two cores: of one id, a tick takes 0.5 s and 330 MB; of one ``ingested_at``,
18 s and 540 MB for the three stages that compute, and 1 s for each quiet tick after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nami_amp_pipeline.delivery.store_changes import StoreChanges
from nami_amp_pipeline.stages import outbox_writer, pipeline
from nami_amp_pipeline_tests.simulation.scripted_answers import Bench, event
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

ROWS = 6_000


@pytest.fixture(params=["duckdb", pytest.param("postgresql", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pipeline]:
    # Fewer than there are rows at each turn, so that every limit is met.
    environ = {"NAMI_AMP_SEGMENT_ROWS": "1000", "NAMI_AMP_MAX_ROWS_PER_TICK": "1000"}
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        environ["NAMI_AMP_WAREHOUSE_URL"] = server.fresh_database()
    made = Pipeline(tmp_path / "home", environ, open_at=START + timedelta(days=1))
    yield made
    made.close()


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": "user.subscription.renewed", "user_id": f"u{number % 50}",
        "created_date": START + timedelta(seconds=number), "ingested_at": START + timedelta(milliseconds=number),
        "payload": "{}", **more,
    }  # fmt: skip


def captured(made: Pipeline) -> int:
    made.clock.now += 60
    return sum(part.rows for part in pipeline.capture_apps(made.context).values())


def test_many_rows_of_one_id(made: Pipeline) -> None:
    one = made.add("radio", user_id_kind="nami_user_id")
    made.insert([row(number, id="same") for number in range(ROWS)])
    made.insert([row(ROWS, id="other")])
    made.tick()
    assert [captured(made) for _ in range(3)] == [0, 0, 0]
    made.insert([row(number, id="same") for number in range(ROWS, 2 * ROWS)])
    made.tick()
    assert sorted(event["insert_id"] for event in made.sent(one)) == ["other", "same"]
    assert made.status(one).delivered == 2


@pytest.mark.slow
def test_many_rows_of_one_ingested_at(made: Pipeline) -> None:
    """They stay together beyond the limit of a tick: their users' order is that of ``created_date``."""
    one = made.add("radio", user_id_kind="nami_user_id")
    made.insert([row(number, ingested_at=START) for number in range(ROWS)])
    made.insert([row(ROWS + number, ingested_at=START + timedelta(hours=1)) for number in range(10)])
    for _ in range(3):
        made.tick()
    assert [captured(made) for _ in range(3)] == [0, 0, 0]
    sent = made.sent(one)
    assert sorted(int(event["insert_id"][1:]) for event in sent) == list(range(ROWS + 10))
    for user in range(50):
        times = [event["time"] for event in sent if event["user_id"] == f"u{user}"]
        assert times == sorted(times)
    assert made.status(one).delivered == ROWS + 10


@pytest.mark.slow
def test_many_rows_of_one_user_are_written_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice takes a part of the memory, and all of them are one lane in posting order."""
    monkeypatch.setattr(outbox_writer, "_BODY_BYTES", 1_000)
    monkeypatch.setattr(outbox_writer, "LANE_BATCH_ROWS", 100)
    made = Pipeline(tmp_path, open_at=START + timedelta(days=1))
    one = made.add("radio", user_id_kind="nami_user_id")
    # Loaded in another order than they happened; two share a moment, so that ids decide.
    made.insert(
        [row(number, user_id="one", created_date=START - timedelta(hours=number // 2)) for number in range(950)]
    )
    made.insert([row(950 + number, user_id="other") for number in range(7)])
    pipeline.capture_apps(made.context)
    pipeline.snapshot_apps(made.context)
    prepared = pipeline.prepare_integrations(made.context, [one])[one.id]
    assert (prepared.captured, prepared.sendable) == (957, 957)
    (path,) = (made.context.folder.root / "outboxes").glob("*.arrow")
    with pa.ipc.open_file(path) as file:
        written = [file.get_batch(number) for number in range(file.num_record_batches)]
    lanes = {"one": 950, "other": 7}
    for user, rows in lanes.items():
        mine = [event for batch in written for event in batch.to_pylist() if event["user_id"] == user]
        assert len(mine) == rows
        assert mine == sorted(mine, key=lambda event: (event["created_date"], event["id"]))
    assert max(batch.num_rows for batch in written) == 100
    made.close()


@pytest.mark.slow
def test_many_events_of_one_user_are_held_a_request_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 4 records those that it holds before it looks at more, so its memory does not grow with their number."""
    most = held = 0
    insert, clear = StoreChanges.insert_exceptions, StoreChanges.clear

    def inserting(changes: StoreChanges, rows: Sequence[dict[str, Any]], *more: Any) -> None:
        nonlocal most, held
        held += len(rows)
        most = max(most, held)
        insert(changes, rows, *more)

    def clearing(changes: StoreChanges) -> None:
        nonlocal held
        held = 0
        clear(changes)

    monkeypatch.setattr(StoreChanges, "insert_exceptions", inserting)
    monkeypatch.setattr(StoreChanges, "clear", clearing)
    bench = Bench(tmp_path, batch_events=500, run_retry_seconds=5.0)
    bench.prepare([event(number, "hot") for number in range(12_000)] + [event(12_000, "other")])
    bench.deliver()
    status = bench.status()
    assert status.pending_by.keys() == {"held"}, "all of the lane was looked at"
    assert "e12000" in bench.order
    hot = [one for one in bench.order if one != "e12000"]
    assert hot == [f"e{number}" for number in range(len(hot))]
    assert 0 < most <= 2 * 500
