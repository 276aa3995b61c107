"""The scenes of cases/field, made after public bug reports: each has its test, here or where its subject is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline_tests.support.harness import START, Pipeline

CASES = json.loads((Path(__file__).parent / "cases" / "field" / "cases.json").read_text("utf-8"))

ELSEWHERE: Mapping[str, str] = {
    "rows without ingested_at or id": "test_odd_rows",
    "PostgreSQL SQL_ASCII with one bad byte": "test_odd_rows",
    "DuckDB view": "test_warehouse_types",
    "DuckDB uuid and enum columns": "test_warehouse_types",
    "PostgreSQL uuid, enum, char(36), bigint, citext, domain over domain": "test_warehouse_types",
    "PostgreSQL row level security": "test_warehouse_types",
    "PostgreSQL partitioned table with indexes on the partitions only": "test_warehouse_types",
    "names of schema and table": "test_warehouse_types",
    "postgres://": "test_warehouse_types",
    "reserved device id beside a known user": "test_field_stage3",
    "reserved device id alone": "test_field_stage3",
    "blank External ID": "test_field_stage3",
    "never anything but a blank External ID": "test_field_stage3",
    "quantity as a whole float": "test_field_stage3",
    "purchase_env in capitals": "test_field_stage3",
    "two integrations with one key": "test_integrations",
    "413 for one small event": "test_channel",
    "200 with events_ingested 0": "test_channel",
}
"""Cases that other modules of tests run."""

NOT_MET = ("run in the wrong folder", "a run that still makes progress")
"""Cases that the program does not meet yet: both are about what a run tells people."""

HERE = ("half an emoji", "a new category of event", "1e999")


def case(name: str) -> dict[str, Any]:
    """A case with the rows of the table in full."""
    (found,) = [one for one in CASES["cases"] if one["case"] == name]
    rows = []
    for given in found["rows"]:
        row = {**CASES["base"], **given}
        text = row.pop("payload_text", None)
        row["payload"] = text if text is not None else json.dumps(row["payload"])
        rows.append(row)
    return {**found, "rows": rows}


def test_every_case_has_a_place() -> None:
    names = [one["case"] for one in CASES["cases"]]
    assert sorted(names) == sorted([*ELSEWHERE, *NOT_MET, *HERE])
    for module in set(ELSEWHERE.values()):
        assert (Path(__file__).parent / f"{module}.py").is_file()


@pytest.mark.parametrize("name", HERE)
def test_case(name: str, tmp_path: Path, warehouse_url: str) -> None:
    found = case(name)
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": warehouse_url})
    one = scene.add("shop", user_id_kind="nami_user_id")
    scene.insert(found["rows"])
    scene.clock.set(START.replace(month=11, day=21))
    scene.tick()
    numbers = scene.status(one)
    expected = {"half an emoji": 1, "a new category of event": 0, "1e999": 1}[name]
    assert (numbers.captured, numbers.delivered, numbers.pending) == (expected, expected, 0)
    if name == "half an emoji":
        ((event),) = scene.sent(one)
        assert event["event_properties"]["name"] == "a\ufffd"
    if name == "1e999":
        ((event),) = scene.sent(one)
        assert "a" not in event["event_properties"]
    scene.close()
