"""Events that wait for a login leave in order once it is read, and are skipped, counted, where it does not come."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from nami_amp_pipeline_tests.support.harness import START, Pipeline


def row(number: int, at: datetime, user: str = "ann", external: str | None = None) -> dict[str, Any]:
    """A row that was created and loaded at once."""
    ids = [] if external is None else [{"key": "external_id", "type": "string", "value": external}]
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": "user.subscription.renewed", "user_id": user,
        "created_date": at, "ingested_at": at, "payload": orjson.dumps({"external_ids": ids}).decode(),
    }  # fmt: skip


@pytest.mark.parametrize("days", [30, 3])
@pytest.mark.contract("2.7")
@pytest.mark.slow
def test_who_does_not_log_in_is_skipped_after_the_time_set(days: int, tmp_path: Path, state_url: str) -> None:
    made = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url, "NAMI_AMP_HOLD_DAYS": str(days)})
    one = made.add("radio", anonymous="wait_for_login")
    made.insert([row(1, START), row(2, START, user="bea")])
    made.tick()
    assert made.status(one).pending_by == {"waiting_for_login": 2}

    made.clock.set(START + timedelta(days=days) - timedelta(seconds=1))
    made.insert([row(3, START + timedelta(days=1), user="bea", external="b")])
    made.tick()
    assert [event["insert_id"] for event in made.sent(one)] == ["e2", "e3"], "what waited goes first"
    assert made.status(one).pending_by == {"waiting_for_login": 1}

    made.clock.set(START + timedelta(days=days))
    made.tick()
    numbers = made.status(one)
    assert (numbers.captured, numbers.delivered, numbers.pending) == (3, 2, 0)
    assert numbers.skipped == {"no_external_id": 1}

    made.insert([row(4, START + timedelta(days=days), external="a")])
    made.tick()
    assert [event["insert_id"] for event in made.sent(one)] == ["e2", "e3", "e4"], "who comes too late is not sent"
    made.close()


@pytest.mark.slow
def test_events_that_waited_leave_before_newer_ones_and_in_order(tmp_path: Path) -> None:
    made = Pipeline(tmp_path)
    one = made.add("radio", anonymous="wait_for_login")
    hour = timedelta(hours=1)
    made.insert([row(3, START + 3 * hour), row(1, START + hour)])
    made.tick()
    made.insert([row(2, START + 2 * hour)])
    made.clock.set(START + 4 * hour)
    made.tick()
    assert made.sent(one) == []
    made.clock.set(START + 6 * hour)
    made.insert([row(5, START + 5 * hour, external="a"), row(6, START + 5 * hour)])
    made.tick()
    assert [event["insert_id"] for event in made.sent(one)] == ["e1", "e2", "e3", "e5", "e6"]
    assert {event["user_id"] for event in made.sent(one)} == {"a"}
    assert made.status(one).pending == 0
    made.close()
