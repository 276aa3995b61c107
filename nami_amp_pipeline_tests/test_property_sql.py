"""User properties by SQL: mistakes are told in one line, rows that cannot be computed stop nobody."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import Property
from nami_amp_pipeline.contract.user_properties import NOT_NAMES, as_sent
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.current_snapshots import current_snapshots
from nami_amp_pipeline.operations.doctor import check_enrichments
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.storage.property_sql import mistakes
from nami_amp_pipeline.testing import PropertySuite
from nami_amp_pipeline_tests.support.enrichments import declare, event
from nami_amp_pipeline_tests.support.harness import START, Pipeline

HOUR = timedelta(hours=1)
DEVICES = Property(
    "shop_devices", "devices", kind="number", sql="len((payload -> '$.devices')::JSON[])", means="how many devices"
)
PLAN = Property("shop_plan", "entitlements", kind="text", sql="payload ->> '$.plan'", means="the plan")
AMOUNT = Property("shop_amount", "entitlements", kind="number", sql="(payload ->> '$.amount')::DOUBLE", means="amount")
IDS = Property(
    "shop_sku_names", "entitlements", kind="texts",
    sql="list_transform((payload -> '$.active_entitlements')::JSON[], lambda e: upper(e ->> '$.sku_ref_id'))",
    means="SKUs in capitals",
)  # fmt: skip
EVENING = Property(
    "shop_in_the_evening", "journey", kind="flag", sql="hour(created_date) >= 18", means="the journey moved after 18:00"
)


class TestNumber(PropertySuite):
    declared = DEVICES
    examples = (({"devices": [{"id": "a"}, {"id": "b"}]}, 2), ({"devices": []}, 0))


@pytest.mark.slow
class TestTexts(PropertySuite):
    declared = IDS
    examples = (
        ({"active_entitlements": [{"sku_ref_id": "b"}, {"sku_ref_id": "a"}, {}, {"sku_ref_id": "b"}]}, ["A", "B"]),
        ({"active_entitlements": []}, []),
    )


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "sql", "said"),
    [
        ("number", "payload ->> '$.amount'", "its SQL gives VARCHAR, which is not a number: add a cast"),
        ("text", "payload -> '$.a'", "its SQL gives JSON, which is not a text: '->>' gives a text"),
        ("number", "{'a': 1}", "which is not a number"),
        ("flag", "random() > 0.5", "volatile"),
        ("flag", "(SELECT true)", "subquery"),
        ("number", "count(*)", "aggregates"),
        ("number", "1), (2", "no single expression"),
        ("number", "1; DROP TABLE events", "syntax error"),
        ("number", "amount", 'Referenced column "amount" not found'),
        ("number", "row", 'Referenced column "row" not found'),
        ("text", "ucase(payload ->> '$.a')", ""),
        ("number", "1 / 0 -- and a comment", ""),
    ],
)
def test_a_mistake_is_one_line_when_settings_are_loaded(
    kind: Any, sql: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prop = Property("shop_x", "devices", kind=kind, sql=sql)
    found = mistakes((prop,))
    if not said:
        assert found == ()
        return
    declare(monkeypatch, prop)
    with pytest.raises(Misconfigured, match=r"^another package declares what cannot be used: shop_x: its SQL") as error:
        Settings.load({})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": "wallet", "sql": "1"},
        {"group": "devices", "sql": "1", "path": "devices[].id"},
        {"group": "devices", "sql": "1", "unless_active": True, "kind": "flag"},
        {"group": "devices", "sql": "1", "kind": "date"},
        {"group": "devices", "path": "devices[].size", "kind": "number"},
        {"group": "devices"},
        {"group": "devices", "path": "devices[].id", "name": "order"},
        {"group": "devices", "path": "devices[].id", "name": "user_properties"},
        {"group": "devices", "path": "devices[].id", "name": "x"},
    ],
)
def test_a_declaration_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is no (property|name)"):
        Property(**{"name": "shop_x", **wrong})


def test_no_word_of_sql_is_a_name() -> None:
    query = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category IN ('reserved', 'type_function')"
    with duckdb.connect() as connection:
        assert {word for (word,) in connection.execute(query).fetchall()} <= NOT_NAMES
    names = {field.name for field in snapshot_schema()} - {prop.name for prop in contract.PROPERTIES}
    assert names <= NOT_NAMES


@pytest.mark.contract("3.12")
@pytest.mark.slow
def test_a_row_for_which_it_raises_goes_without_and_is_counted(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declare(monkeypatch, AMOUNT, PLAN)
    one = pipeline.add("app", user_id_kind="nami_user_id", start_from=None)
    given = ["9.50", 4, None, "much", float("inf"), True, {"deep": 1}, 1e300, -0.0, 12345678901234567890]
    pipeline.insert(
        [event(str(n), f"u{n}", START - HOUR, active_entitlements=[], amount=value) for n, value in enumerate(given)]
    )
    pipeline.insert([event("none", "u", START - HOUR, amount="much")])  # without the group: not computed at all
    stages.capture_apps(pipeline.context)
    with caplog.at_level(logging.WARNING):
        done = stages.snapshot_apps(pipeline.context)
    assert dict(done["app"].without) == {"shop_amount": 3}
    assert "app: 3 events go without shop_amount: its SQL cannot be computed of them (such as 3)" in caplog.text
    pipeline.tick()
    found = {body["insert_id"]: body["user_properties"].get("shop_amount") for body in pipeline.sent(one)}
    assert found == {"0": 9.5, "1": 4, "2": None, "3": None, "5": None, "6": None, "7": 1e300, "8": 0,
                     "9": 12345678901234567890.0, "none": None}  # fmt: skip
    monkeypatch.setattr("nami_amp_pipeline.operations.doctor.system_clock", pipeline.clock)
    (finding,) = check_enrichments(pipeline.settings)
    assert finding.message.startswith("app: 3 events of the last 24 hours went without shop_amount")


def test_the_page_shows_one_that_works() -> None:
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text("utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    known: dict[str, Any] = {"Property": Property}
    exec(code, known)
    assert isinstance(known["DEVICES"], Property)
    assert known["DEVICES"].sql == DEVICES.sql
    assert not mistakes((known["DEVICES"],))


def test_a_text_is_as_long_as_amplitude_keeps_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(monkeypatch, PLAN)
    one = pipeline.add("app", user_id_kind="nami_user_id", start_from=None)
    pipeline.insert([event("1", "ann", START - HOUR, active_entitlements=[], plan="ü" * 2_000)])
    pipeline.tick()
    assert pipeline.sent(one)[0]["user_properties"]["shop_plan"] == "ü" * 1_024


@pytest.mark.slow
def test_values_come_from_the_file_and_the_store_like_any_other(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, DEVICES, PLAN, AMOUNT, IDS, EVENING)
    one = pipeline.add("app", user_id_kind="nami_user_id", start_from=None)
    whole = {"shop_devices": 1, "shop_plan": 'g"\\ü\n', "shop_amount": 0.1, "shop_sku_names": ["S"],
             "shop_in_the_evening": (START - 2 * HOUR).hour >= 18}  # fmt: skip
    payload: dict[str, Any] = {
        "devices": [{"id": "d"}],
        "plan": 'g"\\ü\n',
        "amount": 0.1,
        "customer_journey_state": {"x": 1},
        "active_entitlements": [{"sku_ref_id": "s"}],
    }
    pipeline.insert([event("1", "ann", START - 2 * HOUR, **payload)])
    pipeline.tick()
    pipeline.clock.sleep(60)
    pipeline.insert([event("late", "ann", START - HOUR, START), event("new", "ann", START)])
    pipeline.tick()
    for body in pipeline.sent(one):
        found = body["user_properties"]
        assert {name: found.get(name) for name in whole} == whole
        # Reconciliation compares them as one text, in this order.
        assert list(found) == [prop.name for prop in as_sent(contract.PROPERTIES) if prop.name in found]
    (row,) = current_snapshots(pipeline.settings, "app").to_pylist()
    assert {name: row[name] for name in whole} == whole
    assert {name: trace(pipeline.context, "late").captures[0]["snapshot"][name] for name in whole} == whole
    for prop in (DEVICES, EVENING):
        assert f"| `{prop.name}` | `{prop.sql}` |" in contract.properties_table()


@pytest.mark.contract("2.10")
@pytest.mark.parametrize("field", ["plan", "shop_plan", "active_entitlements"])
@pytest.mark.slow
def test_what_is_made_of_a_hidden_field_is_hidden_too(
    pipeline: Pipeline, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, PLAN, AMOUNT)
    hidden = pipeline.add("app", "hidden", user_id_kind="nami_user_id", start_from=None, exclude=[field])
    hashed = pipeline.add("app", "hashed", user_id_kind="nami_user_id", start_from=None, hashed=[field])
    pipeline.insert([event("1", "ann", START - HOUR, active_entitlements=[], plan="pro", amount=2)])
    pipeline.tick()
    (left,) = pipeline.sent(hidden)
    assert "shop_plan" not in left["user_properties"]
    (other,) = pipeline.sent(hashed)
    assert len(other["user_properties"]["shop_plan"]) == 64
    assert ("shop_amount" in left["user_properties"]) == (field != "active_entitlements")
