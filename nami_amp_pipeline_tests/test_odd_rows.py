"""One row stops nobody: whatever a row holds, it has an end of its own, and all others are delivered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import psycopg2
import pyarrow as pa
import pytest

from nami_amp_pipeline.operations import doctor
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.stages import captured_rows, odd_rows
from nami_amp_pipeline.state.unreadable import unreadable
from nami_amp_pipeline.storage import json_text
from nami_amp_pipeline_tests.support.harness import START, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

Make = Callable[..., Pipeline]

pytestmark = pytest.mark.slow_cases


def row(event_id: str | None, **more: Any) -> dict[str, Any]:
    payload = {"id": event_id, "device_id": "d", "n": 1}
    return {
        "id": event_id,
        "app_id": "app",
        "event_type": "device.impression",
        "user_id": "u",
        "created_date": START,
        "ingested_at": START,
        "payload": json.dumps(payload),
        **more,
    }


@pytest.fixture
def state_url(warehouse_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A store of the warehouse's kind: what a row does depends on each alone."""
    if warehouse_url.startswith("duckdb"):
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh_database()


@pytest.fixture
def make(tmp_path: Path, warehouse_url: str, state_url: str, request: pytest.FixtureRequest) -> Make:
    """Makes a pipeline over a table whose columns may be null, on each kind of warehouse and store."""

    def made(**environ: str) -> Pipeline:
        scene = Pipeline(
            tmp_path, {"NAMI_AMP_WAREHOUSE_URL": warehouse_url, "NAMI_AMP_STATE_URL": state_url, **environ}
        )
        scene.allow_nulls()
        request.addfinalizer(scene.close)
        return scene

    return made


def mostly_in_duckdb(names: str, cases: Sequence[Any]) -> pytest.MarkDecorator:
    """All cases with DuckDB, every third one with PostgreSQL: stages know no origin of what comes as it was written."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    both = [*((*row, "duckdb") for row in rows), *((*row, "postgresql") for row in rows[::3])]
    return pytest.mark.parametrize(f"{names}, warehouse_url", both, indirect=["warehouse_url"])


def end_of(scene: Pipeline, one: Any) -> dict[str, Any]:
    numbers = scene.status(one)
    assert numbers.pending == 0
    assert numbers.captured == numbers.delivered + sum(numbers.dead_letters.values()) + sum(numbers.skipped.values())
    return {"delivered": numbers.delivered, **numbers.dead_letters}


DATES = ("infinity", "-infinity", "0044-03-15 (BC) 00:00:00+00", "12026-01-01 00:00:00+00", None)


@pytest.mark.parametrize("date", DATES)
@pytest.mark.contract("1.11")
@pytest.mark.slow
def test_a_created_date_that_no_calendar_has_is_a_dead_letter(make: Make, date: str | None) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    if scene.postgres is not None and date:
        date = date.replace(" (BC)", "") + " BC" if "BC" in date else date
    scene.insert([row("good"), row("bad", created_date=date), row("late", ingested_at=START - timedelta(seconds=9))])
    for minutes in (1, 20):
        scene.clock.set(START + timedelta(minutes=minutes))
        scene.tick()
        assert end_of(scene, one) == {"delivered": 2, "bad_date": 1}
    assert {event["insert_id"] for event in scene.sent(one)} == {"good", "late"}
    assert trace(scene.context, "bad")


@pytest.mark.parametrize(
    ("date", "reason"), [(date, "bad_ingested_at") for date in DATES[:4]] + [(None, "no_ingested_at")]
)
@pytest.mark.slow
def test_an_ingested_at_that_no_calendar_has_hides_no_other_row(
    make: Make, date: str | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    other = scene.add("other", user_id_kind="nami_user_id")
    if scene.postgres is not None and date:
        date = date.replace(" (BC)", "") + " BC" if "BC" in date else date
    scene.insert([row("bad", ingested_at=date)])
    scene.tick()
    assert [(found.app_id, found.reason, found.rows) for found in unreadable(scene.context.store)] == [
        ("app", reason, 1)
    ]
    assert len([line for line in caplog.messages if "1 row of app app" in line]) == 1
    for minutes in (1, 30, 60):
        now = START + timedelta(minutes=minutes)
        scene.insert([row(f"good-{minutes}", ingested_at=now), row(f"o-{minutes}", app_id="other", ingested_at=now)])
        scene.clock.set(now)
        scene.tick()
    assert end_of(scene, one) == {"delivered": 3} == end_of(scene, other)
    assert [found.rows for found in unreadable(scene.context.store)] == [1]
    assert len([line for line in caplog.messages if "1 row of app app" in line]) == 1  # said once
    ((finding,),) = [[f for f in doctor.check_warehouse(scene.settings) if f.level == "warning"]]
    assert "1 row of app app" in finding.message
    assert "bad" in finding.message


@pytest.mark.contract("1.10")
@pytest.mark.slow
def test_rows_that_cannot_be_named_are_counted_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert(
        [row("good"), row(None), row(None), row(""), row("\0" if scene.postgres is None else ""), row("x" * 2_000),
         row("nobody's", app_id=None)]
    )  # fmt: skip
    expected = [("", "no_app_id", 1), ("app", "long_id", 1), ("app", "no_id", 4)]
    for minutes in (0, 1, 20, 21, 60):
        scene.clock.set(START + timedelta(minutes=minutes))
        scene.tick()
        found = [(found.app_id, found.reason, found.rows) for found in unreadable(scene.context.store)]
        assert found == expected, minutes
    assert end_of(scene, one) == {"delivered": 1}
    scene.insert([row(None, ingested_at=START + timedelta(minutes=60))])
    scene.clock.set(START + timedelta(minutes=90))
    for _ in range(3):
        scene.tick()
        scene.clock.sleep(900)
    assert {found.reason: found.rows for found in unreadable(scene.context.store)}["no_id"] == 5
    assert len([line for line in caplog.messages if "4 rows of app app" in line]) == 1
    assert any("2,000" in found.message or "1,024" in found.message for found in doctor.check_rows(scene.settings))


@mostly_in_duckdb(
    "change, reason",
    [
        ({"user_id": None}, "no_user_id"),
        ({"user_id": ""}, "no_user_id"),
        ({"user_id": "\0\0"}, "no_user_id"),
        ({"user_id": "".join(chr(300 + n % 5_000) for n in range(4_000))}, "long_user_id"),
        ({"payload": None}, "malformed_payload"),
        ({"payload": '{"a":' + '"' + "x" * 1_000_000 + '"}'}, "too_large"),
        ({"payload": '{"a":NaN}'}, "malformed_payload"),
        ({"payload": "[1]"}, "malformed_payload"),
        ({"payload": '{"a":"\\ud8'}, "malformed_payload"),
    ],
)
@pytest.mark.contract("1.11")
@pytest.mark.slow
def test_a_row_that_cannot_be_sent_is_a_dead_letter(make: Make, change: Mapping[str, Any], reason: str) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert([row("bad", **change), row("good")])
    scene.tick()
    scene.tick()
    assert end_of(scene, one) == {"delivered": 1, reason: 1}


@pytest.mark.slow
def test_an_event_without_type_is_nobodys(make: Make) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert([row("none", event_type=None), row("long", event_type="x" * 100_000), row("good")])
    scene.tick()
    assert end_of(scene, one) == {"delivered": 1}


@mostly_in_duckdb("event_id", ["a\nb", "\x01\x1f\x7f", "\u2028", "'; --", "x" * 1_024, "\U0001f600" * 256, " "])
@pytest.mark.slow
def test_any_id_that_can_be_held_is_delivered(make: Make, event_id: str) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert([row(event_id), row("good")])
    scene.tick()
    scene.tick()
    assert {event["insert_id"] for event in scene.sent(one)} == {event_id, "good"}


def huge(count: int, length: int) -> str:
    devices = [{"id": f"{n:0{length}d}", "platform": {"id": f"p{n:0{length}d}"}} for n in range(count)]
    entitlements = [{"entitlement_ref_id": f"e{n:0{length}d}", "sku_ref_id": f"s{n}"} for n in range(count)]
    return json.dumps({"devices": devices, "active_entitlements": entitlements})


@pytest.mark.parametrize(("count", "length"), [(7_000, 10), (60, 7_000), (20_000, 1)])
@pytest.mark.contract("5.6.2")
@pytest.mark.slow
def test_thousands_of_devices_stay_within_the_memory(make: Make, count: int, length: int) -> None:
    scene = make(NAMI_AMP_DUCKDB_MEMORY="200MB", NAMI_AMP_MAX_PAYLOAD_BYTES="4000000")
    one = scene.add("app", user_id_kind="nami_user_id")
    kind = "user.subscription.renewed"
    scene.insert([row(f"big-{n}", event_type=kind, payload=huge(count, length)) for n in range(3)] + [row("small")])
    scene.tick()
    assert end_of(scene, one) == {"delivered": 4}
    for event in scene.sent(one):
        for value in event.get("user_properties", {}).values():
            assert len(orjson.dumps(value)) <= 1_024


ODD_JSON = (
    '"a":1e999',
    '"a":-1e400,"b":2',
    '"a":1' + "0" * 400,
    '"a":1' + "0" * 5_000,
    '"a":1e-999',
    '"a":' + "[" * 3_000 + "]" * 3_000,
    '"a":' + '{"x":' * 3_000 + "1" + "}" * 3_000,
    '"' + "k" * 70_000 + '":1',
    '"a":"\\u0000"',
    '"a":1.' + "1" * 5_000,
    '"amount":1e999,"quantity":1e999',
    '"amount":5,"quantity":' + "9" * 500,
    '"device_id":1e999',
)


@mostly_in_duckdb("odd", ODD_JSON)
def test_odd_json_is_sent_in_one_way(make: Make, odd: str) -> None:
    """Whatever else the payload holds: the same field twice takes another path through stage 3."""
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    kind = "device.transaction"
    scene.insert(
        [row("fast", event_type=kind, payload=f'{{{odd},"z":1}}'),
         row("slow", event_type=kind, payload=f'{{{odd},"z":2,"z":1}}'), row("good")]
    )  # fmt: skip
    scene.tick()
    assert end_of(scene, one) == {"delivered": 3}
    for wire in scene.wires.values():
        for body in wire.bodies:
            orjson.loads(body)  # strict, as a receiver's parser may be
    by_id = {event.pop("insert_id"): event for event in scene.sent(one)}
    assert by_id["fast"] == by_id["slow"]
    assert by_id["fast"]["event_properties"]["z"] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name":"a\\ud83d"}', {"name": "a\ufffd"}),
        ('{"a\\udc00b":1}', {"a\ufffdb": 1}),
        ('{"x":1,"x":2,"y":"\\uD83D\\uD83D\\uDE00"}', {"x": 2, "y": "\ufffd\U0001f600"}),
        ('{"y":"\\\\ud83d \\ud83d","n":1e999}', {"y": "\\ud83d \ufffd"}),
    ],
)
def test_half_a_character_is_replaced_and_counted(
    make: Make, text: str, expected: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert([row("half", payload=text), row("good")])
    scene.tick()
    assert end_of(scene, one) == {"delivered": 2}
    (event,) = [event for event in scene.sent(one) if event["insert_id"] == "half"]
    assert event["event_properties"] == {**expected, "namiml_event_category": "device"}
    assert any("1 event" in line for line in caplog.messages)


def test_half_a_character_in_arrays_and_ids(make: Make) -> None:
    scene = make()
    one = scene.add("app")
    payload = (
        '{"devices":[{"id":"d\\ud83d"}],"external_ids":[{"key":"external_id","value":"x\\udfff"}],'
        '"active_entitlements":[{"entitlement_ref_id":"\\ud83dpro"}]}'
    )
    scene.insert([row("half", event_type="user.subscription.renewed", payload=payload)])
    scene.tick()
    (event,) = scene.sent(one)
    assert event["user_id"] == "x\ufffd"
    assert event["user_properties"]["namiml_device_ids"] == ["d\ufffd"]
    assert event["user_properties"]["namiml_active_entitlements"] == ["\ufffdpro"]


@pytest.mark.contract("1.10")
@pytest.mark.slow
def test_a_row_of_a_kind_that_nobody_thought_of_stops_itself_only(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make()
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert([row(f"e{number}") for number in range(50)])
    whole = odd_rows.look_at_doubtful

    def failing(table: pa.Table, connection: duckdb.DuckDBPyConnection) -> pa.Table:
        if {"e7", "e23"} & set(table["id"].to_pylist()):
            raise pa.ArrowInvalid("a kind that nobody thought of")
        return whole(table, connection)

    monkeypatch.setattr(captured_rows, "look_at_doubtful", failing)
    scene.tick()
    assert end_of(scene, one) == {"delivered": 48}
    ((found),) = unreadable(scene.context.store)
    assert (found.app_id, found.reason, found.rows) == ("app", "odd_row", 2)
    assert any("2 rows of app app" in line for line in caplog.messages)
    monkeypatch.setattr(captured_rows, "look_at_doubtful", whole)  # as a new version would
    scene.tick()
    assert end_of(scene, one) == {"delivered": 50}
    assert unreadable(scene.context.store) == []


def test_a_bad_byte_of_sql_ascii_is_its_rows_own(postgres: Postgres, tmp_path: Path) -> None:
    name = "bytes_of_any_kind"
    connection = psycopg2.connect(postgres.url)
    connection.autocommit = True
    connection.cursor().execute(f"DROP DATABASE IF EXISTS {name}")
    connection.cursor().execute(
        f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    connection.close()
    head, _, query = postgres.url.partition("?")
    url = f"{head.rpartition('/')[0]}/{name}{'?' + query if query else ''}"
    scene = Pipeline(tmp_path, {"NAMI_AMP_WAREHOUSE_URL": url})
    one = scene.add("app", user_id_kind="nami_user_id")
    assert scene.postgres is not None
    for event_id, user, payload in (
        ("e1", "u", '{"a": "fine"}'),
        ("bad", "u", '{"a": "\\374"}'),
        ("id\\374", "u\\374", "{}"),
        ("id\\375", "u\\375", "{}"),
        ("id\\375", "u\\375", "{}"),
    ):
        scene.postgres.run(
            "INSERT INTO nami_events (id, app_id, event_type, user_id, created_date, ingested_at, payload) VALUES "
            f"(E'{event_id}', 'app', 'device.impression', E'{user}', '2026-09-01 UTC', '2026-09-01 UTC', E'{payload}')"
        )
    scene.tick()
    scene.tick()
    numbers = scene.status(one)
    assert (numbers.delivered, numbers.dead_letters) == (4, {})
    by_id = {event["insert_id"]: event for event in scene.sent(one)}
    assert set(by_id) == {"e1", "bad", "id\\xfc", "id\\xfd"}
    assert by_id["bad"]["event_properties"]["a"] == "\ufffd"
    assert {by_id["id\\xfc"]["user_id"], by_id["id\\xfd"]["user_id"]} == {"u\\xfc", "u\\xfd"}
    scene.close()


@pytest.mark.parametrize(
    ("text", "is_object"),
    [
        ("{}", True), (" \n{}\t", True), ('{"a":",]"}', True), ('{"a":": NaN"}', True), ('{"a":"\\",]"}', True),
        ('{"a":1,}', False), ('{"a":[1,]}', False), ('{"a":nan}', False), ('{"a":-Infinity}', False), ("{", False),
        ("", False), ("[]", False), ('"{}"', False), ("{}{}", False), ("\ufeff{}", False), ('{"a":01}', False),
        ('{"a":1e999,"b":",]"}', True), ('{"a":1e999,"b":[1,]}', False), ("{" + '"a":[' * 9, False),
    ],
)  # fmt: skip
def test_one_judge_of_json(text: str, is_object: bool) -> None:
    with duckdb.connect() as connection:
        assert json_text.judge(connection, text).is_object == is_object


def test_top_level_of_an_object() -> None:
    text = ' { "a" : 1e999 , "b":[{"x":"]}"},"\\""], "c" :{}, "d":null,"a":"\\"," , "":true }'
    assert list(json_text.top_level(text)) == [
        ('"a"', "1e999"), ('"b"', "["), ('"c"', "{"), ('"d"', "null"), ('"a"', '"\\","'), ('""', "true")
    ]  # fmt: skip
