"""Status: captured is the sum of all ends and what is pending, at every station."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.sandbox import Fault, Sandbox, SandboxServer
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations
from nami_amp_pipeline_tests.support.command_line import add, event, invoke, load_events


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


def now(context: Context) -> list[IntegrationStatus]:
    found = status(context, integrations.all_integrations(context.store))
    for one in found:
        ends = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
        assert one.captured == ends + one.pending
        assert one.pending == sum(one.pending_by.values())
    return found


def test_nothing_is_nothing(context: Context) -> None:
    assert now(context) == []


@pytest.mark.contract("6.5")
def test_numbers_at_every_station(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    add(tmp_path, server.endpoint)
    (fresh,) = now(context)
    assert (fresh.state, fresh.captured, fresh.watermark, fresh.lag_seconds) == ("enabled", 0, None, 0.0)
    before = time.time()
    load_events(
        tmp_path, event(1), event(2), event(3, user="u2", external=None), event(4, user="u3", external="none"),
        event(5, event_type="user.other"),
    )  # fmt: skip
    pipeline.capture_apps(context)
    (captured,) = now(context)
    assert (captured.captured, captured.pending_by) == (4, {"queued": 4})
    assert captured.watermark is not None
    assert 0 <= captured.lag_seconds <= time.time() - before
    pipeline.snapshot_apps(context)
    assert now(context)[0].pending_by == {"queued": 4}
    pipeline.prepare_integrations(context, integrations.all_integrations(context.store))
    (prepared,) = now(context)
    assert (prepared.captured, prepared.pending_by) == (4, {"queued": 2})
    assert (prepared.skipped, prepared.dead_letters) == ({"no_external_id": 1}, {"reserved_user_id": 1})
    assert prepared.lag_seconds > 0
    pipeline.deliver_integrations(context, integrations.all_integrations(context.store))
    (delivered,) = now(context)
    assert (delivered.delivered, delivered.pending, delivered.lag_seconds, delivered.error) == (2, 0, 0.0, None)


def test_what_waits_is_pending_by_why(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    add(tmp_path, server.endpoint, "--anonymous", "wait_for_login")
    load_events(tmp_path, event(1), event(2, "u2", "e2"), event(3, "u3", "e3"), event(4, "u4", None))
    server.sandbox.faults.add(Fault("throttle_user", user_id="e2"), Fault("quota_user", user_id="e3"))
    pipeline.capture_apps(context)
    pipeline.snapshot_apps(context)
    pipeline.prepare_integrations(context, integrations.all_integrations(context.store))
    pipeline.deliver_integrations(context, integrations.all_integrations(context.store))
    (found,) = now(context)
    assert found.delivered == 1
    assert found.pending_by == {"throttled": 1, "over_daily_quota": 1, "waiting_for_login": 1}
    assert (found.waiting, found.to_post) == (1, 3 - 1)
    shown = invoke(tmp_path, "status").stdout
    assert "1 throttled" in shown
    assert "1 event waits for the login of the user" in shown


@pytest.mark.contract("2.11")
def test_a_start_inside_a_segment_counts_from_there(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    add(tmp_path, server.endpoint)
    load_events(tmp_path, event(1))
    between = time.time()
    load_events(tmp_path, event(2), event(3))
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(between)) + f".{int(between % 1 * 1e6):06d}Z"
    add(tmp_path, server.endpoint, "--start-from", moment, name="later")
    pipeline.capture_apps(context)
    later, prod = now(context)
    assert (prod.captured, later.captured) == (3, 2)


def test_states_and_errors(tmp_path: Path, server: SandboxServer, context: Context) -> None:
    add(tmp_path, server.endpoint)
    one = integrations.get(context.store, "radio/prod")
    with context.store.begin() as tx:
        integrations.halt(tx, one.id, "invalid_api_key: no", 5)
    (halted,) = now(context)
    assert (halted.state, halted.error) == ("halted", "invalid_api_key: no")
    integrations.set_enabled(context.store, one.key, enabled=False)
    assert now(context)[0].state in ("disabled", "halted")


@pytest.mark.contract("6.4")
def test_the_object_has_the_keys_of_the_contract() -> None:
    found = IntegrationStatus(
        "radio/prod", "enabled", watermark=1_788_220_800_000_000, lag_by={"queued": 1.23456}
    ).to_json()
    assert found["watermark"] == "2026-09-01T00:00:00Z"
    assert found["lag_seconds"] == 1.235
    assert set(found) >= {
        "integration", "captured", "delivered", "skipped", "dead_letters", "pending", "watermark", "lag_seconds",
        "error",
    }  # fmt: skip
