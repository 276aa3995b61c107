"""A row of a kind that nobody thought of stops itself only, wherever in the stages it turns up.

Each test makes the SQL or the Python of a stage fail for some rows, as a bug would that nobody knows yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.dead_letters import show
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.stages import (
    captured_rows,
    event_properties,
    odd_rows,
    pipeline,
    prepare,
    prepare_inputs,
    snapshots,
)
from nami_amp_pipeline.stages.body_variants import Variant
from nami_amp_pipeline.stages.table import PREPARE
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.storage.row_faults import find_odd, may_be_a_rows
from nami_amp_pipeline_tests.support.fast_start import shared_engine
from nami_amp_pipeline_tests.support.harness import START, Pipeline

KIND = "user.subscription.renewed"
Sql = Callable[[str], str]


def rows(count: int, app: str = "app", **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{app}-{number}",
            "app_id": app,
            "event_type": KIND,
            "user_id": f"u{number % 7}",
            "created_date": START,
            "ingested_at": START,
            "payload": json.dumps({"n": number, "active_entitlements": [{"entitlement_ref_id": f"p{number}"}], **more}),
        }
        for number in range(count)
    ]


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    threads = getattr(request, "param", 1)
    with shared_engine() if threads == 1 else nullcontext():
        made = Pipeline(tmp_path, {"NAMI_AMP_DUCKDB_THREADS": str(threads), "NAMI_AMP_SEGMENT_ROWS": "20"})
        yield made
        made.close()


both = pytest.mark.parametrize("scene", [1, 2], ids=["one thread", "two threads"], indirect=True)


def add(scene: Pipeline, *keys: str) -> list[Integration]:
    return [scene.add(*key.split("/"), user_id_kind="nami_user_id") for key in keys]


def ends(scene: Pipeline, one: Integration) -> dict[str, int]:
    numbers = scene.status(one)
    assert numbers.pending == 0
    assert numbers.captured == numbers.delivered + sum(numbers.dead_letters.values()) + sum(numbers.skipped.values())
    return {"delivered": numbers.delivered, **numbers.dead_letters}


def failing_sql(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, old: str, new: str) -> None:
    """Makes a stage run other SQL than a file has: ``old`` replaced by ``new``."""
    attribute = "snapshot_sql" if module is snapshots else "sql"
    whole: Sql = getattr(module, attribute)

    def sql(asked: str) -> str:
        text = whole(asked)
        if asked != name:
            return text
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(module, attribute, sql)


BODY = "',\"time\":', whole_ms(e.created_date),"
ODD_BODY = "CASE WHEN e.id IN ({}) THEN error('nobody thought of this') END, " + BODY


@pytest.mark.slow
@both
@pytest.mark.contract("1.12")
def test_a_row_that_stage_3_cannot_compute_is_a_dead_letter_of_its_own(
    scene: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, same, other = add(scene, "app/i", "app/j", "other/i")
    scene.insert([*rows(30), *rows(10, "other")])
    failing_sql(monkeypatch, prepare, "prepare_1_bodies", BODY, ODD_BODY.format("'app-7', 'app-23'"))
    scene.tick()
    assert ends(scene, one) == {"delivered": 28, "odd_row": 2} == ends(scene, same)
    assert ends(scene, other) == {"delivered": 10}
    said = [line for line in caplog.messages if "cannot be computed (" in line]
    assert len(said) == 2
    assert "event app-7 of app app" in "".join(said)
    assert "nobody thought of this" in said[0]
    letters = show(scene.context.store, "app-7")
    assert [(letter.reason, json.loads(letter.payload or "")["n"]) for letter in letters] == [("odd_row", 7)] * 2
    assert trace(scene.context, "app-7")
    assert not list((scene.settings.data_dir / "outboxes").glob("*.part"))
    scene.insert([{**row, "id": f"late-{row['id']}"} for row in rows(3)])
    scene.tick()
    assert ends(scene, one) == {"delivered": 31, "odd_row": 2}


@pytest.mark.slow
def test_a_row_that_one_integration_cannot_compute_is_delivered_to_the_others(
    scene: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain,) = add(scene, "app/plain")
    shy = scene.add("app", "shy", user_id_kind="nami_user_id", hashed=("n",))
    scene.insert(rows(30))
    whole = Variant.create_macros

    def create_macros(variant: Variant, connection: duckdb.DuckDBPyConnection) -> None:
        whole(variant, connection)
        if variant.hashed:
            connection.execute(
                "CREATE OR REPLACE TEMP MACRO hash_of(clear) AS CASE WHEN clear = '7' THEN error('no') ELSE clear END"
            )
            connection.execute("CREATE OR REPLACE TEMP MACRO hashed(value) AS '\"' || hash_of(value) || '\"'")

    monkeypatch.setattr(Variant, "create_macros", create_macros)
    scene.tick()
    assert ends(scene, plain) == {"delivered": 30}
    assert ends(scene, shy) == {"delivered": 29, "odd_row": 1}


@pytest.mark.slow
def test_python_that_fails_for_a_row_of_stage_3(scene: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = add(scene, "app/i")
    scene.insert(rows(30))
    with_scalar = rows(5, devices="none")  # Python reads those
    scene.insert([{**row, "id": f"slow-{row['id']}"} for row in with_scalar])
    whole = event_properties._properties

    def failing(fields: Any, kind: Any) -> str:
        if fields.get("n") == "3":
            raise KeyError("nobody thought of this")
        return whole(fields, kind)

    monkeypatch.setattr(event_properties, "_properties", failing)
    scene.tick()
    assert ends(scene, one) == {"delivered": 34, "odd_row": 1}


@pytest.mark.slow
@both
@pytest.mark.contract("1.12")
def test_a_row_that_stage_2_cannot_compute_tells_nothing_of_its_user(
    scene: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = add(scene, "app/i", "other/i")
    scene.insert([*rows(30), *rows(10, "other")])
    old = "app_id, id, user_id, created_date, row, entitlements, devices, journey,"
    new = f"CASE WHEN id = 'app-7' AND has_entitlements THEN error('nobody thought of this') ELSE app_id END AS {old}"
    failing_sql(monkeypatch, snapshots, "snapshots_6_rows", old, new)
    scene.tick()
    assert ends(scene, one) == {"delivered": 30}
    assert ends(scene, other) == {"delivered": 10}
    by_id = {event["insert_id"]: event["user_properties"] for event in scene.sent(one)}
    assert by_id["app-14"]["namiml_active_entitlements"] == ["p14"]
    # What the user's event before it told.
    assert by_id["app-7"]["namiml_active_entitlements"] == ["p28"]
    assert any("event app-7 of app app cannot be computed" in line for line in caplog.messages)
    assert not list((scene.settings.data_dir / "snapshots").glob("*.part"))


@pytest.mark.slow
def test_python_that_fails_for_a_row_of_stage_1_with_any_error(
    scene: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = add(scene, "app/i")
    scene.insert(rows(30))
    whole = odd_rows.look_at_doubtful

    def failing(table: Any, connection: duckdb.DuckDBPyConnection) -> Any:
        if "app-7" in table["id"].to_pylist():
            raise OverflowError("nobody thought of this")
        return whole(table, connection)

    monkeypatch.setattr(captured_rows, "look_at_doubtful", failing)
    scene.tick()
    assert ends(scene, one) == {"delivered": 29}


@pytest.mark.slow
def test_what_every_row_meets_is_no_rows_fault(scene: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = add(scene, "app/i", "other/i")
    scene.insert([*rows(9), *rows(5, "other")])
    bad = ", ".join(f"'app-{number}'" for number in range(9))
    pipeline.capture_apps(scene.context)
    pipeline.snapshot_apps(scene.context)
    with monkeypatch.context() as patched:
        failing_sql(patched, prepare, "prepare_1_bodies", BODY, ODD_BODY.format(bad))
        patched.setattr(odd_rows, "MOST_ODD", 3)
        failed: list[object] = []
        pipeline.run_stage(scene.context, PREPARE, [one, other], failed=lambda subject, _: failed.append(subject))
    assert failed == [one]
    scene.tick()  # as a new version would
    assert ends(scene, one) == {"delivered": 9}
    assert ends(scene, other) == {"delivered": 5}


@pytest.mark.slow
def test_an_error_that_does_not_come_back_costs_no_row(scene: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = add(scene, "app/i")
    scene.insert(rows(30))
    left = 2
    whole = prepare_inputs.register_sent

    def failing(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise IndexError("nobody thought of this")
        whole(*arguments)

    monkeypatch.setattr("nami_amp_pipeline.stages.prepare.register_sent", failing)
    scene.tick()
    assert ends(scene, one) == {"delivered": 30}


def test_a_payload_that_nests_too_deep_for_python_is_hidden_whole(tmp_path: Path) -> None:
    scene = Pipeline(tmp_path)
    one = scene.add("app", user_id_kind="nami_user_id", exclude=("secret",))
    deep = '{"secret":1,"deep":' + "[" * 3_000 + "]" * 3_000 + "}"
    scene.insert([{**rows(1)[0], "user_id": "null", "payload": deep}, *rows(3)[1:]])
    scene.tick()
    assert ends(scene, one) == {"delivered": 2, "reserved_user_id": 1}
    (letter,) = show(scene.context.store, "app-0")
    assert letter.payload is None
    scene.close()


@pytest.mark.parametrize("bad", [[], [0], [9], [3, 4], [0, 5, 9], list(range(10))])
def test_rows_are_found_by_halves(bad: list[int]) -> None:
    asked: list[tuple[int, int]] = []

    def failure(first: int, end: int) -> str | None:
        asked.append((first, end))
        return f"{first}-{end}" if any(first <= one < end for one in bad) else None

    assert list(find_odd(0, 10, failure, 10)) == bad
    assert len(asked) <= 1 + 2 * 4 * max(1, len(bad))
    assert find_odd(3, 3, failure, 10) == {}
    assert len(find_odd(0, 10, failure, 2)) <= 3


def test_whose_fault_an_error_may_be() -> None:
    for error in (KeyError("x"), duckdb.InvalidInputException("x"), OverflowError(), duckdb.FatalException("x")):
        assert may_be_a_rows(error), error
    no_memory = RuntimeError("can't start new thread")
    for other in (OSError(5, "x"), MemoryError(), duckdb.IOException("x"), NamiAmpError("x"), no_memory):
        assert not may_be_a_rows(other), other
