"""Fingerprints of sent events: the same for the same values in any order and spelling, and never an error."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import pytest

from nami_amp_pipeline.amplitude import fingerprints as module
from nami_amp_pipeline.amplitude.fingerprints import fingerprints, kind, schema


def body(properties: str = '"a":"x","b":2', *, user: str | None = None, revenue: str = "") -> str:
    own = f',"user_properties":{{{user}}}' if user is not None else ""
    return (
        ',{"event_type":"user.renewed","user_id":"u","time":1,"insert_id":"i","event_properties":{'
        + f'{properties},"namiml_event_category":"user"}}{revenue}{own}}}'
    )


def prints(*bodies: str | None) -> list[dict[str, Any]]:
    found = fingerprints(pa.chunked_array([pa.array(list(bodies), pa.string())]))
    assert found.schema.equals(schema(), check_metadata=True)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_what_is_not_there_has_none_and_what_is_not_posted_has_none_at_all() -> None:
    plain, sale, of_user, none = prints(
        body(), body(revenue=',"price":9.99,"quantity":1,"revenueType":"purchase"'), body(user='"x":true'), None
    )
    names = {name: set(found) for name, found in zip("psun", ([k for k, v in row.items() if v is not None] for row in (
        plain, sale, of_user, none)), strict=True)}  # fmt: skip
    assert names["p"] == {"fingerprint_head", "fingerprint_event_properties"}
    assert names["s"] == names["p"] | {"fingerprint_revenue"}
    assert names["u"] == names["p"] | {"fingerprint_user_properties"}
    assert names["n"] == set()


def test_order_and_escapes_make_no_difference_and_values_do() -> None:
    first, turned, other = prints(body('"a":"x","b":2'), body('"b":2,"a":"x"'), body('"a":"x","b":3'))
    assert first["fingerprint_event_properties"] == turned["fingerprint_event_properties"]
    assert first["fingerprint_event_properties"] != other["fingerprint_event_properties"]
    assert first["fingerprint_head"] == other["fingerprint_head"]
    same = prints(body('"a":"caf\u00e9/"'), body('"a":"caf\\u00e9\\/"'), body('"a":"caf\u00e9\\/"', user='"x":1'))
    assert same[0]["fingerprint_event_properties"] == same[1]["fingerprint_event_properties"]


@pytest.mark.parametrize(
    "value",
    [
        '},"price":1',
        ',"event_properties":{"x":1',
        '},"user_properties":{',
        "}}",
        'a,"',
        "\\u",
        "\\/",
        '"',
        "\n",
        "\u2028",
    ],
)
def test_no_text_is_taken_for_the_structure_around_it(value: str) -> None:
    text = orjson.dumps({"a": value, "b": 1}).decode()[1:-1]
    (found,) = prints(body(text))
    assert found["fingerprint_revenue"] is None
    assert found["fingerprint_user_properties"] is None
    assert found["fingerprint_event_properties"] is not None


def test_what_is_no_event_of_ours_is_no_error() -> None:
    assert len(prints("", ",", ",{}", ',{"event_type":"x","event_properties":{}}', body('"a":"\\u12"'))) == 5


def test_large_events_are_taken_in_portions_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [body(f'"a":"{"x" * 20_000}{number}"') for number in range(30)]
    whole = prints(*events)
    monkeypatch.setattr(module, "_PORTION", 50_000)
    assert prints(*events) == whole
    assert len({row["fingerprint_event_properties"] for row in whole}) == 30


def test_the_kind_says_how_they_were_computed() -> None:
    assert schema().metadata == {module.KIND: kind()}
