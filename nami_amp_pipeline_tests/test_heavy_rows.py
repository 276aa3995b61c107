"""Stage 1 with rows that do not fit into the memory together: all are captured in one tick, whatever holds them."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nami_amp_pipeline.stages import captured_rows, heavy_rows, odd_rows
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.storage.duckdb_engine import more_memory, stream
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

LARGE, BYTES = 150, 400_000  # 60 MB, twice what the engine may have for reading


def row(number: int, payload: str) -> dict[str, Any]:
    moment = START - timedelta(hours=1) + timedelta(milliseconds=number)
    return {
        "id": f"e{number}", "app_id": "app", "event_type": "user.subscription.renewed", "user_id": f"u{number}",
        "created_date": moment, "ingested_at": moment, "payload": payload,
    }  # fmt: skip


def large(number: int) -> str:
    text = hashlib.shake_128(str(number).encode()).hexdigest(BYTES // 4)
    return json.dumps({"devices": [{"id": f"d{number}"}], "a": text[: BYTES // 2], "b": text[BYTES // 2 :]})


def rows() -> list[dict[str, Any]]:
    """Large ones among small ones, and one that is larger than a payload may be."""
    made = [row(number, '{"devices": []}') for number in range(1_000)]
    for number in range(300, 300 + 2 * LARGE, 2):
        made[number] = row(number, large(number))
    made[700] = row(700, '"' + "x" * 1_500_000 + '"')
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zstd", "uncompressed", "view", "postgresql"])
@pytest.mark.contract("5.6.2")
def test_more_large_payloads_than_memory_are_captured_in_one_tick(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environ = {"NAMI_AMP_DUCKDB_MEMORY": "60MB", "NAMI_AMP_DUCKDB_THREADS": "2"}
    if kind == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        environ["NAMI_AMP_WAREHOUSE_URL"] = server.fresh_database()
    if kind == "view":
        environ["NAMI_AMP_WAREHOUSE_TABLE"] = "seen"
    pipeline = Pipeline(tmp_path, environ)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    pipeline.insert(rows())
    if kind != "postgresql":
        with duckdb.connect(str(pipeline.warehouse)) as connection:
            connection.execute(f"PRAGMA force_compression = '{'zstd' if kind == 'zstd' else 'uncompressed'}'")
            connection.execute("CREATE TABLE again AS FROM nami_events; DROP TABLE nami_events")
            connection.execute("ALTER TABLE again RENAME TO nami_events; CREATE VIEW seen AS FROM nami_events")
    captured = stages.capture_apps(pipeline.context)
    assert captured["app"].rows == 1_000
    found: dict[str, tuple[str | None, str | None]] = {}
    for path in (pipeline.context.folder.root / "segments").glob("*.parquet"):
        for batch in pq.ParquetFile(path).iter_batches(100, columns=["id", "payload", "problem"]):
            for one in batch.to_pylist():
                assert one["id"] not in found
                found[one["id"]] = one["payload"], one["problem"]
    assert found["e700"] == (None, "too_large")
    assert all(found[f"e{n}"] == (large(n), None) for n in range(300, 300 + 2 * LARGE, 2) if n != 700)
    assert sum(payload == '{"devices": []}' for payload, _ in found.values()) == 1_000 - LARGE - 1
    assert not stages.capture_apps(pipeline.context)
    pipeline.close()


def batches(*sizes: int) -> list[pa.RecordBatch]:
    return [pa.record_batch({"payload": ["x" * size]}) for size in sizes]


def test_batches_are_put_together_by_bytes_and_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy_rows, "GATHERED_BYTES", 1_000)
    monkeypatch.setattr(heavy_rows, "GATHERED_ROWS", 3)
    monkeypatch.setattr(heavy_rows, "MOST_BYTES", 2_000)
    assert [table.num_rows for table in heavy_rows.gathered(batches(400, 700, 10, 10, 10, 10))] == [2, 3, 1]
    with pytest.raises(heavy_rows.Heavy):
        list(heavy_rows.gathered(batches(10, 2_001)))


def test_an_error_in_the_middle_of_a_stream_is_of_its_kind() -> None:
    with duckdb.connect() as connection:
        late = "SELECT CASE WHEN i < 400000 THEN 1 ELSE error('Out of Memory') END FROM range(500000) r(i)"
        with pytest.raises(duckdb.DataError, match="Out of Memory"):
            for _ in stream(connection, late, 2_048):
                pass
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_memory_is_raised_for_a_while_only() -> None:
    with duckdb.connect(config={"memory_limit": "100MB"}) as connection:
        limit = "SELECT current_setting('memory_limit')"
        with more_memory(connection, 4):
            assert connection.execute(limit).fetchone()[0].startswith("381.")  # type: ignore[index]
        assert connection.execute(limit).fetchone()[0].startswith("95.")  # type: ignore[index]


@pytest.mark.slow
def test_events_with_large_texts_are_prepared_a_few_at_a_time(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_DUCKDB_MEMORY": "300MB"})
    one = pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    pipeline.insert([row(number, json.dumps({"text": "x" * 680_000})) for number in range(100)])
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    prepared = stages.prepare_integrations(pipeline.context, [one])[one.id]
    assert (prepared.captured, prepared.sendable + sum(prepared.dead.values())) == (100, 100)
    pipeline.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
@pytest.mark.contract("1.12", "5.6.2")
def test_an_odd_row_before_heavy_ones_is_set_aside_alone(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for it reads heavy rows too: they are not to blame, and do not end it."""
    environ = {"NAMI_AMP_DUCKDB_MEMORY": "60MB", "NAMI_AMP_DUCKDB_THREADS": "2"}
    if kind == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        environ["NAMI_AMP_WAREHOUSE_URL"] = server.fresh_database()
    pipeline = Pipeline(tmp_path, environ)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    # Two vectors that are light: the odd row is met before it is known that others are heavy.
    light = [row(number, '{"devices": []}') for number in range(2 * heavy_rows.VECTOR_ROWS)]
    heavy = [row(len(light) + number, large(number)) for number in range(LARGE)]
    giant = row(len(light) + LARGE, '"' + "x" * 20_000_000 + '"')
    pipeline.insert(light)
    pipeline.insert([*heavy, giant])
    whole = odd_rows.look_at_doubtful

    def failing(table: pa.Table, connection: duckdb.DuckDBPyConnection) -> pa.Table:
        if "e7" in table["id"].to_pylist():
            raise OverflowError("nobody thought of this")
        return whole(table, connection)

    monkeypatch.setattr(captured_rows, "look_at_doubtful", failing)
    captured = stages.capture_apps(pipeline.context)
    assert captured["app"].rows == len(light) - 1 + LARGE + 1
    problems = {
        event: problem
        for path in (pipeline.context.folder.root / "segments").glob("*.parquet")
        for event, problem in zip(*pq.read_table(path, columns=["id", "problem"]).to_pydict().values(), strict=True)
    }
    assert "e7" not in problems
    assert {event for event, problem in problems.items() if problem} == {giant["id"]}
    assert not stages.capture_apps(pipeline.context)
    pipeline.close()
