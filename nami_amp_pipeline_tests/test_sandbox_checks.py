"""The sandbox refuses what Amplitude refuses, in the documented shapes, and then takes nothing."""

from __future__ import annotations

import gzip
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nami_amp_pipeline.sandbox import Answer, Options, Project, Sandbox
from nami_amp_pipeline.sandbox.validation import Validator, depth

KEY = "0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}
GOOD: dict[str, Any] = {"event_type": "renewed", "user_id": "user-1", "time": 1_700_000_000_000, "insert_id": "i1"}


def post(sandbox: Sandbox, *events: Any, path: str = "/2/httpapi", **request: Any) -> Answer:
    body = orjson.dumps({"api_key": KEY, "events": events, **request})
    return sandbox.handle("POST", path, JSON, body)


def content(answer: Answer) -> Any:
    return orjson.loads(answer.body)


def event(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def test_a_good_request_is_answered_as_documented() -> None:
    sandbox = Sandbox(clock=lambda: 1_396_381_378.123)
    body = orjson.dumps({"api_key": KEY, "events": [GOOD]})
    answer = sandbox.handle("POST", "/2/httpapi", {"content-type": "application/json; charset=UTF-8"}, body)
    assert answer.status == 200
    assert content(answer) == {
        "code": 200,
        "events_ingested": 1,
        "payload_size_bytes": len(body),
        "server_upload_time": 1_396_381_378_123,
    }


@pytest.mark.parametrize(
    ("headers", "body", "error"),
    [
        (JSON, b"", "Missing request body"),
        ({}, b"{}", "Invalid JSON request body"),
        ({"Content-Type": "text/plain"}, b"{}", "Invalid JSON request body"),
        (JSON, b"[]", "Invalid JSON request body"),
        (JSON, b'{"api_key": NaN}', "Invalid JSON request body"),
        (JSON, b'{"api_key": "\\ud800"}', "Invalid JSON request body"),
        ({**JSON, "Content-Encoding": "gzip"}, b"{}", "Invalid JSON request body"),
        ({**JSON, "Content-Encoding": "gzip"}, gzip.compress(b"{}", mtime=0)[:-1], "Invalid JSON request body"),
        ({**JSON, "Content-Encoding": "br"}, b"{}", "Invalid JSON request body"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400(headers: dict[str, str], body: bytes, error: str) -> None:
    answer = Sandbox().handle("POST", "/2/httpapi", headers, body)
    assert (answer.status, content(answer)["error"]) == (400, error)


@pytest.mark.parametrize(
    ("request_fields", "missing"),
    [
        ({"api_key": None}, "api_key"),
        ({"api_key": 7}, "api_key"),
        ({"events": None}, "events"),
        ({"events": []}, "events"),
    ],
)
def test_a_missing_request_field_is_named(request_fields: dict[str, Any], missing: str) -> None:
    body = orjson.dumps({"api_key": KEY, "events": [GOOD], **request_fields})
    answer = Sandbox().handle("POST", "/2/httpapi", JSON, body)
    assert content(answer) == {"code": 400, "error": "Request missing required field", "missing_field": missing}


def test_an_unknown_key_is_refused_with_the_key_in_the_error() -> None:
    for sandbox in (Sandbox(projects={"other-key": Project(1)}), Sandbox(refused_keys={KEY})):
        answer = post(sandbox, GOOD)
        assert content(answer) == {"code": 400, "error": f"Invalid API key: {KEY}"}


def test_an_unknown_path_is_refused() -> None:
    answer = Sandbox().handle("POST", "/2/httpapis", JSON, b"{}")
    assert (answer.status, content(answer)["error"]) == (400, "Invalid request path")


@pytest.mark.parametrize(("path", "limit"), [("/2/httpapi", 1_000_000), ("/batch", 20_000_000)])
def test_the_size_limit_counts_decompressed_bytes_and_is_exact(path: str, limit: int) -> None:
    frame = len(orjson.dumps({"api_key": KEY, "events": [event(x="")]}))
    for extra, status in ((0, 200), (1, 413)):
        body = orjson.dumps({"api_key": KEY, "events": [event(x="y" * (limit - frame + extra))]})
        assert len(body) == limit + extra
        assert Sandbox().handle("POST", path, JSON, body).status == status
        packed = gzip.compress(body, 1)
        assert Sandbox().handle("POST", path, {**JSON, "Content-Encoding": "gzip"}, packed).status == status


def test_more_than_2000_events_are_too_large() -> None:
    events = [event(insert_id=str(number), user_id=f"user-{number}") for number in range(2_001)]
    assert post(Sandbox(), *events[:2_000]).status == 200
    answer = post(Sandbox(), *events)
    assert content(answer) == {"code": 413, "error": "Payload too large"}


@pytest.mark.parametrize(
    ("bad", "kind", "field"),
    [
        ({"event_type": None}, "events_with_missing_fields", "event_type"),
        ({"event_type": " "}, "events_with_missing_fields", "event_type"),
        ({"event_type": 7}, "events_with_invalid_fields", "event_type"),
        ({"event_type": "[Amplitude] Revenue"}, "events_with_invalid_fields", "event_type"),
        ({"user_id": None}, "events_with_missing_fields", "user_id"),
        ({"user_id": "abcd"}, "events_with_invalid_id_lengths", "user_id"),
        ({"user_id": 123456}, "events_with_invalid_id_lengths", "user_id"),
        ({"device_id": "abcd"}, "events_with_invalid_id_lengths", "device_id"),
        ({"time": "2026-01-01T00:00:00Z"}, "events_with_invalid_fields", "time"),
        ({"time": 1.5e12}, "events_with_invalid_fields", "time"),
        ({"time": True}, "events_with_invalid_fields", "time"),
        ({"time": 2**63}, "events_with_invalid_fields", "time"),
        ({"insert_id": 7}, "events_with_invalid_fields", "insert_id"),
        ({"price": "9.99"}, "events_with_invalid_fields", "price"),
        ({"price": True}, "events_with_invalid_fields", "price"),
        ({"quantity": 1.5}, "events_with_invalid_fields", "quantity"),
        ({"event_properties": []}, "events_with_invalid_fields", "event_properties"),
        ({"user_properties": "x"}, "events_with_invalid_fields", "user_properties"),
        ({"user_properties": {"$set": 7}}, "events_with_invalid_fields", "user_properties"),
        ({"user_properties": {"$add": {"a": "1"}}}, "events_with_invalid_fields", "user_properties"),
        ({"user_properties": {"$set": {"a": 1}, "b": 2}}, "events_with_invalid_fields", "user_properties"),
        ({"$skip_user_properties_sync": "true"}, "events_with_invalid_fields", "$skip_user_properties_sync"),
    ],
)
def test_a_bad_event_is_named_by_its_index_and_nothing_is_taken(bad: dict[str, Any], kind: str, field: str) -> None:
    sandbox = Sandbox()
    answer = post(sandbox, event(insert_id="a"), {**event(insert_id="b"), **bad}, event(insert_id="c"))
    assert answer.status == 400
    assert content(answer)[kind] == {field: [1]}
    assert sandbox.audit.accepted == 0
    assert post(sandbox, event(insert_id="a")).accepted == 1


def test_the_index_lists_name_the_first_all_or_none_as_set() -> None:
    bad = event(time="x")
    for mode, named in (("all", [0, 2]), ("first", [0]), ("none", None)):
        answer = post(Sandbox(options=Options(index_mode=mode)), bad, GOOD, bad)  # type: ignore[arg-type]
        assert content(answer).get("events_with_invalid_fields", {}).get("time") == named


def test_several_kinds_of_fault_are_listed_in_one_answer() -> None:
    answer = post(Sandbox(), event(time="x"), event(event_type=""), event(user_id="abc"))
    assert set(content(answer)) == {
        "code",
        "error",
        "events_with_missing_fields",
        "events_with_invalid_fields",
        "events_with_invalid_id_lengths",
    }


@pytest.mark.parametrize("reserved", ["Anonymous", "N/A", " null ", "0", "-1", "{}", "lmy47d", "", "undefined"])
@pytest.mark.parametrize("field", ["user_id", "device_id"])
def test_a_reserved_id_refuses_the_request_without_saying_which_event(reserved: str, field: str) -> None:
    answer = post(Sandbox(), GOOD, event(**{field: reserved}), options={"min_id_length": 1})
    assert answer.status == 400
    assert set(content(answer)) == {"code", "error"}


def test_min_id_length_is_5_unless_the_request_says_otherwise() -> None:
    assert post(Sandbox(), event(user_id="ab")).status == 400
    assert post(Sandbox(), event(user_id="ab"), options={"min_id_length": 2}).status == 200
    assert post(Sandbox(), event(user_id="abcde"), options={"min_id_length": 6}).status == 400
    assert post(Sandbox(), GOOD, options={"min_id_length": 0}).status == 400


def test_a_short_id_can_be_stripped_as_documented() -> None:
    sandbox = Sandbox(options=Options(short_id="strip"))
    assert post(sandbox, event(user_id="abc", device_id="device-1")).status == 200
    assert post(sandbox, event(user_id="abc")).status == 400
    rows = orjson.loads(sandbox.handle("GET", "/sandbox/events", {}).body)["events"]
    assert [row["event"].get("user_id") for row in rows] == [None]


def test_the_depth_limit_is_40_layers() -> None:
    def nested(layers: int) -> Any:
        value: Any = 1
        for _ in range(layers):
            value = {"a": value}
        return value

    assert depth(nested(40)) == 40
    assert post(Sandbox(), event(event_properties=nested(40))).status == 200
    assert post(Sandbox(), event(event_properties=nested(41))).status == 400
    assert post(Sandbox(), event(user_properties={"a": [nested(40)]})).status == 400


def test_empty_events_can_be_answered_200() -> None:
    answer = post(Sandbox(options=Options(empty_events=200)))
    assert (answer.status, content(answer)["events_ingested"]) == (200, 0)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "event_type",
        "user_id",
        "device_id",
        "time",
        "insert_id",
        "event_properties",
        "user_properties",
        "groups",
        "price",
        "quantity",
        "event_id",
        "x",
    ]
)
likely = st.fixed_dictionaries(
    {
        "event_type": st.sampled_from(["a", "", "[Amplitude] Revenue"]),
        "user_id": st.sampled_from(["abcde", "None", " ab "]),
    },
    optional={
        "time": st.integers(0, 2**64),
        "user_properties": st.dictionaries(st.sampled_from(["a", "$set"]), values, max_size=2),
        "device_id": st.text(max_size=6),
    },
)


@given(st.lists(st.one_of(likely, st.dictionaries(fields, values, max_size=6), values), min_size=1, max_size=4))
def test_the_quick_look_never_passes_what_the_full_check_refuses(events: list[Any]) -> None:
    validator = Validator(Options())
    quick = validator.quick(events, 3)
    findings, columns, _ = validator.full(list(events), 3)
    if quick is not None:
        assert not findings
        assert quick == columns
