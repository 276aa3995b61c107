"""Payloads that are large or odd: memory is bounded per row, and what cannot be read costs itself alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import ARRAY_CHARACTERS
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.stages import snapshots
from nami_amp_pipeline.stages.snapshot_sql import snapshot_sql
from nami_amp_pipeline_tests.support.harness import START, Pipeline

pytestmark = pytest.mark.slow_cases

NORMAL = {"active_entitlements": [{"entitlement_ref_id": "gold", "sku_ref_id": "gold-monthly"}], "devices": []}


def many(what: str, number: int) -> dict[str, Any]:
    items: list[dict[str, Any]]
    if what == "devices":
        items = [{"id": f"device-{n:08d}", "platform": {"id": f"platform-{n:08d}", "name": "x" * 10}}
                 for n in range(number)]  # fmt: skip
    elif what == "active_entitlements":
        items = [{"entitlement_ref_id": f"e-{n:08d}", "sku_ref_id": f"sku-{n:08d}", "name": "x" * 30}
                 for n in range(number)]  # fmt: skip
    else:
        items = [{"key": f"k-{n}", "type": "t", "value": f"{n:060d}"} for n in range(number)]
    return {what: items}


def row(ident: str, payload: Mapping[str, Any] | str, event_type: str = "user.subscription.renewed") -> dict[str, Any]:
    return {
        "id": ident, "app_id": "app", "event_type": event_type, "user_id": f"user-{ident}", "created_date": START,
        "ingested_at": START, "payload": payload if isinstance(payload, str) else json.dumps(payload),
    }  # fmt: skip


def sent(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    events = [event for wire in pipeline.wires.values() for event in wire.events]
    return {event["insert_id"]: event["user_properties"] for event in events}


@pytest.mark.parametrize("number", [8_000, 60_000])
@pytest.mark.parametrize("what", ["devices", "active_entitlements", "external_ids"])
@pytest.mark.contract("5.6.2")
@pytest.mark.slow
def test_a_payload_with_very_many_of_a_thing_stops_nobody(what: str, number: int, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, {"NAMI_AMP_MAX_PAYLOAD_BYTES": "16000000"})  # what stage 1 would set aside
    one = pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    pipeline.insert([row(f"n-{n}", NORMAL) for n in range(3_000)])
    pipeline.insert([row(f"large-{n}", many(what, number)) for n in range(3)])
    stages.capture_apps(pipeline.context)
    moved = stages.snapshot_apps(pipeline.context)
    assert moved["app"].events == 3_003
    arrays = {"devices": 2, "active_entitlements": 2, "external_ids": 0}[what]
    assert moved["app"].truncated_arrays == 3 * arrays
    pipeline.tick()
    numbers = pipeline.status(one)
    assert numbers.pending == 0
    assert numbers.delivered + sum(numbers.dead_letters.values()) == 3_003
    found = sent(pipeline)
    assert all(f"n-{n}" in found for n in range(3_000))
    for n in range(3):
        for name, values in found.get(f"large-{n}", {}).items():
            text = json.dumps(values, separators=(",", ":"))
            longer = json.dumps([*values, values[-1]], separators=(",", ":"))
            assert len(text) <= ARRAY_CHARACTERS < len(longer), name
            assert values == sorted(values)
    pipeline.close()


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        (["a" * 1_020], 1),  # 1,024 characters with brackets and quotes
        (["a" * 1_021], 0),
        (["a", "b" * 5_000], 1),
        (["a" * 700_000, "b"], 0),
        ([f"{n:03d}" for n in range(170)], 170),  # 6 characters each, and one more bracket than commas: 1,021
        ([f"{n:03d}" for n in range(171)], 170),
        ([chr(0x4E00 + n) for n in range(400)], 255),  # characters are counted, not bytes
        ([f'{n:04d}"' for n in range(200)], 113),  # an escaped quote is two characters
    ],
)
def test_an_array_keeps_the_longest_prefix_that_fits(items: list[str], kept: int, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    pipeline.insert([row("1", {"devices": [{"id": item} for item in items]})])
    pipeline.tick()
    assert sent(pipeline)["1"]["namiml_device_ids"] == items[:kept]
    pipeline.close()


def write_segment(pipeline: Pipeline, rows: list[dict[str, Any]]) -> Path:
    """Captures rows; returns the file that they are in."""
    pipeline.insert(rows)
    stages.capture_apps(pipeline.context)
    (path,) = (pipeline.context.folder.root / "segments").glob("*.parquet")
    return path


@pytest.mark.slow
def test_more_large_payloads_than_memory_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    one = pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    path = write_segment(pipeline, [row(f"large-{n}", {"n": n}) for n in range(120)])
    table = pq.read_table(path)
    payload = json.dumps(many("devices", 8_000))
    with pq.ParquetWriter(path, table.schema) as writer:
        for n in range(0, 120, 20):
            part = table.slice(n, 20)
            column = part.schema.get_field_index("payload")
            writer.write_table(part.set_column(column, "payload", pa.array([payload] * part.num_rows, pa.string())))
    tight = Context.open(
        Settings.load({"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_DUCKDB_MEMORY": "200MB"}),
        run_id="tight", clock=pipeline.clock,
    )  # fmt: skip
    moved = stages.snapshot_apps(tight)
    assert moved["app"].events == 120
    assert moved["app"].truncated_arrays == 240
    assert pipeline.status(one).pending == 120
    tight.store.close()
    pipeline.close()


@pytest.mark.slow
@pytest.mark.contract("5.6.2")
def test_a_payload_that_takes_too_much_memory_alone_costs_its_own_state_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    path = write_segment(pipeline, [row(f"n-{n}", NORMAL) for n in range(5)])
    table = pq.read_table(path)
    payloads = table["payload"].to_pylist()
    payloads[2] = json.dumps(many("devices", 10_000))
    column = table.schema.get_field_index("payload")
    pq.write_table(table.set_column(column, "payload", pa.array(payloads, pa.string())), path)
    tight = Context.open(
        Settings.load(
            {"NAMI_AMP_HOME": str(tmp_path), "NAMI_AMP_DUCKDB_MEMORY": "20MB", "NAMI_AMP_DUCKDB_THREADS": "1"}
        ),
        run_id="tight", clock=pipeline.clock,
    )  # fmt: skip
    assert stages.snapshot_apps(tight)["app"].events == 5
    told = [message for message in caplog.messages if "takes too much memory" in message]
    assert [message.split()[1] for message in told] == [table["id"][2].as_py()]
    tight.store.close()
    pipeline.close()


ODD = (
    "{}", '{"devices":[]}', '{"devices":[null]}', '{"devices":[[]]}', '{"devices":[1,"x",true]}', '{"devices":{}}',
    '{"devices":"x"}', '{"devices":{"0":{"id":"x"}}}', '{"devices":[{"id":{"id":"x"}}]}', '{"devices":[{"id":[1]}]}',
    '{"devices":[{"id":"x","platform":[]}]}', '{"devices":[{"id":"x","platform":"y"}]}',
    '{"devices":[{"id":1e400}]}', '{"devices":[{"id":-0}]}', '{"devices":[{"id":1E5}]}',
    '{"devices":[{"id":"\\u0000"}]}',
    '{"devices":[{"id":"\\ud83d\\ude00"}]}', '{"devices":[{"id":"\\ud83d"}]}', '{"devices":[{"\\ud83d":"x","id":"y"}]}',
    '{"devices":[{"id":"\\ude00\\ud83d"}]}', '{"devices":[{"ID":"x"}]}', '{"Devices":[{"id":"x"}]}',
    '{"devices":[{"id":"x"}],"devices":[{"id":"y"}]}', '{"devices":null,"devices":[{"id":"y"}]}',
    '{"devices":[{"id":"x","id":"y"}]}', '{"\\u0064evices":[{"id":"x"}]}',
    '{"active_entitlements":[{"entitlement_ref_id":123456789012345678901234567890}]}',
    '{"active_entitlements":' + "[" * 500 + "]" * 500 + "}", '{"x":' + "[" * 900 + "]" * 900 + "}",
    '{"customer_journey_state":{"in_trial_period":"true"}}', '{"customer_journey_state":[true]}',
    '{"customer_journey_state":{"in_trial_period":[]}}', '{"customer_journey_state":true}',
    '{"external_ids":[{"key":"external_id","value":"\\ud83d"}]}', '{"external_ids":[{"key":"\\ud83d","value":"x"}]}',
    '{"external_ids":[{"key":["external_id"],"value":"x"}]}', '{"external_ids":"external_id"}',
    '{"external_ids":[{"key":"external_id","value":1e400}]}', '{"": {}}', '{"$":1,"$.devices":2,"devices[0]":3}',
    '{"devices":[{"id":"' + "x" * 70_000 + '"}]}', '{"x":1e400}', '{"x":NaN}', "[]", "null", "", "{", '"x"',
)  # fmt: skip


def test_stage_2_fails_on_no_payload_that_was_captured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    types = ("user.subscription.renewed", "device.impression")
    pipeline.insert([row("normal", NORMAL)])
    pipeline.insert([row(f"{kind}-{n}", text, kind) for kind in types for n, text in enumerate(ODD)])
    stages.capture_apps(pipeline.context)
    caplog.set_level(logging.WARNING, logger="nami_amp_pipeline")
    caplog.clear()
    moved = stages.snapshot_apps(pipeline.context)
    assert not caplog.records, "all of it is read in columns"
    (path,) = (pipeline.context.folder.root / "segments").glob("*.parquet")
    captured = pq.read_table(path)
    wanted = [one["id"] for one in captured.to_pylist() if one["well_formed"] and one["id"] != "normal"]
    assert moved["app"].events == 1 + sum(ident.startswith("user") for ident in wanted)
    assert len(wanted) > len(ODD)
    pipeline.close()


@pytest.mark.slow
def test_a_row_that_cannot_be_parsed_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.add("app", start_from=None, user_id_kind="nami_user_id")
    pipeline.insert([row(f"n-{n}", {**NORMAL, "marked": n in (7, 12)}) for n in range(20)])
    real = snapshot_sql

    def breaking(name: str) -> str:
        fails = (
            "CASE WHEN contains(payload, '\"marked\": true') THEN error('a kind that nobody knows') ELSE payload END"
        )
        return real(name).replace("from_json(payload,", f"from_json({fails},")

    monkeypatch.setattr(snapshots, "snapshot_sql", breaking)
    stages.capture_apps(pipeline.context)
    caplog.set_level(logging.WARNING, logger="nami_amp_pipeline")
    moved = stages.snapshot_apps(pipeline.context)
    assert moved["app"].events == 20
    told = [record.getMessage() for record in caplog.records if "cannot be computed (" in record.getMessage()]
    assert [message.split()[1] for message in told] == ["n-7", "n-12"]
    with duckdb.connect() as connection:
        files = str(pipeline.context.folder.root / "snapshots" / "*.parquet")
        empty = connection.execute(
            "SELECT id FROM read_parquet(?) WHERE user_properties = '{}' ORDER BY id", [files]
        ).fetchall()
    assert empty == [("n-12",), ("n-7",)]
    pipeline.close()
