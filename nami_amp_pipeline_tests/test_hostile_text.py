"""A row with characters that a database cannot hold is delivered like any other, and stops nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline_tests.support.harness import START, Pipeline

NUL = "\0"


@pytest.mark.contract("1.7")
@pytest.mark.slow
def test_characters_that_postgresql_cannot_hold(state_url: str, tmp_path: Path) -> None:
    made = Pipeline(tmp_path / "home", {"NAMI_AMP_STATE_URL": state_url})
    one = made.add("radio", user_id_kind="nami_user_id")
    waiting = made.add("radio", "waiting", anonymous="wait_for_login")
    payloads = ("{}", f"no JSON {NUL}", '{"external_ids": [{"key": "external_id", "value": "a\\u0000b"}]}', "{}")
    made.insert(
        [
            {"id": f"e{NUL}{number}", "app_id": "radio", "event_type": "user.subscription.renewed",
             "user_id": f"u{NUL}{number % 3}", "created_date": START, "ingested_at": START, "payload": payload}
            for number, payload in enumerate(payloads)
        ]
    )  # fmt: skip
    for _ in range(2):
        made.tick()
        status = made.status(one)
        assert (status.captured, status.delivered, status.dead_letters) == (4, 3, {"malformed_payload": 1})
        held = made.status(waiting)
        assert (held.delivered, held.pending, held.dead_letters) == (1, 2, {"malformed_payload": 1})
    made.close()
