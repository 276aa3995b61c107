"""Each answer of Amplitude's means for a request's events what the table of cases says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.amplitude.answers import judge
from nami_amp_pipeline.delivery.destination import Outcome, Verdict
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer

CASES = json.loads((Path(__file__).parent / "cases" / "amplitude_responses.json").read_text("utf-8"))["cases"]
TRANSPORT = {
    "refused": NoAnswer("no_connection", maybe_stored=False),
    "reset_before_response": NoAnswer("reset", maybe_stored=True),
    "read_timeout": NoAnswer("timeout", maybe_stored=True),
    "truncated_body": NoAnswer("truncated", maybe_stored=True),
}


def answer_of(response: dict[str, Any]) -> HttpAnswer | NoAnswer:
    if "transport" in response:
        return TRANSPORT[response["transport"]]
    body = b"" if response["body"] is None else orjson.dumps(response["body"])
    headers = {name.lower(): value for name, value in response["headers"].items()}
    return HttpAnswer(response["status"], body, headers)


def identities(case: dict[str, Any]) -> list[tuple[str, ...]]:
    """Whose each event is: a user of its own, but where the case says who waits with whom."""
    own: list[tuple[str, ...]] = [(f"u:user-{index}",) for index in range(case["batch"])]
    users = list(case["response"].get("body", None) or {})
    named = [
        name
        for key in ("throttled_users", "exceeded_daily_quota_users")
        if key in users
        for name in case["response"]["body"][key]
    ]
    if named:
        for index in case["expect"]["retry_later"]:
            own[index] = (f"u:{named[0]}",)
    return own


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
@pytest.mark.contract("5.5.1", "5.5.2", "5.5.4", "5.5.5", "5.5.6", "5.5.7", "5.5.8")
def test_answer_means_what_the_case_says(case: dict[str, Any]) -> None:
    verdict = judge(answer_of(case["response"]), identities(case))
    expect = case["expect"]
    if "halt" in expect:
        assert verdict.outcome is Outcome.HALT
    elif "split" in expect:
        assert verdict.outcome is Outcome.REFUSED_ONE_OF
    elif "delivered" in expect:
        assert verdict.outcome is Outcome.DELIVERED
    else:
        check_parts(case, verdict)


def check_parts(case: dict[str, Any], verdict: Verdict) -> None:
    expect = case["expect"]
    everything = set(range(case["batch"]))
    dead = {int(index): reason for index, reason in expect.get("dead", {}).items()}
    if verdict.outcome is Outcome.REFUSED_ONE_OF:  # of a single event: that one
        assert case["batch"] == 1
        assert dead == {0: verdict.reason}
        return
    assert dict(verdict.dead) == dead
    later = set(expect.get("retry_later", []))
    if verdict.outcome is Outcome.AGAIN:
        assert later == everything
        if expect["min_delay_s"] >= 1:
            assert verdict.delay is not None
            assert verdict.delay >= expect["min_delay_s"]
        return
    assert set(verdict.paused) == later
    assert everything - later - dead.keys() == set(expect.get("retry_now", []))
    for _, seconds in verdict.pauses.values():
        assert seconds >= expect["min_delay_s"]


@pytest.mark.parametrize("status", [200, 400, 500, 502])
def test_html_is_no_word_of_amplitudes(status: int) -> None:
    verdict = judge(HttpAnswer(status, b"<html>Bad Request</html>"), [("u:a",), ("u:b",)])
    assert verdict.outcome is Outcome.AGAIN
    assert verdict.maybe_stored


def test_unavailable_means_not_stored() -> None:
    assert not judge(HttpAnswer(503, b"{}"), [("u:a",)]).maybe_stored
    assert judge(HttpAnswer(504, b"{}"), [("u:a",)]).maybe_stored


def test_a_throttled_device_lets_its_user_wait() -> None:
    body = orjson.dumps({"code": 429, "throttled_devices": {"d1": 31}})
    verdict = judge(HttpAnswer(429, body), [("u:a", "d:d1"), ("u:b", "d:d2"), ("u:a",)])
    assert verdict.paused == {0, 2}


@pytest.mark.parametrize("status", [401, 404, 405, 301, 302, 307, 308])
def test_an_endpoint_that_is_not_amplitudes_halts(status: int) -> None:
    assert judge(HttpAnswer(status, b""), [("u:a",)]).outcome is Outcome.HALT
