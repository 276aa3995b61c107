"""Verdicts: each place that an event can be in becomes one word, with why and what to do; the worst is the status."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from nami_amp_pipeline.amplitude.answers import NONE_INGESTED
from nami_amp_pipeline.operations.standing import Standing
from nami_amp_pipeline.operations.status import IntegrationStatus
from nami_amp_pipeline.operations.verdicts import EXIT, Verdict, Word, exit_status, verdict

AT = "2026-09-01T00:00:01.500000Z"
TICK = datetime(2026, 9, 1, 0, 5, tzinfo=UTC)


def standing(**more: Any) -> Standing:
    """An integration that delivers, but for what is given."""
    plain: dict[str, Any] = {
        "integration": "radio/main", "state": "delivering", "needs_you": False, "since": None, "why": "",
        "next_try": TICK, "what_to_do": None, "pending": 1, "whose": (), "whose_is_all": True,
        "rejected": 0, "dismissed": 0,
        "also": (), "code": "", "lag_seconds": 1.0, "numbers": IntegrationStatus("radio/main", "enabled"),
    }  # fmt: skip
    return Standing(**{**plain, **more})


HALTED = standing(state="halted", needs_you=True, since=TICK, why="no key", next_try=None, what_to_do="Mend it")
OFF = standing(state="off", since=TICK, why="ana switched it off", next_try=None, what_to_do="Enable it")
REJECTING = standing(needs_you=True, rejected=3, code="rejected", what_to_do="'nami-amp dead-letters list' shows them")


@pytest.mark.parametrize(
    ("place", "stands", "expected"),
    [
        ({"state": "delivered", "request": {"answered_at": AT}}, standing(), Verdict("radio/main", "arrived", AT)),
        (
            {"state": "delivered", "request": {"answered_at": AT, "answer": NONE_INGESTED}},
            standing(),
            Verdict("radio/main", "arrived", AT, NONE_INGESTED),
        ),
        ({"state": "delivered", "at": AT}, HALTED, Verdict("radio/main", "arrived", AT)),
        (
            {"state": "skipped", "reason": "no_external_id", "outbox": {"prepared_at": AT}},
            standing(),
            Verdict("radio/main", "not sent", AT, "the user had no External ID"),
        ),
        (
            {"state": "queued", "reason": "not posted yet"},
            standing(),
            Verdict("radio/main", "waits", None, "the next micro-batch posts it", "2026-09-01T00:05:00Z"),
        ),
        (  # what to do about others that were rejected is nothing to do about this one
            {"state": "queued", "reason": "not posted yet"},
            REJECTING,
            Verdict("radio/main", "waits", None, "the next micro-batch posts it", "2026-09-01T00:05:00Z"),
        ),
        (
            {"state": "queued", "reason": "not posted yet"},
            HALTED,
            Verdict("radio/main", "waits", "2026-09-01T00:05:00Z", "the integration is halted: no key", None,
                    "Mend it"),
        ),
        (
            {"state": "held", "reason": "throttled", "at": AT, "paused_for": "throttled", "paused_until": AT},
            standing(),
            Verdict("radio/main", "waits", AT, "Amplitude throttles the user: more than 30 events a second",
                    "2026-09-01T00:05:00Z"),
        ),
        (
            {"state": "not_captured", "reason": "not read yet"},
            standing(),
            Verdict("radio/main", "not read yet", None, "no run has read it", "2026-09-01T00:05:00Z"),
        ),
        (
            {"state": "not_captured", "reason": "the integration is off"},
            OFF,
            Verdict("radio/main", "waits", "2026-09-01T00:05:00Z", "the integration is off: ana switched it off", None,
                    "Enable it"),
        ),
        ({"state": "expired", "reason": "gone"}, standing(), Verdict("radio/main", "unknown", None, "gone")),
        ({"state": "before_start", "reason": "later"}, standing(), Verdict("radio/main", "not sent", None, "later")),
    ],
)  # fmt: skip
def test_a_place_is_one_verdict(place: dict[str, Any], stands: Standing, expected: Verdict) -> None:
    assert verdict(place, stands) == expected


def test_a_dead_letter_says_the_field_and_how_it_goes_again() -> None:
    place = {
        "state": "dead_letter", "reason": "rejected", "at": AT, "dead_letter": 7, "body": ',{"time":-1}',
        "answer": '{"code":400,"events_with_invalid_fields":["time"]}',
    }  # fmt: skip
    found = verdict(place, standing())
    assert (found.word, found.when) == ("rejected", "2026-09-01T00:00:01Z")
    assert found.why == "Amplitude rejected the event for what it holds (time is invalid: -1)"
    assert found.what_to_do is not None
    assert "'nami-amp dead-letters retry 7'" in found.what_to_do
    assert verdict({**place, "reason": "outcome_unknown", "answer": None}, standing()).word == "unknown"
    assert (
        verdict({**place, "reason": "bad_date", "answer": None}, standing()).why
        == "the row has no possible created_date"
    )
    assert verdict({**place, "reason": "of_tomorrow", "answer": None}, standing()).why == "of tomorrow"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ((), 1), (("arrived",), 0), (("arrived", "not selected"), 0), (("not selected", "not sent"), 5),
        (("arrived", "waits"), 3), (("waits", "rejected"), 4), (("arrived", "unknown"), 4), (("not read yet",), 3),
    ],
)  # fmt: skip
def test_the_worst_is_the_exit_status(words: tuple[Word, ...], status: int) -> None:
    assert exit_status(Verdict("radio/main", word) for word in words) == status
    assert set(words) <= EXIT.keys()
