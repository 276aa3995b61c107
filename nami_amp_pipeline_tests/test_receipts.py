"""A finished outbox leaves one row per event: its end, why, and the request that settled it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery import outbox as outbox_module
from nami_amp_pipeline.delivery import receipts as receipts_module
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, Posted, event


def _receipts(bench: Bench, integration: int = 0) -> dict[str, dict[str, Any]]:
    boxes = tables.outboxes
    with bench.context.store.begin() as tx:
        names = tx.execute(
            sa.select(boxes.c.receipts_file).where(boxes.c.integration_id == bench.ids[integration])
        ).scalars()
        found = [row for name in names for row in pq.read_table(bench.context.folder.path(name)).to_pylist()]
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def _requests(bench: Bench) -> dict[int, Any]:
    with bench.context.store.begin() as tx:
        return {row.id: row for row in tx.execute(sa.select(tables.requests))}


def test_one_row_per_event_with_the_request_that_settled_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=4, max_lanes=3)
    bench.prepare([event(number, f"user{number % 5}") for number in range(60)], lanes=3)

    def answer(posted: Posted) -> HttpAnswer:
        if "e17" in posted.ids:
            return HttpAnswer(400, b'{"events_with_invalid_fields":{"time":[%d]}}' % posted.ids.index("e17"))
        if "e3" in posted.ids and posted.number < 6:
            return HttpAnswer(429, b'{"throttled_users":{"user3":31}}')
        return OK

    bench.answer = answer
    bench.deliver()
    receipts, requests = _receipts(bench), _requests(bench)
    assert receipts.keys() == {f"e{number}" for number in range(60)}
    assert receipts["e17"]["state"] == "dead"
    assert receipts["e17"]["reason"] == "rejected"
    assert requests[receipts["e17"]["request_id"]].status == 400
    held = {f"e{number}" for number in range(3, 60, 5)}
    for one, row in receipts.items():
        if one not in held and one != "e17":
            assert (row["state"], row["reason"]) == ("delivered", None)
            assert requests[row["request_id"]].outcome == "delivered"
    for one, exception in bench.exceptions("delivered").items():
        assert one in held
        assert requests[exception.request_id].outcome == "delivered"


def test_the_outbox_goes_once_all_its_integrations_are_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=2, run_retry_seconds=1.0)
    bench.prepare([event(0), event(1)])
    bench.answer = lambda posted: OK if ":9000/" in posted.url else HttpAnswer(503, b"")
    bench.deliver()
    outboxes = bench.settings.data_dir / "outboxes"
    assert len(list(outboxes.iterdir())) == 1
    bench.answer = lambda _posted: OK
    bench.deliver()
    assert list(outboxes.iterdir()) == []
    assert _receipts(bench, 0).keys() == _receipts(bench, 1).keys() == {"e0", "e1"}


def test_receipts_that_cannot_be_written_are_written_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, integrations=2)
    bench.prepare([event(0)])

    def full(*_args: object) -> object:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.context.folder, "parquet", full)
        done = bench.deliver()
    assert all("receipts" in (one.error or "") for one in done.values())
    assert bench.status(0).delivered == bench.status(1).delivered == 1
    bench.deliver()
    assert _receipts(bench).keys() == {"e0"}
    assert len(bench.posted) == 2


def test_lanes_longer_than_a_record_batch(tmp_path: Path) -> None:
    rows = outbox_module.LANE_BATCH_ROWS
    bench = Bench(tmp_path, batch_events=1_500)
    bench.prepare([event(number) for number in range(2 * rows + 7)])
    bench.deliver()
    assert bench.status().delivered == 2 * rows + 7
    assert bench.order == [f"e{number}" for number in range(2 * rows + 7)]
    assert len(_receipts(bench)) == 2 * rows + 7


def test_receipts_are_made_of_a_part_of_the_outbox_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes of more rows than are made at once, and several lanes that are made together."""
    rows = outbox_module.LANE_BATCH_ROWS
    monkeypatch.setattr(receipts_module, "_PORTION_ROWS", rows)
    made: list[int] = []
    whole = receipts_module._of_lanes

    def watched(*arguments: Any) -> Iterator[list[tuple[int, pa.RecordBatch, pa.Array]]]:
        for batches in whole(*arguments):
            made.append(sum(batch.num_rows for _, batch, _ in batches))
            yield batches

    monkeypatch.setattr(receipts_module, "_of_lanes", watched)
    bench = Bench(tmp_path, batch_events=700, run_retry_seconds=1.0)
    bad = {0, 1, rows - 1, rows, rows + 1, 2 * rows + 6}

    def answer(posted: Posted) -> HttpAnswer:
        named = [index for index, one in enumerate(posted.ids) if int(one[1:]) in bad]
        return (
            HttpAnswer(400, b'{"events_with_invalid_fields":{"time":%b}}' % json.dumps(named).encode()) if named else OK
        )

    bench.answer = answer
    bench.prepare([event(number) for number in range(2 * rows + 7)])
    bench.deliver()
    assert made == [rows, rows, 7]
    found, requests = _receipts(bench), _requests(bench)
    assert found.keys() == {f"e{number}" for number in range(2 * rows + 7)}
    assert {int(one[1:]) for one, row in found.items() if row["state"] == "dead"} == bad
    for one, row in found.items():
        request, number = requests[row["request_id"]], int(one[1:])
        assert request.first_row <= number < request.end_row
        assert request.status == (400 if number in bad else 200)
    made.clear()
    bench.prepare([event(30_000 + number, f"user{number % 20}") for number in range(120)], lanes=6)
    bench.deliver()
    assert made == [120]
