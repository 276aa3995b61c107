"""Tracing: at every station of its way an event is found, and nothing is changed by looking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.trace import Trace, trace
from nami_amp_pipeline.sandbox import Fault, Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations
from nami_amp_pipeline_tests.support.command_line import add, event, invoke, load_events, tick

_GROUPS = ("active_entitlements", "devices", "customer_journey_state")


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as server:
        yield server


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    settings = Settings.load({"NAMI_AMP_HOME": str(tmp_path / ".nami-amp"), "NAMI_AMP_RUN_RETRY_SECONDS": "0"})
    context = Context.open(settings, run_id="a-run")
    yield context
    context.store.close()


def state(found: Trace, integration: str = "radio/prod") -> dict[str, Any]:
    (one,) = [one for one in found.integrations if one["integration"] == integration]
    return one


@pytest.mark.slow
def test_an_event_on_its_way(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    add(tmp_path, server.endpoint)
    nowhere = trace(context, "event-1")
    assert not nowhere.is_known
    assert nowhere.warehouse_error is not None

    load_events(tmp_path, event(1), event(2, external=None, user="u2"), event(3, event_type="user.other"))
    loaded = trace(context, "event-1")
    assert loaded.is_known
    assert loaded.warehouse[0]["app_id"] == "radio"
    assert state(loaded)["state"] == "not_captured"

    pipeline.capture_apps(context)
    captured = trace(context, "event-1")
    assert captured.captures[0]["run_id"] == "a-run"
    assert captured.captures[0]["snapshot"] is None
    assert state(captured)["state"] == "captured"

    pipeline.snapshot_apps(context)
    assert trace(context, "event-1").captures[0]["snapshot"]["namiml_in_trial_period"] is True
    pipeline.prepare_integrations(context, integrations.all_integrations(context.store))
    queued = state(trace(context, "event-1"))
    assert (queued["state"], queued["outbox"]["run_id"]) == ("queued", "a-run")
    assert state(trace(context, "event-2"))["reason"] == "no_external_id"
    assert state(trace(context, "event-3"))["state"] == "not_selected"

    server.sandbox.faults.add(Fault("stored_then_500"))
    pipeline.deliver_integrations(context, integrations.all_integrations(context.store))
    unknown = state(trace(context, "event-1"))
    assert unknown["state"] == "outcome_unknown"
    assert unknown["request"]["status"] == 500
    assert '"code":500' in unknown["request"]["answer"]

    server.sandbox.faults.remove()
    pipeline.deliver_integrations(context, integrations.all_integrations(context.store))
    delivered = state(trace(context, "event-1"))
    assert (delivered["state"], delivered["identity"]) == ("delivered", "u:e1")
    assert delivered["request"]["status"] == 200
    assert delivered["request"]["run_id"] == "a-run"
    assert state(trace(context, "event-2"))["state"] == "skipped"
    assert not trace(context, "event-9").is_known


@pytest.mark.slow
def test_dead_held_waiting_and_released(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    add(tmp_path, server.endpoint, "--anonymous", "wait_for_login")
    load_events(
        tmp_path,
        event(1),
        event(2, user="u2", external="e2"),
        event(3, user="u3", external=None),
        event(4, user="u4", external="null"),
    )
    server.sandbox.faults.add(Fault("poison", insert_id="event-1"), Fault("throttle_user", user_id="e2"))
    tick(tmp_path, "first")
    dead, held, waiting, reserved = (state(trace(context, f"event-{number}")) for number in (1, 2, 3, 4))
    assert (dead["state"], dead["reason"]) == ("dead_letter", "rejected")
    assert dead["request"]["status"] == 400
    assert dead["request"]["run_id"] == "first"
    assert (held["state"], held["reason"]) == ("held", "throttled")
    assert held["paused_until"] is not None
    assert waiting["state"] == "waiting_for_login"
    assert (reserved["state"], reserved["reason"], reserved["request"]) == ("dead_letter", "reserved_user_id", None)

    server.sandbox.faults.remove()
    load_events(tmp_path, event(5, user="u3", external="e3"))
    tick(tmp_path, "second", lambda: time.time() + 100)
    for number in (2, 3, 5):
        after = state(trace(context, f"event-{number}"))
        assert after["state"] == "delivered"
        assert after["request"]["run_id"] == "second"


@pytest.mark.slow
def test_each_integration_by_itself(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    load_events(tmp_path, event(1))
    load_events(tmp_path, event(1))
    load_events(tmp_path, event(1), app="fit")
    add(tmp_path, server.endpoint)
    add(tmp_path, server.endpoint, "--events", "device.*", name="devices")
    add(tmp_path, server.endpoint, "--disabled", name="off")
    add(tmp_path, server.endpoint, "--start-from", "2100-01-01T00:00:00Z", name="later")
    add(tmp_path, server.endpoint, app="other")
    tick(tmp_path, "first")
    found = trace(context, "event-1")
    assert [row["app_id"] for row in found.warehouse] == ["radio", "radio", "fit"]
    assert {one["integration"]: one["state"] for one in found.integrations} == {
        "radio/prod": "delivered",
        "radio/devices": "not_selected",
        "radio/off": "captured",
        "radio/later": "before_start",
    }
    assert state(found, "radio/off")["reason"] == "the integration is off"


def test_the_command_shows_it(tmp_path: Path, server: SandboxServer) -> None:
    load_events(tmp_path, event(1))
    add(tmp_path, server.endpoint)
    tick(tmp_path, "first")
    brief = invoke(tmp_path, "trace", "event-1")
    assert brief.exit_code == 0
    assert [line.split("\t")[:2] for line in brief.stdout.splitlines()] == [
        ["Integration", "Verdict"], ["radio/prod", "arrived"],
    ]  # fmt: skip
    shown = invoke(tmp_path, "trace", "event-1", "--full")
    assert shown.exit_code == 0
    for text in ("radio/prod: delivered", "namiml_in_trial_period", "200 (delivered), 1 events", "run first", "u:e1"):
        assert text in shown.stdout
    assert shown.stdout.startswith(brief.stdout)


@pytest.mark.slow
def test_the_events_that_a_snapshot_is_from(tmp_path: Path, context: Context) -> None:
    add(tmp_path, "us")

    def carrying(number: int, **groups: Any) -> bytes:
        plain = {name: value for name, value in orjson.loads(event(number)).items() if name not in _GROUPS}
        return orjson.dumps({**plain, **groups})

    load_events(tmp_path, carrying(1, active_entitlements=[], devices=[{"id": "d"}]), carrying(5, devices=[]))
    pipeline.capture_apps(context)
    pipeline.snapshot_apps(context)
    load_events(tmp_path, carrying(3, customer_journey_state={"in_trial_period": True}), carrying(4))
    pipeline.capture_apps(context)
    pipeline.snapshot_apps(context)
    (capture,) = trace(context, "event-4").captures
    assert {group: source["event_id"] for group, source in capture["snapshot_sources"].items()} == {
        "active_entitlements": "event-1",
        "devices": "event-1",
        "customer_journey_state": "event-3",
    }
    assert capture["snapshot_sources"]["devices"]["created_date"] == capture["created_date"].replace(":04Z", ":01Z")
    assert "devices from event-1, created" in invoke(tmp_path, "trace", "event-4", "--full").stdout
