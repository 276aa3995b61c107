"""Faults happen to the requests that their rules name, and take or leave the events as they say."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.sandbox import KINDS, Answer, Fault, FaultError, FaultKind, Options, Sandbox
from nami_amp_pipeline.sandbox.fault_kinds import LOSSES, MEANINGS, OF_EVENTS

KEY = "0123456789abcdef0123456789abcdef"
JSON = {"Content-Type": "application/json"}


def post(sandbox: Sandbox, *events: Any, key: str = KEY, path: str = "/2/httpapi") -> Answer:
    return sandbox.handle("POST", path, JSON, orjson.dumps({"api_key": key, "events": events}))


def event(insert_id: str = "a", user_id: str = "user-1", **fields: Any) -> dict[str, Any]:
    return {"event_type": "renewed", "user_id": user_id, "time": 1, "insert_id": insert_id, **fields}


def with_rule(**rule: Any) -> Sandbox:
    sandbox = Sandbox()
    sandbox.faults.add(Fault(**rule))
    return sandbox


@pytest.mark.parametrize(
    ("kind", "status", "transport", "taken"),
    [
        ("500", 500, None, 0),
        ("502", 502, None, 0),
        ("503", 503, None, 0),
        ("504", 504, None, 0),
        ("html_400", 400, None, 0),
        ("html_502", 502, None, 0),
        ("403", 403, None, 0),
        ("413", 413, None, 0),
        ("project_429", 429, None, 0),
        ("redirect", 302, None, 0),
        ("invalid_key", 400, None, 0),
        ("reset_before_response", 503, "reset_before_response", 0),
        ("closed_without_answer", 503, "closed", 0),
        ("stored_then_500", 500, None, 1),
        ("stored_then_502", 502, None, 1),
        ("stored_then_504", 504, None, 1),
        ("empty_body", 200, None, 1),
        ("truncated_body", 200, "truncated_body", 1),
        ("stall", 200, "stall", 1),
        ("trickle", 200, "trickle", 1),
        ("slow", 200, None, 1),
        ("interim_answers", 200, None, 1),
    ],
)
def test_a_fault_takes_the_events_or_leaves_them(
    kind: FaultKind, status: int, transport: str | None, taken: int
) -> None:
    sandbox = with_rule(kind=kind, times=1)
    answer = post(sandbox, event())
    assert (answer.status, answer.transport, answer.accepted) == (status, transport, taken)
    assert sandbox.audit.accepted == taken
    assert post(sandbox, event()).accepted == 1 - taken


@pytest.mark.parametrize("kind", ["reset_before_response", "closed_without_answer"])
def test_a_lost_connection_can_take_the_events_first(kind: FaultKind) -> None:
    assert post(with_rule(kind=kind, stored=True), event()).accepted == 1


def test_every_kind_but_those_about_events_is_tried_above() -> None:
    tried = {parameter[0] for parameter in test_a_fault_takes_the_events_or_leaves_them.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert set(KINDS) - tried == OF_EVENTS | LOSSES | {"export_too_large"}
    assert set(KINDS) == set(MEANINGS)


def test_a_refused_request_is_not_answered_as_taken() -> None:
    sandbox = with_rule(kind="stored_then_500")
    assert post(sandbox, event(time="x")).status == 400


def test_bodies_that_are_not_json() -> None:
    assert post(with_rule(kind="html_400"), event()).body.startswith(b"<html>")
    assert post(with_rule(kind="empty_body", status=504), event()).body == b""


def test_a_project_429_names_nobody_and_may_say_when_to_come_back() -> None:
    answer = post(with_rule(kind="project_429", retry_after=17), event())
    assert set(orjson.loads(answer.body)) == {"code", "error"}
    assert answer.headers["Retry-After"] == "17"
    assert "Retry-After" not in post(with_rule(kind="project_429"), event()).headers


@pytest.mark.parametrize(("indexes", "named"), [("all", [1, 3]), ("first", [1]), ("none", None)])
def test_poisoned_events_refuse_their_request(indexes: str, named: list[int] | None) -> None:
    sandbox = with_rule(kind="poison", text='"poison"', indexes=indexes, field_name="price")
    bad = event("p", event_properties={"note": "poison"})
    answer = post(sandbox, event("a"), bad, event("b"), bad)
    assert answer.status == 400
    assert orjson.loads(answer.body).get("events_with_invalid_fields") == (named and {"price": named})
    assert post(sandbox, event("a"), event("b")).accepted == 2


def test_a_share_of_the_events_is_always_the_same() -> None:
    sandbox = with_rule(kind="poison", share=0.2, seed=3)
    events = [event(str(number)) for number in range(500)]
    bad = orjson.loads(post(sandbox, *events).body)["events_with_invalid_fields"]["event_properties"]
    assert 60 < len(bad) < 140
    assert orjson.loads(post(sandbox, *events).body)["events_with_invalid_fields"]["event_properties"] == bad
    assert post(sandbox, *[each for index, each in enumerate(events) if index not in bad]).status == 200


def test_throttled_and_over_quota_users_are_named_with_all_their_events() -> None:
    sandbox = with_rule(kind="throttle_user", user_id="user-2", times=1)
    answer = orjson.loads(post(sandbox, event("a"), event("b", "user-2"), event("c", "user-2")).body)
    assert (answer["throttled_users"], answer["throttled_events"]) == ({"user-2": 31}, [1, 2])
    assert post(sandbox, event("b", "user-2")).status == 200
    answer = orjson.loads(post(with_rule(kind="quota_user", device_id="device-1"), event(device_id="device-1")).body)
    assert answer["exceeded_daily_quota_devices"] == {"device-1": 500_001}
    assert answer["throttled_events"] == [0]


def test_a_silenced_device_is_answered_as_documented() -> None:
    sandbox = with_rule(kind="silence_device", device_id="device-1")
    answer = post(sandbox, event("a"), event("b", device_id="device-1"))
    assert answer.status == 400
    content = orjson.loads(answer.body)
    assert content["error"] == "Events silenced for device_id"
    assert (content["silenced_devices"], content["silenced_events"]) == (["device-1"], [1])


def test_filters_choose_requests() -> None:
    sandbox = Sandbox()
    sandbox.faults.add(
        Fault("500", api_key="another-key-1"),
        Fault("502", path="/batch"),
        Fault("413", min_events=3),
        Fault("403", text="<script>"),
        Fault("503", user_id="user-9"),
    )
    assert post(sandbox, event("a"), event("b")).status == 200
    assert post(sandbox, event(), key="another-key-1").status == 500
    assert post(sandbox, event(), path="/batch").status == 502
    assert post(sandbox, event("c"), event("d"), event("e")).status == 413
    assert post(sandbox, event("f", note="<script>")).status == 403
    assert post(sandbox, event("g"), event("h", "user-9")).status == 503


def test_the_same_seed_gives_the_same_faults() -> None:
    def run(**rule: Any) -> list[int]:
        sandbox = Sandbox(rng=random.Random(11))
        sandbox.faults.add(Fault("503", probability=0.5, **rule))
        return [post(sandbox, event(str(number))).status for number in range(60)]

    assert run() == run()
    assert run(seed=1) == run(seed=1) != run(seed=2)
    assert 10 < run().count(503) < 50


def test_delays_add_up() -> None:
    sandbox = Sandbox(options=Options(latency_ms=200))
    sandbox.faults.add(Fault("slow", seconds=1.5), Fault("stall", seconds=3))
    assert post(sandbox, event()).delay_s == pytest.approx(4.7)


def test_rules_are_added_shown_switched_and_removed_over_http() -> None:
    sandbox = Sandbox()
    sent = [{"kind": "500", "times": 2, "api_key": KEY}, {"kind": "slow", "seconds": 0.5}]
    answer = sandbox.handle("POST", "/sandbox/faults", JSON, orjson.dumps({"rules": sent}))
    rules = orjson.loads(answer.body)["rules"]
    assert rules == [
        {"id": 1, "kind": "500", "enabled": True, "fired": 0, "times": 2, "api_key": "…cdef"},
        {"id": 2, "kind": "slow", "enabled": True, "fired": 0, "seconds": 0.5},
    ]
    assert post(sandbox, event()).status == 500
    sandbox.handle("PATCH", "/sandbox/faults", JSON, b'{"enabled": false}', "id=1")
    assert post(sandbox, event()).status == 200
    shown = orjson.loads(sandbox.handle("GET", "/sandbox/faults", {}).body)["rules"]
    assert (shown[0]["fired"], shown[0]["times"], shown[0]["enabled"]) == (1, 1, False)
    sandbox.handle("DELETE", "/sandbox/faults", {}, b"", "id=1")
    assert [rule["id"] for rule in orjson.loads(sandbox.handle("GET", "/sandbox/faults", {}).body)["rules"]] == [2]
    sandbox.handle("DELETE", "/sandbox/faults", {})
    assert len(sandbox.faults) == 0


@pytest.mark.parametrize(
    "rule",
    [
        7,
        {},
        {"kind": "none"},
        {"kind": "500", "probability": 2},
        {"kind": "500", "probability": "1"},
        {"kind": "500", "times": -1},
        {"kind": "500", "times": True},
        {"kind": "500", "colour": "red"},
        {"kind": "500", "id": 4},
        {"kind": "poison"},
        {"kind": "poison", "text": "x", "indexes": "some"},
        {"kind": "redirect", "location": "x\r\nSet-Cookie: a=b"},
        {"kind": "stall", "seconds": 1e9},
        {"kind": "empty_body", "status": 99},
    ],
)
def test_an_impossible_rule_is_refused_and_none_of_its_list_added(rule: Any) -> None:
    sandbox = Sandbox()
    answer = sandbox.handle("POST", "/sandbox/faults", JSON, orjson.dumps([{"kind": "500"}, rule]))
    assert answer.status == 400
    assert orjson.loads(answer.body)["error"]
    assert len(sandbox.faults) == 0


def test_an_impossible_rule_is_refused_in_process() -> None:
    with pytest.raises(FaultError, match="event filter"):
        Fault("silence_device")
