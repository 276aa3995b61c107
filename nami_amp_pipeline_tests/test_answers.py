"""What an answer means, judged by itself."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nami_amp_pipeline.amplitude.answers import judge
from nami_amp_pipeline.delivery.destination import Outcome
from nami_amp_pipeline.delivery.retry_after import MOST_RETRY_AFTER_SECONDS
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer

_PEOPLE = [("u:a", "d:x"), ("u:b",), ("u:a", "d:y"), ("d:x",)]


@pytest.mark.parametrize("status", [500, 502, 504, 408, 201, 299])
def test_may_have_been_stored(status: int) -> None:
    verdict = judge(HttpAnswer(status, b""), _PEOPLE)
    assert verdict.outcome is Outcome.AGAIN
    assert verdict.maybe_stored


@pytest.mark.parametrize(
    "answer", [HttpAnswer(503, b""), HttpAnswer(429, b""), NoAnswer("no_connection", maybe_stored=False)]
)
def test_was_not_stored(answer: HttpAnswer | NoAnswer) -> None:
    verdict = judge(answer, _PEOPLE)
    assert verdict.outcome is Outcome.AGAIN
    assert not verdict.maybe_stored


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 401, 404, 405, 410, 451])
def test_halts(status: int) -> None:
    assert judge(HttpAnswer(status, b"", {"location": "https://example.invalid"}), _PEOPLE).outcome is Outcome.HALT


def test_a_key_that_amplitude_repeats_is_not_in_the_reason() -> None:
    verdict = judge(HttpAnswer(400, b'{"code":400,"error":"Invalid API key: abc123"}'), _PEOPLE)
    assert verdict.outcome is Outcome.HALT
    assert "abc123" not in verdict.reason


def test_whoever_shares_a_throttled_device_waits_with_all_events() -> None:
    verdict = judge(HttpAnswer(429, b'{"throttled_devices":{"x":31}}'), _PEOPLE)
    assert verdict.pauses.keys() == {"u:a", "d:x"}
    assert verdict.paused == {0, 2, 3}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("17", 17.0),
        ("0", 0.0),
        ("999999999", MOST_RETRY_AFTER_SECONDS),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 50.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5e400", None),
        ("²", None),
        ("", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    verdict = judge(HttpAnswer(503, b"", {"retry-after": text}), _PEOPLE, now=50.0)
    assert verdict.delay == seconds
    assert verdict.whole_project is (seconds is not None)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
_FIELDS = st.sampled_from(
    (
        "code", "error", "missing_field", "events_with_missing_fields", "events_with_invalid_fields",
        "events_with_invalid_id_lengths", "silenced_events", "throttled_events", "throttled_users",
        "throttled_devices", "exceeded_daily_quota_users", "exceeded_daily_quota_devices",
    )
)  # fmt: skip


@given(
    st.integers(200, 599),
    st.one_of(st.binary(max_size=20), st.dictionaries(_FIELDS, _JSON, max_size=5).map(orjson.dumps)),
    st.integers(1, 4),
    st.text(max_size=8),
)
@pytest.mark.slow
def test_whatever_is_answered_something_follows(status: int, body: bytes, events: int, retry_after: str) -> None:
    """No answer is a crash, an endless loop, or an index that is not of the request."""
    verdict = judge(HttpAnswer(status, body, {"retry-after": retry_after}), _PEOPLE[:events], now=1e9)
    assert all(0 <= index < events for index in (*verdict.dead, *verdict.paused))
    assert not verdict.dead.keys() & verdict.paused
    if verdict.outcome is Outcome.REFUSED_SOME:
        assert verdict.dead or verdict.paused
        assert {_PEOPLE[index][0] for index in verdict.paused} <= verdict.pauses.keys()
    if verdict.outcome is Outcome.DELIVERED:
        assert status == 200
