"""The scenes of cases/field, made after public bug reports: each has its test, here or where its subject is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline_tests.support.command_line import add, invoke, one_line
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline, Time

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

ROWS_HERE = ("half an emoji", "a new category of event", "1e999")
WORDS_HERE = ("run in the wrong folder", "a run that still makes progress")
"""Cases about what a run tells people."""


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
    assert sorted(names) == sorted([*ELSEWHERE, *ROWS_HERE, *WORDS_HERE])
    for module in set(ELSEWHERE.values()):
        assert (Path(__file__).parent / f"{module}.py").is_file()


@pytest.mark.parametrize("name", ROWS_HERE)
@pytest.mark.slow
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


@pytest.mark.contract("6.9")
@pytest.mark.slow
def test_run_in_the_wrong_folder(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for folder in (right, wrong):
        folder.mkdir()
    add(right, "http://127.0.0.1:9/2/httpapi")
    done = invoke(wrong, "run")
    assert done.exit_code == 1
    assert str(wrong / ".nami-amp" / "state.db") in one_line(done.stderr)
    assert "NAMI_AMP_HOME" in done.stderr
    told = invoke(wrong, "run", "--json")
    assert told.exit_code == 1
    assert orjson.loads(told.stdout)["integrations"] == []
    lists = ("pending", "dead-letters", "integrations", "alerts")
    for command in (("status",), ("dead-letters", "causes"), *((name, "list") for name in lists)):
        assert f"in {wrong / '.nami-amp' / 'state.db'} yet" in invoke(wrong, *command).stdout
    assert f"nor any other in {wrong / '.nami-amp' / 'state.db'}: " in one_line(
        invoke(wrong, "deliveries", "shop/main").stderr
    )
    assert invoke(right, "run", settings={"NAMI_AMP_RUN_RETRY_SECONDS": "0"}).exit_code == 1  # it has one, unreachable
    assert not (wrong / ".nami-amp" / "dagster").exists()


class Waiting(Agreeing):
    """A wire that says yes, on a clock that goes on only while everybody waits."""

    def __init__(self, clock: Time) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        if not self._answers and seconds > 0:
            self._clock.sleep(seconds)
            return []
        return super().wait(seconds)


@pytest.mark.contract("6.7")
@pytest.mark.parametrize(("events", "runs"), [(3_000, 1), (6_000, 2)])
@pytest.mark.slow
def test_a_run_that_still_makes_progress(tmp_path: Path, events: int, runs: int) -> None:
    """3,000 events of one user take 93 s at 30 a second: one run. With more, a run ends, and the next one goes on."""
    scene = Pipeline(tmp_path)
    one = scene.add("shop", user_id_kind="nami_user_id")
    base = {**CASES["base"], "payload": "{}", "user_id": "u"}
    at = [(START + timedelta(milliseconds=number)).isoformat() for number in range(events)]
    scene.insert([{**base, "id": f"e{n}", "created_date": at[n], "ingested_at": at[n]} for n in range(events)])
    scene.clock.set(START + timedelta(days=1))
    wire = scene.wires[one.id] = Waiting(scene.clock)
    for number in range(runs):
        assert scene.status(one).delivered < events
        begun = scene.clock.now
        scene.tick()
        assert scene.clock.now - begun < 2 * scene.settings.run_retry_seconds
        if number < runs - 1:
            assert 3_000 < scene.status(one).delivered < events
            scene.clock.sleep(60)
    assert (scene.status(one).delivered, scene.status(one).pending) == (events, 0)
    assert [event["insert_id"] for event in wire.events] == [f"e{number}" for number in range(events)]
    scene.close()
