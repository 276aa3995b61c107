"""Each answer of Amplitude's does to the events of its request what the table of cases says."""

from __future__ import annotations

import json
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.amplitude.answers import NONE_INGESTED
from nami_amp_pipeline.delivery.channel import DOUBTED_TIMES
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.scripted_answers import API_KEY, LATENCY, OK, Bench, Posted, event

_TABLE: list[dict[str, Any]] = json.loads((Path(__file__).parent / "cases" / "amplitude_responses.json").read_text())[
    "cases"
]
_TRANSPORT = {
    "refused": NoAnswer("no_connection", maybe_stored=False),
    "reset_before_response": NoAnswer("reset", maybe_stored=True),
    "read_timeout": NoAnswer("timeout", maybe_stored=True),
    "truncated_body": NoAnswer("truncated", maybe_stored=True),
}
_SAME_USER = {"throttled_order": {0: "u1", 2: "u1"}}
_EACH_TIME = {"too_large_single"}
"""Answers that are believed only when they are given again and again."""


def _case(name: str, batch: int, status: int, body: object, expect: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = {
        "status": status,
        "headers": {key.replace("_", "-"): text for key, text in headers.items()},
        "body": body,
    }
    return {"id": name, "batch": batch, "response": response, "expect": expect}


_ALL4 = [0, 1, 2, 3]
_LATER4: dict[str, Any] = {"retry_later": _ALL4, "min_delay_s": 0.1, "same_ids": True}
_MORE = [
    _case("html_400", 4, 400, b"<html><title>400</title></html>", _LATER4),
    _case("html_200", 4, 200, b"<html>hello</html>", _LATER4),
    _case("half_a_200", 4, 200, b'{"code":200,"events_in', _LATER4),
    _case("another_code_in_a_200", 4, 200, {"code": 500}, _LATER4),
    _case("list_200", 4, 200, b"[]", _LATER4),
    _case("created_201", 4, 201, {}, _LATER4),
    _case("request_timeout", 4, 408, None, _LATER4),
    _case("html_502", 4, 502, b"<html>", _LATER4),
    _case("unavailable_with_time", 4, 503, None, {"retry_later": _ALL4, "min_delay_s": 45}, retry_after="45"),
    _case("project_429", 4, 429, {"code": 429, "error": "Too many"}, {"retry_later": _ALL4, "min_delay_s": 60}),
    _case(
        "strange_retry_after", 4, 429, {"code": 429}, {"retry_later": _ALL4, "min_delay_s": 60}, retry_after="soon"
    ),
    _case(
        "index_out_of_range", 4, 400, {"error": "x", "events_with_invalid_fields": {"time": [4, 99, -1]}},
        {"split": True},
    ),
    _case(
        "some_out_of_range", 4, 400, {"error": "x", "events_with_invalid_fields": {"time": [1, 99]}},
        {"dead": {"1": "rejected"}, "retry_now": [0, 2, 3], "same_ids": True},
    ),
    _case(
        "lists_of_nonsense", 4, 400, {"error": "x", "events_with_invalid_fields": {"t": ["1", True, None]}},
        {"split": True},
    ),
    _case(
        "two_kinds", 5, 400,
        {"events_with_missing_fields": {"event_type": [0]}, "events_with_invalid_id_lengths": {"user_id": [4]}},
        {"dead": {"0": "rejected", "4": "rejected"}, "retry_now": [1, 2, 3]},
    ),
    _case(
        "silenced_and_throttled", 5, 400,
        {"error": "Events silenced for device_id", "silenced_events": [1], "throttled_users": {"u": 40},
         "throttled_events": [3]},
        {"dead": {"1": "silenced"}, "retry_now": [0, 2, 4], "retry_later": [3], "min_delay_s": 30},
    ),
    _case("not_json_said", 4, 400, {"code": 400, "error": "Invalid JSON request body"}, {"split": True}),
    _case("invalid_event_json", 1, 400, {"code": 400, "error": "Invalid event JSON"}, {"dead": {"0": "rejected"}}),
    _case("wrong_path", 4, 400, {"code": 400, "error": "Invalid request path"}, {"halt": True}),
    _case("no_body_said", 4, 400, {"code": 400, "error": "Missing request body"}, {"halt": True}),
    _case("missing_field_key", 4, 400, {"error": "Request missing", "missing_field": "api_key"}, {"halt": True}),
    _case("missing_field_null", 1, 400, {"error": "x", "missing_field": None}, {"dead": {"0": "rejected"}}),
    _case("forbidden", 4, 403, {"code": 403, "error": "Forbidden"}, {"split": True, "same_ids": True}),
    _case("forbidden_single", 1, 403, {"code": 403, "error": "Forbidden"}, {"dead": {"0": "forbidden"}}),
    _case("not_found", 4, 404, b"nope", {"halt": True}),
    _case("moved_for_good", 4, 308, None, {"halt": True}, location="https://example.invalid/"),
    _case(
        "quota_and_rate", 6, 429,
        {"throttled_users": {"user1": 31}, "exceeded_daily_quota_users": {"user2": 5e5}, "throttled_events": [1, 2]},
        {"retry_now": [0, 3, 4, 5], "retry_later": [1, 2], "min_delay_s": 30, "delays": {"2": 3600}},
    ),
    _case("nobody_we_know", 4, 429, {"throttled_users": {"stranger": 31}}, {"retry_later": _ALL4, "min_delay_s": 30}),
    _case(
        "named_without_list", 4, 429, {"throttled_users": {"user2": 31}},
        {"retry_now": [0, 1, 3], "retry_later": [2], "min_delay_s": 30},
    ),
    _case(
        "ok_as_seen_live", 1, 200,
        {"code": 200, "server_upload_time": 1639235302252, "payload_size_bytes": 863, "events_ingested": 1},
        {"delivered": [0]},
    ),
    # Repeats may count as ingested or not, so the number says nothing about which events Amplitude has.
    _case("ok_but_none_ingested", 4, 200, {"code": 200, "events_ingested": 0}, {"delivered": _ALL4}),
    _case(
        "missing_field_events", 4, 400,
        {"missing_field": "events", "code": 400, "error": "Request missing required field"}, {"halt": True},
    ),
    _case(
        "only_the_first_is_named", 4, 400,
        {"code": 400, "error": "Request missing required field", "events_with_missing_fields": {"event_type": [3]}},
        {"dead": {"3": "rejected"}, "retry_now": [0, 1, 2], "same_ids": True},
    ),
    _case(
        "invalid_values", 8, 400,
        {"error": "Invalid field values on some events", "events_with_invalid_fields": {"time": [3, 4, 7]}},
        {"dead": {"3": "rejected", "4": "rejected", "7": "rejected"}, "retry_now": [0, 1, 2, 5, 6]},
    ),
    _case(
        "id_too_short", 4, 400,
        {"code": 400, "error": "Invalid id length for user_id or device_id",
         "events_with_invalid_id_lengths": {"user_id": [1]}},
        {"dead": {"1": "rejected"}, "retry_now": [0, 2, 3]},
    ),
    _case(
        "silenced_devices_among_throttled_ones", 8, 400,
        {"code": 400, "error": "Events silenced for device_id", "eps_threshold": 100,
         "exceeded_daily_quota_devices": {}, "silenced_devices": ["d1", "d2"], "silenced_events": [5, 6],
         "throttled_devices": {"d3": 0, "d4": 100}, "throttled_events": [3, 4]},
        {"dead": {"5": "silenced", "6": "silenced"}, "retry_now": [0, 1, 2, 7], "retry_later": [3, 4],
         "min_delay_s": 30},
    ),
    _case(
        "users_and_devices_throttled", 8, 429,
        {"code": 429, "error": "Too many requests for some devices and users", "eps_threshold": 30,
         "throttled_devices": {"d3": 31}, "throttled_users": {"user4": 32}, "throttled_events": [3, 4, 7]},
        {"retry_now": [0, 1, 2, 5, 6], "retry_later": [3, 4, 7], "min_delay_s": 30},
    ),
    _case(
        "daily_quota_of_a_device", 4, 429,
        {"code": 429, "exceeded_daily_quota_users": {}, "exceeded_daily_quota_devices": {"d3": 500900},
         "eps_threshold": 1000, "throttled_events": [3]},
        {"retry_now": [0, 1, 2], "retry_later": [3], "min_delay_s": 3600},
    ),
    _case(
        "throttled_maps_that_are_empty", 4, 429,
        {"code": 429, "throttled_users": {}, "throttled_devices": {}, "throttled_events": []},
        {"retry_later": _ALL4, "min_delay_s": 60},
    ),
    _case(
        "throttled_user_with_a_time", 4, 429, {"throttled_users": {"user2": 31}, "throttled_events": [2]},
        {"retry_now": [0, 1, 3], "retry_later": [2], "min_delay_s": 45}, retry_after="45",
    ),
    _case("bad_gateway", 4, 502, {"code": 502, "error": "x"}, _LATER4),
    _case("gateway_timeout", 4, 504, {"code": 504, "error": "x"}, _LATER4),
    _case("nothing_in_a_500", 4, 500, None, _LATER4),
    _case("too_early", 4, 425, None, _LATER4),
    _case("too_large_as_a_firewall_says_it", 4, 413, b"<html>413</html>", {"split": True, "same_ids": True}),
    _case("payload_in_a_language_nobody_reads", 4, 500, b"\xff\xfe\x00", _LATER4),
]  # fmt: skip
_DEVICES = {
    "silenced_devices_among_throttled_ones": {3: "d3", 4: "d4", 5: "d1", 6: "d2"},
    "users_and_devices_throttled": {3: "d3", 7: "d3"},
    "daily_quota_of_a_device": {3: "d3"},
}
"""Events of a device alone."""


def _users(case: dict[str, Any]) -> dict[int, str]:
    """Whose the events are, as far as the answer lets on."""
    if case["id"] in _SAME_USER:
        return _SAME_USER[case["id"]]
    body = case["response"].get("body")
    if not isinstance(body, dict) or case in _MORE:
        return {3: "u"} if case["id"] == "silenced_and_throttled" else {}
    names = [*body.get("throttled_users", {}), *body.get("exceeded_daily_quota_users", {})]
    return dict.fromkeys(body.get("throttled_events", []), names[0]) if len(names) == 1 else {}


def _answer(case: dict[str, Any]) -> HttpAnswer | NoAnswer:
    response = case["response"]
    if "transport" in response:
        return _TRANSPORT[response["transport"]]
    body = response["body"]
    content = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
    headers = {name.lower(): text for name, text in response["headers"].items()}
    return HttpAnswer(response["status"], content, headers)


@pytest.mark.parametrize("case", [*_TABLE, *_MORE], ids=lambda case: str(case["id"]))
@pytest.mark.contract("5.5.1", "5.5.2", "5.5.4", "5.5.5", "5.5.6", "5.5.7", "5.5.8")
@pytest.mark.slow
def test_answer(case: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=case["batch"], run_retry_seconds=7_300.0)
    users = _users(case)
    devices = _DEVICES.get(case["id"], {})
    bench.prepare([event(number, users.get(number), devices.get(number)) for number in range(case["batch"])])
    bench.answer = lambda posted: OK if posted.number and case["id"] not in _EACH_TIME else _answer(case)
    bench.deliver()
    expect = case["expect"]
    first, *rest = bench.posted
    again = {one: posted.at - first.at - LATENCY for posted in reversed(rest) for one in posted.ids}
    if expect.get("halt"):
        assert bench.reason_of_halt()
        assert not rest
        assert bench.status().pending == case["batch"]
        return
    dead = {f"e{number}": reason for number, reason in expect.get("dead", {}).items()}
    assert {one: row.reason for one, row in bench.exceptions("dead").items()} == dead
    assert bench.status().delivered == case["batch"] - len(dead)
    if expect.get("split"):
        assert rest[0].ids == first.ids[: case["batch"] // 2]
    if "delivered" in expect:
        assert not rest
    for number in expect.get("retry_now", ()):
        assert again[f"e{number}"] < 0.05
    for number in expect.get("retry_later", ()):
        assert again[f"e{number}"] >= expect.get("delays", {}).get(str(number), expect["min_delay_s"]) - 0.001
    texts = dict(zip(first.ids, first.events, strict=True))
    assert all(texts[one] == text for posted in rest for one, text in zip(posted.ids, posted.events, strict=True))
    _check_order(bench, users)


def _check_order(bench: Bench, users: dict[int, str]) -> None:
    """What was taken of a user was taken in order."""
    dead = bench.exceptions("dead")
    last: dict[str, int] = {}
    for posted in bench.posted[1:]:
        for one in posted.ids:
            number = int(one[1:])
            user = users.get(number, one)
            if one not in dead:
                assert last.get(user, -1) <= number
                last[user] = number


def test_retry_after_can_be_a_date(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])
    at = bench.time.true + 25
    bench.answer = lambda posted: (
        OK if posted.number else HttpAnswer(503, b"", {"retry-after": formatdate(at, usegmt=True)})
    )
    bench.deliver()
    assert 24 <= bench.posted[1].at <= 26


@pytest.mark.contract("5.5.7")
def test_retry_after_holds_for_all_lanes_and_for_the_next_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_lanes=4, run_retry_seconds=10.0)
    bench.prepare([event(number) for number in range(40)], lanes=4)
    bench.answer = lambda _posted: HttpAnswer(429, b"", {"retry-after": "300"})
    bench.deliver()
    bench.answer = lambda _posted: OK
    started = len(bench.posted)
    bench.deliver()
    assert len(bench.posted) == started
    bench.time.true += 300
    bench.deliver()
    assert bench.status().delivered == 40


def test_throttled_device_of_events_with_a_user(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=10)
    bench.prepare([event(n, f"user{n % 3}", f"device{n % 3}") for n in range(9)])
    bench.answer = lambda posted: OK if posted.number else HttpAnswer(429, b'{"throttled_devices":{"device1":31}}')
    bench.deliver()
    assert bench.posted[1].ids == ("e0", "e2", "e3", "e5", "e6", "e8")
    assert bench.posted[2].ids == ("e1", "e4", "e7")
    assert bench.posted[2].at >= 30


@pytest.mark.contract("5.5.5")
def test_many_single_events_forbidden_in_a_row_stop_the_integration_and_spend_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=4)
    bench.prepare([event(number) for number in range(40)])
    bench.answer = lambda _posted: HttpAnswer(403, b'{"code":403,"error":"Forbidden"}')
    bench.deliver()
    assert (bench.reason_of_halt() or "").startswith("forbidden")
    assert bench.status().pending == 40
    assert not bench.exceptions("dead")


def test_forbidden_streak_goes_on_in_the_next_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=1)
    bench.prepare([event(number) for number in range(40)])

    def answer(posted: object) -> HttpAnswer:
        bench.stop = len(bench.posted) == 3
        return HttpAnswer(403, b"{}")

    bench.answer = answer
    bench.deliver()
    assert bench.status().dead_letters == {"forbidden": 3}
    bench.stop = False
    bench.deliver()
    assert bench.reason_of_halt()
    assert bench.status().pending == 40
    assert len(bench.posted) == 5


def test_a_few_forbidden_events_among_good_ones_stop_nobody(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=8)
    bench.prepare([event(number) for number in range(64)])
    bad = {f"e{number}" for number in range(3, 64, 7)}
    bench.answer = lambda posted: HttpAnswer(403, b"{}") if bad & set(posted.ids) else OK
    bench.deliver()
    assert bench.reason_of_halt() is None
    assert bench.exceptions("dead").keys() == bad
    assert bench.status().delivered == 64 - len(bad)


@pytest.mark.parametrize("place", [0, 1, 499, 500, 998, 999])
@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.contract("5.5.3")
def test_a_refused_event_is_found_by_halving(place: int, status: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=1000)
    bench.prepare([event(number) for number in range(1000)])
    bench.answer = lambda posted: HttpAnswer(status, b"{}") if f"e{place}" in posted.ids else OK
    bench.deliver()
    assert list(bench.exceptions("dead")) == [f"e{place}"]
    assert bench.status().delivered == 999
    # The halving, the event alone, and the rest of what was refused at first.
    assert len(bench.posted) <= 1 + 10 + 1 + 1 + (DOUBTED_TIMES if status == 413 else 0)


def test_several_refused_events_are_all_found(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=100)
    bad = {f"e{number}" for number in (0, 1, 2, 50, 99, 100, 250)}
    bench.prepare([event(number) for number in range(300)])
    bench.answer = lambda posted: HttpAnswer(400, b"{}") if bad & set(posted.ids) else OK
    bench.deliver()
    assert bench.exceptions("dead").keys() == bad
    assert bench.status().delivered == 293
    assert len(bench.posted) <= 3 + len(bad) * 9


def test_too_large_requests_get_smaller_but_not_for_ever(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=1000)
    bench.prepare([event(number, size=200) for number in range(4_900)])
    limit = 60_000
    bench.answer = lambda posted: HttpAnswer(413, b"") if sum(map(len, posted.events)) > limit else OK
    bench.deliver()
    assert bench.status().delivered == 4_900
    refused = [posted for posted in bench.posted if sum(map(len, posted.events)) > limit]
    assert len(refused) <= 6
    assert len(bench.posted) <= 60
    assert sum(map(len, bench.posted[-2].events)) > limit / 4


def test_the_api_key_is_in_no_record(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])
    long = "x" * 1_980 + API_KEY
    bench.answer = lambda _posted: HttpAnswer(404, long.encode())
    bench.deliver()
    bench.context.store.close()
    for path in tmp_path.rglob("*.db*"):
        assert API_KEY[:16].encode() not in path.read_bytes()


@pytest.mark.parametrize("times", [1, 2, DOUBTED_TIMES])
@pytest.mark.contract("5.5.6")
def test_that_one_small_event_is_too_large_is_not_believed_at_once(times: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=0.0)
    bench.prepare([event(0), event(1)])
    bench.answer = lambda posted: HttpAnswer(413, b"{}") if posted.number <= times else OK
    bench.deliver()
    assert bench.status().delivered == 2
    assert not bench.exceptions("dead")
    singles = [posted for posted in bench.posted if posted.ids == ("e0",)]
    waits = [later.at - earlier.at for earlier, later in pairwise(singles)]
    assert len(waits) == times
    assert all(wait >= 0.1 for wait in waits), "it is asked again with back-off"
    assert len({posted.events for posted in singles}) == 1


@pytest.mark.parametrize("waiting", [False, True], ids=["lane", "waiting"])
def test_one_small_event_that_is_always_too_large_is_a_dead_letter_in_the_end(waiting: bool, tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=60.0)
    bench.prepare([event(0, "a"), event(1, "b")])

    def answer(posted: Posted) -> HttpAnswer:
        if waiting and posted.number == 0:
            return HttpAnswer(429, b'{"throttled_users":{"a":31},"throttled_events":[0]}')
        return HttpAnswer(413, b"{}") if "e0" in posted.ids else OK

    bench.answer = answer
    bench.deliver()
    assert {one: row.reason for one, row in bench.exceptions("dead").items()} == {"e0": "too_large"}
    assert bench.status().delivered == 1
    assert len([posted for posted in bench.posted[1:] if posted.ids == ("e0",)]) == 1 + DOUBTED_TIMES


def test_one_event_that_is_nearly_as_large_as_a_request_may_be_is_believed_to_be_too_large(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0, size=600_000)])
    bench.answer = lambda _posted: HttpAnswer(413, b"{}")
    bench.deliver()
    assert len(bench.posted) == 1
    assert bench.status().dead_letters == {"too_large": 1}


def test_a_200_that_says_that_nothing_was_ingested_is_delivered_with_a_warning(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])
    bench.answer = lambda _posted: HttpAnswer(200, b'{"code":200,"events_ingested":0}')
    done = bench.deliver()[bench.ids[0]]
    assert bench.status().delivered == 1
    assert done.error is None
    assert dict(done.warnings) == {NONE_INGESTED: 1}
    with bench.context.store.begin() as tx:
        (row,) = tx.execute(sa.select(tables.requests.c.outcome, tables.requests.c.answer))
    assert tuple(row) == ("delivered", NONE_INGESTED)


def test_a_key_that_is_echoed_never_reaches_the_store_however_the_text_is_cut(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])
    for room in range(170, 330, 7):
        text = "x" * room + API_KEY
        refusal = HttpAnswer(400, orjson.dumps({"missing_field": "e", "error": text}))
        bench.answer = lambda _posted, refusal=refusal: refusal  # type: ignore[misc]
        bench.deliver()
        halted = bench.reason_of_halt() or ""
        with bench.context.store.begin() as tx:
            rows = tx.execute(sa.select(tables.requests.c.outcome, tables.requests.c.answer)).all()
        kept = " ".join([halted, *(f"{row.outcome} {row.answer}" for row in rows)])
        assert not any(API_KEY[:length] in kept for length in range(8, len(API_KEY) + 1))
        registry.set_enabled(bench.context.store, "app/i0", enabled=True)
