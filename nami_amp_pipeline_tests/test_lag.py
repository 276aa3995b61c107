"""Lag: how long the oldest event that is still to be posted has been in the warehouse. A wait for a login is none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.alerts.conditions import conditions
from nami_amp_pipeline.defs.checks import lag_result
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.operations import dead_letters
from nami_amp_pipeline.operations.backlog import due, not_captured
from nami_amp_pipeline.operations.shards import Shard
from nami_amp_pipeline.operations.standing import standings
from nami_amp_pipeline.stages.pipeline import capture_apps
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.harness import START, Answering, Pipeline
from nami_amp_pipeline_tests.support.rows import renewal as row

HOUR = timedelta(hours=1)
THROTTLED = HttpAnswer(429, b'{"throttled_users":{"a":31}}')
REFUSED = HttpAnswer(400, b'{"code":400,"events_with_missing_fields":{"time":[0]}}')


@pytest.fixture
def pipe(tmp_path: Path, state_url: str) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url, "NAMI_AMP_RUN_RETRY_SECONDS": "0"})
    yield made
    made.close()


@pytest.mark.slow_cases
@pytest.mark.contract("6.6")
def test_what_waits_for_a_login_is_no_lag_and_is_told_by_itself(pipe: Pipeline) -> None:
    one, other = pipe.add("radio", anonymous="wait_for_login"), pipe.add("radio", "other")
    pipe.insert([row(1, START), row(2, START + HOUR)])
    pipe.clock.set(START + HOUR)
    pipe.tick()
    pipe.clock.set(START + 4 * HOUR)
    found = pipe.status(one)
    assert (found.pending, found.waiting, found.to_post) == (2, 2, 0)
    assert (found.lag_seconds, found.lag_by) == (0.0, {"waiting_for_login": 4 * 3600.0})
    assert found.to_json()["lag_by"] == found.lag_by
    assert pipe.status(other).lag_by == {}
    assert conditions(pipe.context).alerts == []
    check = lag_result(standings(pipe.context, integrations=[one]), allowed=900)
    assert check.passed
    assert check.metadata["waiting_for_login"].value == 2

    pipe.insert([row(3, START + 2 * HOUR, external="a")])
    capture_apps(pipe.context)
    found = pipe.status(one)
    assert (found.pending_by, found.lag_seconds) == ({"queued": 1, "waiting_for_login": 2}, 2 * 3600.0)
    (told, _) = conditions(pipe.context).alerts
    assert told.summary.startswith("1 event pending, the oldest for 2 h (")


@pytest.mark.slow
def test_what_amplitude_throttles_is_lag_although_nothing_is_queued(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    pipe.insert([row(1, START, external="a"), row(2, START, external="b")])
    pipe.wires[one.id] = Answering([THROTTLED])
    pipe.tick()
    pipe.clock.set(START + 2 * HOUR)
    found = pipe.status(one)
    assert (found.delivered, found.pending_by) == (1, {"throttled": 1})
    assert (found.lag_seconds, found.lag_by) == (2 * 3600.0, {"held": 2 * 3600.0})
    assert due(pipe.context) == []  # no run could do anything about it
    check = lag_result(standings(pipe.context, integrations=[one]), allowed=900)
    assert (check.passed, check.description) == (
        False,
        "radio|main: Amplitude throttles the user: more than 30 events a second; 1 event of 1 user waits; all other "
        "events are delivered",
    )
    (told,) = conditions(pipe.context).alerts
    assert told.summary.startswith("1 event pending, the oldest for 2 h (")

    with pipe.context.store.begin() as tx:
        tx.execute(sa.delete(tables.segment_apps))  # past its retention
    assert pipe.status(one).lag_seconds == 2 * 3600.0
    pipe.tick()
    assert (pipe.status(one).pending, pipe.status(one).lag_by) == (0, {})


@pytest.mark.slow
def test_a_dead_letter_that_goes_again_is_late_from_then_on(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    pipe.insert([row(1, START, external="a")])
    pipe.wires[one.id] = Answering([REFUSED])
    pipe.tick()
    assert pipe.status(one).dead_letters == {"rejected": 1}
    pipe.clock.set(START + 24 * HOUR)
    assert dead_letters.retry(pipe.context.store, dead_letters.Filter()).retried == 1
    pipe.clock.set(START + 25 * HOUR)
    found = pipe.status(one)
    assert (found.pending_by, found.lag_by) == ({"held": 1}, {"held": 3600.0})


def test_rows_of_a_shard_are_due_although_another_shard_captured_newer_ones(tmp_path: Path) -> None:
    """As when the run of a shard is lost, and that of the other goes on."""
    pipe = Pipeline(tmp_path, {"NAMI_AMP_SHARDS": "2"})
    apps = ("radio", "news")
    assert [Shard(1, 2).has(app) for app in apps] == [True, False]
    for app in apps:
        pipe.add(app)
    pipe.insert([row(1, START), {**row(2, START), "app_id": "news"}])
    assert {work.what for work in due(pipe.context)} == {f"rows of {app} in the warehouse" for app in apps}
    capture_apps(pipe.context, ["radio"])
    assert [work.what for work in due(pipe.context) if "rows" in work.what] == ["rows of news in the warehouse"]
    assert set(not_captured(pipe.context)) == {"news"}
    pipe.clock.set(START + HOUR)
    capture_apps(pipe.context, ["news"])
    assert [work.what for work in due(pipe.context) if "rows" in work.what] == []
    assert not_captured(pipe.context) == {}
    pipe.close()
