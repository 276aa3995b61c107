"""An identify: whom it sends the current snapshot, and that no profile is turned back by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.errors import Blocked, Busy, Misconfigured
from nami_amp_pipeline.operations import backfills, dead_letters
from nami_amp_pipeline.operations.backfill_status import BackfillStatus, failed, show
from nami_amp_pipeline.operations.backfills import NewBackfill, NewIdentify
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Answering, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SELECTED, UNSELECTED = "user.subscription.purchased", "user.odd"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_SEGMENT_ROWS": "40", "NAMI_AMP_BATCH_EVENTS": "7", "NAMI_AMP_MAX_LANES": "1"})
    yield made
    made.close()


def row(
    ident: str,
    user: str,
    what: str,
    at: datetime,
    event_type: str = SELECTED,
    external_id: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """An event that gives a user one entitlement."""
    payload: dict[str, Any] = {"active_entitlements": [{"entitlement_ref_id": what, "sku_ref_id": "sku"}], **more}
    if external_id is not None:
        payload["external_ids"] = [{"key": "external_id", "type": "x", "value": external_id}]
    return {
        "id": ident,
        "app_id": "app",
        "event_type": event_type,
        "user_id": user,
        "created_date": at,
        "ingested_at": at,
        "payload": json.dumps(payload),
    }


def identify(
    pipeline: Pipeline, integration: Integration, wire: Agreeing | None = None, **more: Any
) -> tuple[BackfillStatus, list[dict[str, Any]]]:
    """Runs an identify to its end; returns it and what it posted."""
    made = backfills.create(pipeline.context, NewIdentify(integration.key, **more))
    wire = wire or Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    return show(pipeline.context, made.id), wire.events


def has(event: dict[str, Any]) -> list[str]:
    """The entitlements that an identify sets."""
    found: list[str] = event["user_properties"]["$set"]["namiml_active_entitlements"]
    return found


@pytest.mark.contract("7.3.1", "7.3.2")
@pytest.mark.slow
def test_each_user_gets_one_identify_with_the_current_snapshot_and_nobody_a_second_one(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert(
        [row(f"e{n}", f"user{n % 60}", f"pro{n}", START - DAY + n * timedelta(seconds=1)) for n in range(90)]
    )
    pipeline.tick()
    live = pipeline.status(integration)
    status, events = identify(pipeline, integration)
    assert len(events) == 60
    assert {event["user_id"]: has(event) for event in events} == {f"user{n % 60}": [f"pro{n}"] for n in range(30, 90)}
    for event in events:
        assert event.keys() == {"event_type", "user_id", "time", "insert_id", "user_properties"}
        assert event["event_type"] == "$identify"
        assert event["user_properties"].keys() == {"$set"}
    assert len({event["insert_id"] for event in events}) == 60
    assert (status.backfill.state, status.captured, status.delivered, status.pending) == ("done", 60, 60, 0)
    assert status.found == {"new": 60}
    assert pipeline.status(integration) == live, "it has counts of its own"
    status, again = identify(pipeline, integration)
    assert not again
    assert status.found == {"unchanged": 60}
    pipeline.insert([row("late", "user7", "gold", START, UNSELECTED), row("same", "user8", "pro68", START, UNSELECTED)])
    pipeline.clock.set(START + HOUR)
    pipeline.tick()
    status, changed = identify(pipeline, integration)
    assert [(event["user_id"], has(event)) for event in changed] == [("user7", ["gold"])]
    assert status.found == {"unchanged": 59, "new": 1}


@pytest.mark.contract("7.3.1")
@pytest.mark.slow
def test_a_state_that_comes_back_is_sent_again(pipeline: Pipeline) -> None:
    """Its insert id is another one, or Amplitude would drop it as a repeat."""
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    seen = []
    for day, what in enumerate(("silver", "gold", "silver")):
        pipeline.clock.set(START + day * DAY + HOUR)
        pipeline.insert([row(f"e{day}", "user", what, START + day * DAY, UNSELECTED)])
        pipeline.tick()
        seen += identify(pipeline, integration)[1]
    assert [has(event) for event in seen] == [["silver"], ["gold"], ["silver"]]
    assert len({event["insert_id"] for event in seen}) == 3
    assert identify(pipeline, integration)[1] == []


@pytest.mark.contract("7.3.3")
@pytest.mark.slow
def test_a_user_with_pending_events_is_left_to_those(pipeline: Pipeline) -> None:
    integration = pipeline.add("app")
    rows = [row(f"e{n}", f"user{n}", "pro", START - DAY, external_id=f"person{n}") for n in range(4)]
    pipeline.insert(rows)
    pipeline.tick()
    pipeline.clock.set(START + HOUR)
    throttled = b'{"code":429,"throttled_users":{"person1":31},"throttled_events":[0]}'

    class Throttling(Agreeing):
        def wait(self, seconds: float) -> list[tuple[int, Any]]:
            if not self._answers:
                pipeline.clock.sleep(seconds)
                return []
            return [(number, HttpAnswer(429, throttled)) for number, _ in super().wait(seconds)]

    pipeline.insert([row("held", "user1", "gold", START + HOUR)])
    pipeline.clock.set(START + 2 * HOUR)
    pipeline.wires[integration.id] = Throttling()
    pipeline.tick()
    assert pipeline.status(integration).pending_by == {"throttled": 1}
    pipeline.insert([row("read", "user2", "gold", START + 2 * HOUR)])
    pipeline.clock.set(START + 3 * HOUR)
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    status, events = identify(pipeline, integration)
    assert {event["user_id"] for event in events} == {"person0", "person3"}
    assert status.found == {"left_to_events": 2, "new": 2}


@pytest.mark.contract("7.3.4")
@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.slow
def test_newer_state_of_live_delivery_takes_the_place_of_an_identify(pipeline: Pipeline, is_stored: bool) -> None:
    """Live delivery comes in between two turns; also where nobody knows whether the identify was stored."""
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(10)])
    pipeline.tick()
    made = backfills.create(pipeline.context, NewIdentify(integration.key))
    lost = Answering([NoAnswer("timeout", maybe_stored=True)], for_ever=True)
    stops = iter([False] * 3 + [True])  # but for these, the first request ends it
    first = Agreeing() if is_stored else lost
    run_backfill(
        pipeline.context, made.id, Work(wire=lambda: first, stop=lambda: len(first.bodies) > 0 or next(stops, True))
    )
    assert show(pipeline.context, made.id).backfill.state == "running"
    posted = len(first.events)
    assert 0 < posted < 10
    pipeline.clock.set(START + 2 * HOUR)
    pipeline.insert([row(f"n{n}", f"user{n}", "gold", START + HOUR) for n in range(9)])
    pipeline.tick()
    second = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: second))
    status = show(pipeline.context, made.id)
    assert [event["user_id"] for event in second.events if event["user_id"] != "user9"] == []
    assert status.backfill.state == "done"
    assert status.pending == 0
    assert status.captured == 10
    assert status.skipped == {"superseded": 10 - status.delivered}
    assert status.delivered == (posted + len(second.events) if is_stored else len(second.events))
    assert {event["insert_id"] for event in pipeline.sent(integration)[-9:]} == {f"n{n}" for n in range(9)}


@pytest.mark.contract("7.3.4")
@pytest.mark.slow
def test_an_event_that_is_older_than_an_identify_does_not_overwrite_the_profile(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert([row("new", "user", "gold", START - HOUR, UNSELECTED)])
    pipeline.tick()
    _, (sent,) = identify(pipeline, integration)
    assert has(sent) == ["gold"]
    old = row("old", "user", "silver", START - DAY)
    old["ingested_at"] = START + HOUR
    pipeline.insert([old])
    pipeline.clock.set(START + 2 * HOUR)
    pipeline.tick()
    (event,) = pipeline.sent(integration)
    assert event["$skip_user_properties_sync"] is True
    assert identify(pipeline, integration)[1] == []


@pytest.mark.contract("7.3.1")
def test_users_without_a_delivered_event_since_a_time(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(5)])
    pipeline.tick()
    pipeline.insert([row(f"m{n}", f"user{n}", "gold", START + DAY) for n in range(3)])
    pipeline.clock.set(START + 2 * DAY)
    pipeline.tick()
    status, events = identify(pipeline, integration, silent_since=from_datetime(START + DAY))
    assert {event["user_id"] for event in events} == {"user3", "user4"}
    assert status.backfill.events == 2
    with pytest.raises(Misconfigured, match="RECEIPT_RETENTION"):
        identify(pipeline, integration, silent_since=from_datetime(START - 90 * DAY))
    with pytest.raises(Misconfigured, match="has been"):
        identify(pipeline, integration, silent_since=from_datetime(START + 90 * DAY))


@pytest.mark.contract("7.3.2")
@pytest.mark.slow
def test_who_is_who_and_what_is_hidden_is_as_in_events(pipeline: Pipeline) -> None:
    hidden = pipeline.add("app", "hidden", exclude=["namiml_active_skus"])
    staging = pipeline.add("app", "staging", sandbox="only", user_id_kind="nami_user_id")
    pipeline.insert(
        [
            row("a", "phone", "silver", START - 2 * DAY, external_id=" person "),
            row("b", "tablet", "gold", START - DAY, external_id="person"),
            row("c", "nobody", "silver", START - DAY, purchase_env="sandbox"),
            row("d", "nothing", "silver", START - DAY, external_id="null", purchase_env="production"),
        ]
    )
    pipeline.tick()
    status, (event,) = identify(pipeline, hidden)
    assert event["user_id"] == "person"
    assert event["user_properties"] == {"$set": {"namiml_active_entitlements": ["gold"]}}
    assert status.found == {"new": 1, "same_user": 1, "no_external_id": 1, "reserved_user_id": 1}
    status, events = identify(pipeline, staging)
    assert {event["user_id"] for event in events} == {"phone", "tablet", "nobody"}
    assert status.found == {"new": 3, "never_sent": 1}


@pytest.mark.contract("7.3.4")
@pytest.mark.slow
def test_an_account_that_another_nami_user_left_keeps_its_newer_state(pipeline: Pipeline) -> None:
    integration = pipeline.add("app")
    pipeline.insert(
        [
            row("old", "tablet", "silver", START - 3 * DAY, external_id="person"),
            row("new", "phone", "gold", START - 2 * DAY, external_id="person"),
        ]
    )
    pipeline.tick()
    pipeline.insert([row("moved", "phone", "gold", START, UNSELECTED, external_id="other")])
    pipeline.clock.set(START + HOUR)
    pipeline.tick()
    status, events = identify(pipeline, integration)
    assert [(event["user_id"], has(event)) for event in events] == [("other", ["gold"])]
    assert status.found == {"new": 1, "newer_sent": 1}


@pytest.mark.contract("7.3.5")
@pytest.mark.slow
def test_a_dry_run_says_what_is_then_sent_and_one_is_under_way_at_a_time(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(20)])
    pipeline.tick()
    made, plan = backfills.dry_run(pipeline.context, NewIdentify(integration.key))
    assert (made.kind, made.state, plan.users, plan.requests) == ("identify", "planned", 20, 3)
    wire = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire, stop=lambda: len(wire.bodies) >= 1))
    assert backfills.pause(pipeline.context, made.id).backfill.state == "paused"
    with pytest.raises(Busy, match="identify 1 of app/main is paused"):
        identify(pipeline, integration)
    over = NewBackfill(integration.key, Window(0, from_datetime(START)))
    with pytest.raises(Busy, match="identify 1"):
        run_backfill(pipeline.context, backfills.create(pipeline.context, over).id, Work(wire=Agreeing))
    status = backfills.cancel(pipeline.context, made.id)
    done = status.delivered
    assert 0 < done < 20
    assert status.skipped == {"cancelled": 20 - done}
    assert status.pending == 0
    status, rest = identify(pipeline, integration)
    assert status.found == {"unchanged": done, "new": 20 - done}
    assert len(rest) == 20 - done
    events = wire.events + rest
    assert [json.loads(text) for text in plan.preview] == events[:10]
    assert len({event["insert_id"] for event in events}) == 20


@pytest.mark.contract("7.3.5")
@pytest.mark.slow
def test_a_plan_is_not_run_once_users_have_moved(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(5)])
    pipeline.tick()
    plans = [backfills.dry_run(pipeline.context, NewIdentify(integration.key))[0] for _ in range(2)]
    pipeline.insert([row("e9", "user3", "gold", START)])
    pipeline.tick()
    with pytest.raises(Blocked, match=r"plan of identify 1 does not hold .*snapshots of some users are other ones now"):
        backfills.run(pipeline.context, plans[0].id)
    identify(pipeline, integration)
    with pytest.raises(Blocked, match=r"identify 2 .*\(new 5 then and 0 now, unchanged 0 then and 5 now\): make a new"):
        backfills.start(pipeline.context, plans[1].id)
    again, _ = backfills.dry_run(pipeline.context, NewIdentify(integration.key))
    assert backfills.run(pipeline.context, again.id).backfill.state == "done"


@pytest.mark.contract("7.3.7")
@pytest.mark.slow
def test_a_refused_identify_is_a_dead_letter_that_the_next_identify_tries_again(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(5)])
    pipeline.tick()
    refusing = Answering([HttpAnswer(400, b'{"code":400,"error":"no","events_with_invalid_fields":{"time":[0]}}')])
    status, _ = identify(pipeline, integration, refusing)
    assert status.dead_letters == {"rejected": 1}
    assert status.delivered == 4
    left = dead_letters.retry(pipeline.context.store, dead_letters.Filter())
    assert (left.retried, dict(left.refused)) == (0, {dead_letters.OF_IDENTIFY: 1})
    again, events = identify(pipeline, integration)
    assert again.found == {"unchanged": 4, "new": 1}
    assert len(events) == 1
    assert show(pipeline.context, status.backfill.id).dead_letters == {}
    assert show(pipeline.context, status.backfill.id).skipped == {"superseded": 1}
    assert show(pipeline.context, status.backfill.id).pending == 0


@pytest.mark.contract("7.1.6")
@pytest.mark.parametrize("kind", ["backfill", "identify"])
@pytest.mark.parametrize("trouble", ["bug", "lost file", "lost outbox"])
@pytest.mark.slow
def test_what_trying_again_cannot_mend_fails_and_can_be_resumed(
    pipeline: Pipeline, kind: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(20)])
    pipeline.add("app", "first")
    pipeline.tick()
    integration = pipeline.add("app", user_id_kind="nami_user_id", start_from=START)
    new: NewBackfill | NewIdentify = NewIdentify(integration.key)
    if kind == "backfill":
        new = NewBackfill(integration.key, Window(0, from_datetime(START)))
    made = backfills.create(pipeline.context, new)
    wire = Agreeing()
    folder = pipeline.settings.data_dir / {"lost file": "segments", "lost outbox": "outboxes"}.get(trouble, "segments")
    calls = iter(range(10))
    before = set(folder.iterdir())
    if trouble == "bug":
        monkeypatch.setattr("nami_amp_pipeline.backfill.turns.prepare_file", None)
    else:
        limit = 1 if trouble == "lost file" else 2
        run_backfill(pipeline.context, made.id, Work(wire=lambda: wire, stop=lambda: next(calls) >= limit - 1))
        aside = [(path, path.rename(path.with_suffix(".aside"))) for path in set(folder.iterdir()) - before]
        assert aside
    result = run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    assert result.state == "failed"
    assert ("bug" if trouble == "bug" else "gone") in (result.error or "")
    assert [one.id for one in failed(pipeline.context)] == [made.id]
    assert f"resume {made.id}" in str(show(pipeline.context, made.id))
    with pytest.raises(Busy, match="failed"):
        identify(pipeline, integration)
    monkeypatch.undo()
    if trouble != "bug":
        for path, moved in aside:
            moved.rename(path)
    assert run_backfill(pipeline.context, made.id, Work(wire=lambda: wire)).state == "done"
    assert len(wire.events) == len({event["insert_id"] for event in wire.events}) == 20
    assert not failed(pipeline.context)


@pytest.mark.slow
def test_the_same_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    made = Pipeline(
        tmp_path,
        {"NAMI_AMP_STATE_URL": postgres.fresh_database(), "NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database()},
    )
    try:
        integration = made.add("app", user_id_kind="nami_user_id")
        made.insert([row(f"e{n}", f"user{n}", "pro", START - DAY) for n in range(20)])
        made.tick()
        status, events = identify(made, integration)
        assert (len(events), status.found) == (20, {"new": 20})
        made.insert([row(f"n{n}", f"user{n}", "gold", START, UNSELECTED) for n in range(5)])
        made.clock.set(START + HOUR)
        made.tick()
        assert identify(made, integration)[0].found == {"unchanged": 15, "new": 5}
        cancelled = backfills.create(made.context, NewIdentify(integration.key))
        assert backfills.cancel(made.context, cancelled.id).pending == 0
        assert identify(made, integration, silent_since=from_datetime(START + HOUR / 2))[0].backfill.events == 20
    finally:
        made.close()
