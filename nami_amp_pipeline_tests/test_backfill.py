"""A backfill: which events of its window it sends, and that they are what live delivery would have sent."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.errors import Blocked, Busy, Misconfigured
from nami_amp_pipeline.operations import backfills, dead_letters
from nami_amp_pipeline.operations.backfill_status import BackfillStatus, listed, show
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.operations.overview import overview
from nami_amp_pipeline.operations.preview import preview
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.retention import retain
from nami_amp_pipeline.sandbox import Sandbox
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import integrations as state
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SKIP = "$skip_user_properties_sync"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_SEGMENT_ROWS": "40", "NAMI_AMP_BATCH_EVENTS": "7", "NAMI_AMP_MAX_LANES": "1"})
    yield made
    made.close()


def lives(seed: int, first: datetime, rows: int = 120, users: int = 12) -> list[dict[str, Any]]:
    """Rows of some users, created within five days from ``first`` and loaded a minute later."""
    rng = random.Random(seed)
    found = []
    for number in range(rows):
        user = f"user{rng.randrange(users)}"
        event_type = rng.choice(
            ("user.subscription.purchased", "user.subscription.renewed", "device.impression", "user.odd")
        )
        payload: dict[str, Any] = {"n": number}
        if event_type.startswith("device."):
            payload["device_id"] = f"device-of-{user}"
        else:
            if rng.random() < 0.6:
                payload["active_entitlements"] = [{"entitlement_ref_id": f"pro{number}", "sku_ref_id": "sku"}]
            if rng.random() < 0.6:
                payload["customer_journey_state"] = {"former_subscriber": rng.random() < 0.5}
            if rng.random() < 0.5:
                payload["devices"] = [{"id": f"d{number}", "platform": {"id": "p"}}]
            if rng.random() < 0.4:
                payload["external_ids"] = [{"key": "external_id", "type": "x", "value": f"{user}@example.com"}]
        created = first + rng.random() * 5 * DAY
        found.append(
            {
                "id": f"s{seed}e{number}",
                "app_id": "app",
                "event_type": event_type,
                "user_id": user,
                "created_date": created,
                "ingested_at": created + timedelta(minutes=1),
                "payload": json.dumps(payload),
            }
        )
    return found


def window(since: datetime, until: datetime, by: Any = "created_date") -> Window:
    return Window(from_datetime(since), from_datetime(until), by)


def backfill(
    pipeline: Pipeline, integration: Integration, over: Window, **more: Any
) -> tuple[BackfillStatus, Agreeing]:
    """Runs a backfill to its end; returns it and what it posted."""
    made = backfills.create(pipeline.context, NewBackfill(integration.key, over, **more))
    wire = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    return show(pipeline.context, made.id), wire


def by_id(events: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {event["insert_id"]: event for event in events}
    assert len(found) == len(events), "an event was posted twice"
    return found


def without_flag(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != SKIP}


def check_order(events: Sequence[dict[str, Any]]) -> None:
    newest: dict[str, tuple[int, str]] = {}
    for event in events:
        user = event.get("user_id") or event["device_id"]
        assert newest.get(user, (0, "")) < (event["time"], event["insert_id"]), f"{event['insert_id']} came too late"
        newest[user] = (event["time"], event["insert_id"])


@pytest.mark.contract("7.1.1")
@pytest.mark.parametrize(
    "settings", [{}, {"anonymous": "nami_user_id"}, {"user_id_kind": "nami_user_id", "exclude": ["n"]}]
)
@pytest.mark.slow
def test_a_window_that_was_never_sent_is_what_live_delivery_would_have_sent(
    pipeline: Pipeline, settings: dict[str, Any]
) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    live = pipeline.add("app", "live", **settings)
    later = pipeline.add("app", "later", start_from=START, **settings)
    pipeline.tick()
    assert not pipeline.sent(later)
    status, wire = backfill(pipeline, later, window(START - 20 * DAY, START))
    expected, sent = by_id(pipeline.sent(live)), by_id(wire.events)
    assert sent == expected
    assert len(sent) > 30
    check_order(wire.events)
    assert (status.backfill.state, status.delivered, status.pending) == ("done", len(sent), 0)
    assert status.captured == status.delivered + sum(status.skipped.values())
    assert status.found == {"new": status.captured}
    assert pipeline.status(later).captured == 0


@pytest.mark.contract("7.1.2")
@pytest.mark.slow
def test_each_event_of_a_window_is_sent_once_if_live_delivery_sent_a_part_of_it(pipeline: Pipeline) -> None:
    old, new = lives(1, START - 9 * DAY), lives(2, START - 3 * DAY)
    pipeline.insert([row for row in old if row["ingested_at"] < START - 6 * DAY])
    pipeline.add("app", "reader", user_id_kind="nami_user_id")
    integration = pipeline.add("app", start_from=START - 6 * DAY, user_id_kind="nami_user_id")
    pipeline.insert([row for row in old if row["ingested_at"] >= START - 6 * DAY])
    pipeline.clock.set(START + 8 * DAY)
    pipeline.tick()
    live = by_id(pipeline.sent(integration))
    pipeline.insert(new)
    pipeline.clock.set(START + 9 * DAY)
    status, wire = backfill(pipeline, integration, window(START - 20 * DAY, START + 20 * DAY))
    by_backfill = by_id(wire.events)
    repeated = live.keys() & by_backfill.keys()
    assert status.found["left_to_live"] > 0
    assert status.found["repeat"] == len(repeated) > 10
    assert status.found["new"] == len(by_backfill) - len(repeated) > 10
    pipeline.tick()
    pipeline.tick()
    assert by_id(pipeline.sent(integration)).keys() & by_backfill.keys() == repeated
    sent = by_id(pipeline.sent(integration)) | by_backfill
    assert sent.keys() == {row["id"] for row in old + new if row["event_type"] != "user.odd"}


@pytest.mark.contract("7.1.2")
@pytest.mark.slow
def test_what_a_run_captured_before_it_was_killed_is_left_to_live_delivery(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY, rows=20))
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    for _ in range(3):  # so that live delivery reads on from behind these rows
        stages.capture_apps(pipeline.context)
        pipeline.clock.sleep(3_600)
        pipeline.insert([{**lives(2, START, rows=1)[0], "event_type": "user.odd", "ingested_at": START}])
    status, wire = backfill(pipeline, integration, window(START - 20 * DAY, START))
    assert (list(status.found), wire.events) == (["left_to_live"], [])
    pipeline.tick()
    assert len(by_id(pipeline.sent(integration))) == status.found["left_to_live"]


@pytest.mark.contract("7.1.3")
@pytest.mark.parametrize("anonymous", ["nami_user_id", "device_id"])
@pytest.mark.slow
def test_a_repeat_has_the_user_and_device_that_it_was_sent_with(pipeline: Pipeline, anonymous: str) -> None:
    """By these Amplitude recognises it, whatever login was read since; the local one does so too."""

    def load(number: int, event_type: str, external_id: str | None) -> None:
        payload: dict[str, Any] = {"n": number, "device_id": "phone"}
        payload["active_entitlements"] = [{"entitlement_ref_id": f"pro{number}"}]
        if external_id:
            payload["external_ids"] = [{"key": "external_id", "type": "x", "value": external_id}]
        at = START + number * HOUR
        pipeline.insert(
            [{"id": f"e{number}", "app_id": "app", "event_type": event_type, "user_id": "nami-user",
              "created_date": at, "ingested_at": at, "payload": json.dumps(payload)}]
        )  # fmt: skip
        pipeline.clock.set(at + HOUR / 2)
        pipeline.tick()

    integration = pipeline.add("app", anonymous=anonymous)
    user, device = "user.subscription.purchased", "device.impression"
    for number, event in enumerate([(device, None), (user, None), (user, "ana"), (device, None), (user, "ana@home")]):
        load(number, *event)
    sent = by_id(pipeline.sent(integration))
    assert len({event.get("user_id") for event in sent.values()}) >= 3
    status, wire = backfill(pipeline, integration, window(START, START + DAY))
    assert status.found["repeat"] == len(sent)
    repeats = by_id([event for event in wire.events if event["insert_id"] in sent])
    assert {name: without_flag(event) for name, event in repeats.items()} == sent
    amplitude = Sandbox(pipeline.clock)
    held = []
    for bodies in (pipeline.wires[integration.id].bodies, wire.bodies):
        for body in bodies:
            assert amplitude.handle("POST", "/batch", {"Content-Type": "application/json"}, body).status == 200
        (project,) = amplitude.stores()
        while not project.catch_up():
            pass
        profiles = [project.profiles.get(user) for user in ("nami-user", "ana", "ana@home")]
        states = [deepcopy(profile.user_properties) for profile in profiles if profile]
        held.append((amplitude.audit.accepted, states))
    (accepted, before), (accepted_in_all, after) = held
    assert accepted_in_all == accepted + status.found.get("new", 0)
    assert any(before)
    assert after == before
    assert amplitude.audit.accepted_more_than_once.count == 0


@pytest.mark.contract("7.1.3")
@pytest.mark.slow
def test_what_was_delivered_lately_is_repeated_and_what_was_delivered_long_ago_is_left_out(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.insert(lives(1, START - 9 * DAY))
    pipeline.tick()
    pipeline.clock.set(START + HOUR)
    pipeline.tick()  # the frontier passes the rows
    live = by_id(pipeline.sent(integration))
    over = window(START - 20 * DAY, START)
    status, wire = backfill(pipeline, integration, over)
    repeats = by_id(wire.events)
    assert {name: without_flag(event) for name, event in repeats.items()} == {
        name: without_flag(event) for name, event in live.items()
    }
    assert status.found == {"repeat": len(live)}
    pipeline.clock.set(START + 12 * DAY)
    status, wire = backfill(pipeline, integration, over)
    assert not wire.events
    assert status.found == {"stored": len(live)}
    status, wire = backfill(pipeline, integration, over, resend=True)
    assert by_id(wire.events).keys() == live.keys()
    pipeline.clock.set(START + 60 * DAY)
    status, wire = backfill(pipeline, integration, over)
    assert not wire.events


@pytest.mark.contract("7.1.4")
@pytest.mark.slow
def test_history_never_overwrites_a_profile(pipeline: Pipeline) -> None:
    """Live delivery sends newer state between the writing of a backfill's outbox and its posting."""
    pipeline.insert(lives(1, START - 9 * DAY, users=3))
    integration = pipeline.add("app", start_from=START, user_id_kind="nami_user_id")
    made = backfills.create(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    posted: list[dict[str, Any]] = []

    class Interrupted(Agreeing):
        """Live delivery comes in between two turns, and sends newer state of every user."""

        def start(self, number: int, request: Any) -> None:
            super().start(number, request)
            posted.extend(json.loads(request.body)["events"])

    stops = iter([False, True])
    run_backfill(pipeline.context, made.id, Work(wire=Interrupted, stop=lambda: next(stops, True)))
    assert show(pipeline.context, made.id).backfill.state == "running"
    assert not posted
    pipeline.clock.set(START + 2 * HOUR)
    newer = lives(7, START, users=3)
    for row in newer:
        row["created_date"], row["ingested_at"] = START + HOUR, START + HOUR
    pipeline.insert(newer)
    pipeline.tick()
    assert len(pipeline.sent(integration)) > 10
    run_backfill(pipeline.context, made.id, Work(wire=Interrupted))
    assert show(pipeline.context, made.id).backfill.state == "done"
    assert len(posted) > 30
    check_order(posted)
    assert all(event.get(SKIP) is True for event in posted if "user_properties" in event)


@pytest.mark.contract("7.1.4")
@pytest.mark.slow
def test_a_held_event_of_live_delivery_becomes_history_when_a_backfill_sends_newer_state(pipeline: Pipeline) -> None:
    first, second = lives(1, START - 9 * DAY, rows=2, users=1)
    for row, day in ((first, -2), (second, -1)):
        row["event_type"] = "user.subscription.renewed"
        row["payload"] = json.dumps({"active_entitlements": [{"entitlement_ref_id": row["id"]}]})
        row["created_date"] = START + day * DAY
    second["ingested_at"] = START - DAY  # before the start: live delivery never sends it
    first["ingested_at"] = START + HOUR
    integration = pipeline.add("app", start_from=START, user_id_kind="nami_user_id")
    pipeline.insert([first, second])

    class Throttling(Agreeing):
        def wait(self, seconds: float) -> list[tuple[int, Any]]:
            if not self._answers:
                pipeline.clock.sleep(seconds)
                return []
            answer = b'{"code":429,"throttled_users":{"user0":31},"throttled_events":[0]}'
            return [(number, HttpAnswer(429, answer)) for number, _ in super().wait(seconds)]

    pipeline.clock.set(START + 2 * HOUR)
    pipeline.wires[integration.id] = Throttling()
    pipeline.tick()
    assert pipeline.status(integration).pending_by == {"throttled": 1}
    _, wire = backfill(pipeline, integration, window(START - 2 * HOUR - DAY, START))
    (sent,) = wire.events
    assert sent["insert_id"] == second["id"]
    assert SKIP not in sent
    pipeline.clock.set(START + 4 * HOUR)
    pipeline.wires[integration.id] = Agreeing()
    pipeline.tick()
    (late,) = pipeline.sent(integration)
    assert late["insert_id"] == first["id"]
    assert late[SKIP] is True


@pytest.mark.contract("7.1.5")
@pytest.mark.slow
def test_a_dry_run_says_what_is_then_sent_and_its_plan_is_run_as_it_was(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    integration = pipeline.add("app", start_from=START)
    made, plan = backfills.dry_run(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    assert made.state == "planned"
    wire = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    sent = by_id(wire.events)
    assert plan.events == len(sent)
    assert plan.requests == len(wire.bodies)
    assert [json.loads(text) for text in plan.preview] == [sent[json.loads(text)["insert_id"]] for text in plan.preview]
    assert len(plan.preview) == 10
    status = show(pipeline.context, made.id)
    assert status.skipped == dict(plan.skipped)
    assert plan.users == len({event.get("user_id") or event["device_id"] for event in wire.events})


@pytest.mark.slow
def test_a_plan_that_does_not_hold_any_more_is_not_run(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    integration = pipeline.add("app", user_id_kind="nami_user_id")
    pipeline.tick()
    pipeline.clock.set(START + HOUR)
    pipeline.tick()
    made, plan = backfills.dry_run(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    assert plan.found == {"repeat": plan.events}
    pipeline.clock.set(START + 20 * DAY)
    with pytest.raises(Blocked, match="does not hold any more"):
        backfills.run(pipeline.context, made.id)
    assert show(pipeline.context, made.id).backfill.state == "planned"


@pytest.mark.contract("7.1.6")
@pytest.mark.contract("7.1.2")
@pytest.mark.slow
def test_what_waited_in_vain_for_a_login_is_sent_once_the_user_has_logged_in(pipeline: Pipeline) -> None:
    def event(ident: str, at: datetime, payload: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": ident, "app_id": "app", "event_type": "user.subscription.purchased", "user_id": "ada",
            "created_date": at, "ingested_at": at, "payload": json.dumps(payload),
        }  # fmt: skip

    integration = pipeline.add("app", anonymous="wait_for_login")
    pipeline.insert([event("early", START - HOUR, {})])
    pipeline.tick()
    pipeline.clock.set(START + 31 * DAY)
    pipeline.tick()
    assert pipeline.status(integration).skipped == {"no_external_id": 1}
    login = {"external_ids": [{"key": "external_id", "type": "x", "value": "ada@example.com"}]}
    pipeline.insert([event("login", START + 31 * DAY - HOUR, login)])
    for _ in range(2):  # the frontier passes the rows
        pipeline.tick()
        pipeline.clock.set(START + 31 * DAY + HOUR)
    status, wire = backfill(pipeline, integration, window(START - DAY, START))
    assert status.found == {"new": 1}
    assert list(by_id(wire.events)) == ["early"]


@pytest.mark.slow
def test_pause_resume_and_cancel(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    integration = pipeline.add("app", start_from=START, user_id_kind="nami_user_id")
    made = backfills.create(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    wire = Agreeing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire, stop=lambda: len(wire.bodies) >= 1))
    assert backfills.pause(pipeline.context, made.id).backfill.state == "paused"
    with pytest.raises(Busy, match="cancel"):
        backfill(pipeline, integration, window(START - 20 * DAY, START))
    so_far = len(wire.events)
    assert so_far > 0
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire, stop=lambda: len(wire.bodies) >= 5))
    assert len(wire.events) > so_far
    status = backfills.cancel(pipeline.context, made.id)
    assert status.backfill.state == "cancelled"
    assert status.pending == 0
    assert status.captured == status.delivered + sum(status.skipped.values())
    with pytest.raises(Misconfigured, match="cancelled"):
        run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    before = by_id(wire.events)
    assert 10 < len(before) < 80
    _, rest = backfill(pipeline, integration, window(START - 20 * DAY, START))
    assert (
        by_id(rest.events).keys()
        >= {row["id"] for row in lives(1, START) if row["event_type"] != "user.odd"} - before.keys()
    )


@pytest.mark.slow
def test_the_same_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    made = Pipeline(
        tmp_path,
        {"NAMI_AMP_STATE_URL": postgres.fresh_database(), "NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database()},
    )
    try:
        made.insert(lives(1, START - 9 * DAY))
        live = made.add("app", "live", anonymous="nami_user_id")
        later = made.add("app", "later", start_from=START, anonymous="nami_user_id")
        made.tick()
        over = window(START - 20 * DAY, START)
        status, wire = backfill(made, later, over)
        assert by_id(wire.events) == by_id(made.sent(live))
        status, wire = backfill(made, later, over)
        assert status.found == {"repeat": len(wire.events)}
        run_backfill_cancelled = backfills.create(made.context, NewBackfill(later.key, over))
        assert backfills.cancel(made.context, run_backfill_cancelled.id).pending == 0
    finally:
        made.close()


def test_status_and_trace_and_retry_know_backfills(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY, rows=20, users=1))
    integration = pipeline.add("app", start_from=START, user_id_kind="nami_user_id")
    made = backfills.create(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    found = overview(pipeline.context)
    assert [str(entry) for entry in found.backfills] == ["Backfill 1 of app/main: planned, not read yet"]

    class Refusing(Agreeing):
        def wait(self, seconds: float) -> list[tuple[int, Any]]:
            answer = b'{"code":400,"error":"no","events_with_invalid_fields":{"time":[0]}}'
            return [
                (number, HttpAnswer(400, answer) if len(self.bodies) == 1 else given)
                for number, given in super().wait(seconds)
            ]

    wire = Refusing()
    run_backfill(pipeline.context, made.id, Work(wire=lambda: wire))
    status = show(pipeline.context, made.id)
    assert status.dead_letters == {"rejected": 1}
    assert not overview(pipeline.context).backfills
    (letter,) = dead_letters.find(pipeline.context.store, dead_letters.Filter())[0]
    place = trace(pipeline.context, letter.event_id).integrations[0]
    assert (place["state"], place["backfill"]) == ("dead_letter", made.id)
    assert dead_letters.retry(pipeline.context.store, dead_letters.Filter(ids=[str(letter.id)])).retried == 1
    pipeline.tick()
    assert [event["insert_id"] for event in pipeline.sent(integration)] == [letter.event_id]
    assert (pipeline.status(integration).captured, pipeline.status(integration).delivered) == (1, 1)
    status = show(pipeline.context, made.id)
    assert (status.pending, status.dead_letters) == (0, {})


@pytest.mark.slow
def test_a_plan_that_nobody_runs_is_cancelled_and_its_files_go(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    integration = pipeline.add("app", start_from=START, user_id_kind="nami_user_id")
    made, _ = backfills.dry_run(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    files = list((pipeline.settings.data_dir / "segments").glob("*.parquet"))
    assert files
    retain(pipeline.context)
    assert all(path.exists() for path in files)
    pipeline.clock.set(START + 8 * DAY)
    retain(pipeline.context)
    assert show(pipeline.context, made.id).backfill.state == "cancelled"
    pipeline.clock.set(START + 10 * DAY)
    retain(pipeline.context)
    assert not any(path.exists() for path in files)


@pytest.mark.contract("7.2.1", "7.2.2")
@pytest.mark.slow
def test_a_preview_is_what_is_then_posted_byte_for_byte(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    live = pipeline.add("app", "live", user_id_kind="nami_user_id")
    later = pipeline.add("app", "later", start_from=START, user_id_kind="nami_user_id")
    stages.capture_apps(pipeline.context)
    stages.snapshot_apps(pipeline.context)
    from_segments = preview(pipeline.context, live.key, 1_000)
    assert preview(pipeline.context, live.key, 3) == from_segments[:3]
    stages.prepare_integrations(pipeline.context, [live])
    assert preview(pipeline.context, live.key, 1_000) == from_segments
    over = window(START - 20 * DAY, START)
    of_window = preview(pipeline.context, later.key, 1_000, over)
    pipeline.tick()
    assert len(from_segments) > 30
    assert posted(pipeline.wires[live.id]) == from_segments
    assert preview(pipeline.context, live.key, 1_000) == []
    _, wire = backfill(pipeline, later, over)
    assert sorted(posted(wire)) == sorted(of_window)
    assert len(list((pipeline.settings.data_dir / "outboxes").iterdir())) == 0


def posted(wire: Agreeing) -> list[str]:
    """The events as they stand in the requests."""
    found: list[str] = []
    for body in wire.bodies:
        inner = body.decode().partition('"events":[')[2].rpartition('],"options"')[0]
        found += [f'{{"event_type"{rest}' for rest in inner.split('{"event_type"')[1:]]
    return [text.removesuffix(",") for text in found]


@pytest.mark.slow
def test_removing_an_integration_removes_its_backfills(pipeline: Pipeline) -> None:
    pipeline.insert(lives(1, START - 9 * DAY))
    integration = pipeline.add("app", start_from=START, user_id_kind="nami_user_id")
    status, _ = backfill(pipeline, integration, window(START - 20 * DAY, START))
    backfills.dry_run(pipeline.context, NewBackfill(integration.key, window(START - 20 * DAY, START)))
    assert [one.key for one in state.all_integrations(pipeline.context.store)] == ["app/main"]
    state.remove(pipeline.context.store, integration.key)
    assert listed(pipeline.context) == []
    with pytest.raises(Misconfigured):
        show(pipeline.context, status.backfill.id)
