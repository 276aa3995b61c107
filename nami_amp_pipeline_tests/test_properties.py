"""A user property is declared once; files and stores from before it go on working."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import Property, properties_table
from nami_amp_pipeline.defs.asset_pages.columns import column_schema
from nami_amp_pipeline.operations.current_snapshots import current_snapshots
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.stages.previews import snapshot_preview
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.storage.duckdb_engine import compute, read_files
from nami_amp_pipeline_tests.support.harness import START, Pipeline

PLATFORMS = Property(
    "namiml_purchase_platforms", "entitlements", "active_entitlements[].purchase_platform", "texts",
    "where what is active was bought",
)  # fmt: skip
PAUSED = Property("namiml_in_pause", "journey", "customer_journey_state.in_pause", "flag", "is paused")


def load(pipeline: Pipeline, ident: str, minutes: int, **payload: Any) -> None:
    pipeline.insert(
        [
            {
                "id": ident,
                "app_id": "app",
                "event_type": "user.subscription.renewed",
                "user_id": "u",
                "created_date": START + timedelta(minutes=minutes),
                "ingested_at": START.fromtimestamp(pipeline.clock.now, START.tzinfo),
                "payload": json.dumps(payload),
            }
        ]
    )


def bought(name: str, platform: str) -> dict[str, Any]:
    return {"active_entitlements": [{"entitlement_ref_id": name, "sku_ref_id": name, "purchase_platform": platform}]}


def sent(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    events = [event for wire in pipeline.wires.values() for event in wire.events]
    return {event["insert_id"]: event["user_properties"] for event in events}


def declare(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it takes: two properties more."""
    monkeypatch.setattr(contract, "PROPERTIES", (*contract.PROPERTIES, PLATFORMS, PAUSED))


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    opened = Pipeline(tmp_path)
    opened.add("app", start_from=None, user_id_kind="nami_user_id")
    yield opened
    opened.close()


def snapshot_files(pipeline: Pipeline) -> list[Path]:
    files = (pipeline.context.folder.root / "snapshots").glob("*.parquet")
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_a_property_is_added_by_its_declaration_alone(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch)
    load(pipeline, "1", -20, **bought("gold", "apple"), customer_journey_state={"in_pause": True})
    load(pipeline, "2", -10)
    pipeline.tick()
    pipeline.clock.sleep(60)
    load(pipeline, "3", -15)  # takes it from a file
    load(pipeline, "4", 0)  # takes it from the store
    pipeline.tick()
    whole = {
        "namiml_active_entitlements": ["gold"],
        "namiml_active_skus": ["gold"],
        "namiml_purchase_platforms": ["apple"],
        "namiml_in_pause": True,
    }
    assert sent(pipeline) == dict.fromkeys("1234", whole)
    (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
    assert {name: row[name] for name in whole} == whole
    capture = trace(pipeline.context, "3").captures[0]
    assert {name: capture["snapshot"][name] for name in whole} == whole
    assert capture["snapshot_sources"]["active_entitlements"]["event_id"] == "1"
    preview = snapshot_preview(snapshot_files(pipeline)[0], "app")[0]
    assert {name: preview[name] for name in whole} == whole
    columns = {column.name: column.description for column in column_schema(snapshot_schema()).columns}
    assert columns.keys() >= {PLATFORMS.name, PAUSED.name}
    assert PLATFORMS.name in properties_table()


@pytest.mark.slow
def test_files_and_snapshots_from_before_a_property_go_on_working(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(pipeline, "old-1", -50, **bought("gold", "apple"), devices=[{"id": "d"}])
    pipeline.tick()
    pipeline.clock.sleep(60)
    declare(monkeypatch)
    old = {"namiml_active_entitlements": ["gold"], "namiml_active_skus": ["gold"], "namiml_device_ids": ["d"],
           "namiml_device_platforms": []}  # fmt: skip
    # Taken from the store, which has the group from before: what it lacks is left out, not guessed.
    load(pipeline, "after", -40)
    pipeline.tick()
    assert sent(pipeline)["after"] == old
    pipeline.clock.sleep(60)
    load(pipeline, "new", -20, **bought("silver", "google"))
    pipeline.tick()
    new = {"namiml_active_entitlements": ["silver"], "namiml_active_skus": ["silver"],
           "namiml_purchase_platforms": ["google"]}  # fmt: skip
    assert sent(pipeline)["new"] == old | new
    pipeline.clock.sleep(60)
    # Late events look into files of both layouts.
    load(pipeline, "late-new", -10, devices=[])
    load(pipeline, "late-old", -30)
    pipeline.tick()
    assert sent(pipeline)["late-old"] == old
    assert sent(pipeline)["late-new"] == old | new | {"namiml_device_ids": []}
    for ident, wanted in (("old-1", old), ("late-old", old), ("new", old | new)):
        capture = trace(pipeline.context, ident).captures[0]
        assert capture["snapshot"] == wanted, "what a file lacks is left out"
    layouts = {PLATFORMS.name in pq.read_schema(path).names for path in snapshot_files(pipeline)}
    assert layouts == {True, False}
    assert snapshot_preview(snapshot_files(pipeline)[0], "app")[0][PLATFORMS.name] is None


@pytest.mark.slow
def test_a_process_that_does_not_know_a_property_leaves_none_behind(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        declare(newer)
        load(pipeline, "1", -20, **bought("gold", "apple"))
        pipeline.tick()
    pipeline.clock.sleep(60)
    load(pipeline, "2", -10, **bought("silver", "google"))  # by a process of before
    pipeline.tick()
    declare(monkeypatch)
    (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
    assert row["namiml_active_entitlements"] == ["silver"]
    assert row[PLATFORMS.name] is None, "apple would be a platform of gold under the date of silver"


def test_files_of_any_mixture_of_layouts_are_read(pipeline: Pipeline, tmp_path: Path) -> None:
    today = pa.schema([("id", pa.string()), ("names", pa.list_(pa.string())), ("is_new", pa.bool_()),
                       ("moment", pa.timestamp("us", tz="UTC")), ("number", pa.int64())])  # fmt: skip
    tables = {
        "today": pa.table({"id": ["a"], "names": [["x"]], "is_new": [True], "moment": [1], "number": [1]}).cast(today),
        "before": pa.table({"id": ["b"], "number": pa.array([2], pa.int32())}),
        "beyond": pa.table({"gone": [9], "id": ["c"], "names": [["y"]]}),
        "empty": pa.table({"id": pa.array([], pa.string())}),
    }
    paths = {name: tmp_path / f"{name}'s.parquet" for name in tables}
    for name, table in tables.items():
        with pq.ParquetWriter(paths[name], table.schema) as writer:
            writer.write_table(table.slice(0, 0))
            writer.write_table(table)
            writer.write_table(table.slice(0, 0))

    def read(*names: str) -> list[dict[str, Any]]:
        relation = read_files([paths[name] for name in names], today, "filename", "file_row_number")
        with compute(pipeline.settings) as connection:
            rows = connection.sql(f"SELECT {', '.join(today.names)}, file_row_number FROM {relation} ORDER BY id")
            found = rows.to_arrow_table()
        assert found.schema.field("names").type == pa.list_(pa.string())
        return [{key: value for key, value in row.items() if value is not None} for row in found.to_pylist()]

    b = {"id": "b", "number": 2, "file_row_number": 0}
    c = {"id": "c", "names": ["y"], "file_row_number": 0}
    assert read() == []
    assert read("empty") == []
    assert read("before") == [b]
    assert read("before", "beyond", "empty") == [b, c]
    assert [row["id"] for row in read("before", "today", "beyond")] == ["a", "b", "c"]
    assert [row["id"] for row in read("today", "before", "empty")] == ["a", "b"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("namiml_x", "devices", "active_entitlements[].x", "texts"),
        ("namiml_x", "devices", "devices[].x", "flag"),
        ("namiml_x", "journey", "customer_journey_state.x", "texts"),
        ("namiml_x", "others", "others.x", "flag"),
        ("namiml'x", "journey", "customer_journey_state.x", "flag"),
        ("namiml_x", "journey", "customer_journey_state.x y", "flag"),
        ("namiml_x", "journey", "customer_journey_state", "flag"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(wrong: tuple[str, str, str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is no (property|name)"):
        Property(*wrong, "no meaning")


def test_the_contract_page_has_the_properties_as_declared() -> None:
    page = (Path(__file__).parents[1] / "docs" / "contract.md").read_text("utf-8")
    _, table, _ = page.split("<!-- properties -->")
    assert table.strip() == properties_table(), "between the marks stands what contract.properties_table() gives"


@pytest.mark.slow
def test_pages_of_dagster_have_a_property_by_its_declaration_alone() -> None:
    script = (
        "from nami_amp_pipeline import contract\n"
        "contract.PROPERTIES += (contract.Property('namiml_in_pause', 'journey', 'customer_journey_state.in_pause', "
        "'flag', 'is paused'),)\n"
        "from nami_amp_pipeline.defs.assets import ASSETS\n"
        "asset = next(one for one in ASSETS if one.key.to_user_string() == 'user_property_snapshots')\n"
        "metadata, = asset.metadata_by_key.values()\n"
        "print({c.name: c.description for c in metadata['dagster/column_schema'].columns}['namiml_in_pause'])\n"
        "print('namiml_in_pause' in metadata['dagster/column_lineage'].deps_by_column)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.splitlines() == ["is paused", "True"]
