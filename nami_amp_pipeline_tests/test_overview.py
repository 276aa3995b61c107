"""The overview: what the warehouse holds that no run has read, apps that nobody knows, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.operations.overview import Overview, app_without_rows, overview
from nami_amp_pipeline.operations.pending import pending
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state import integrations, tables
from nami_amp_pipeline.state.heartbeat import Heartbeat, lost_runs
from nami_amp_pipeline_tests.support.command_line import add, event, invoke, load_events, nami_amp, one_line
from nami_amp_pipeline_tests.support.harness import START, Pipeline

MINUTE = timedelta(minutes=1)


@pytest.fixture
def pipe(tmp_path: Path, warehouse_url: str) -> Iterator[Pipeline]:
    made = Pipeline(
        tmp_path,
        {"NAMI_AMP_WAREHOUSE_URL": warehouse_url, "NAMI_AMP_RUN_RETRY_SECONDS": "0"},
    )
    yield made
    made.close()


def row(number: int, minutes: int, app: str = "radio", user: str = "a") -> dict[str, Any]:
    at = START + minutes * MINUTE
    ids = [{"key": "external_id", "type": "string", "value": user}]
    return {
        "id": f"{app}-{number}", "app_id": app, "event_type": "user.subscription.renewed", "user_id": f"nami-{user}",
        "created_date": at, "ingested_at": at, "payload": orjson.dumps({"external_ids": ids}).decode(),
    }  # fmt: skip


def unread(found: Overview) -> dict[str, int]:
    return {app: one.rows for app, one in found.warehouse.unread.items()}


@pytest.mark.slow
def test_rows_that_no_run_has_read_are_counted(pipe: Pipeline) -> None:
    assert overview(pipe.context).verdict == "There is no integration yet."
    assert overview(pipe.context).needs_you
    pipe.add("radio")
    pipe.add("fit")
    pipe.insert([row(1, 0), row(2, 1), row(1, 1, "fit")])
    pipe.clock.set(START + 2 * MINUTE)
    found = overview(pipe.context)
    assert unread(found) == {"radio": 2, "fit": 1}
    assert found.warehouse.unread["radio"].oldest == int(START.timestamp() * 1e6)
    assert found.last_run.at is None
    assert found.outcome == "none yet"
    pipe.tick()
    found = overview(pipe.context)
    assert (unread(found), found.verdict) == ({}, "Nobody is needed: 2 of 2 are at work.")
    assert (found.last_run.run_id, found.outcome, found.age_seconds) == ("test", "ended", 0.0)
    pipe.insert([row(3, 3), row(2, 1)])  # the second was loaded again
    pipe.clock.set(START + 4 * MINUTE)
    assert unread(overview(pipe.context)) == {"radio": 1}
    pipe.tick()
    assert unread(overview(pipe.context)) == {}


def test_a_start_is_the_first_row_that_counts(pipe: Pipeline) -> None:
    pipe.insert([row(1, 0), row(2, 5)])
    pipe.add("radio", start_from=START + 5 * MINUTE)
    pipe.clock.set(START + 6 * MINUTE)
    assert unread(overview(pipe.context)) == {"radio": 1}
    pipe.add("radio", "old")
    assert unread(overview(pipe.context)) == {"radio": 2}


def test_what_a_run_left_behind_at_its_limit_is_not_read(pipe: Pipeline) -> None:
    pipe.add("radio")
    pipe.insert([row(number, number) for number in range(20)])
    pipe.clock.set(START + 60 * MINUTE)
    pipe.context.settings = pipe.settings.replace(max_rows_per_tick=8, late_commit_window_seconds=0)
    stages.capture_apps(pipe.context)
    left = unread(overview(pipe.context)).get("radio", 0)
    with pipe.context.store.begin() as tx:
        read = tx.execute(sa.select(sa.func.sum(tables.segments.c.rows))).scalar()
    assert left == 20 - (read or 0)
    assert left > 0


@pytest.mark.slow
def test_an_app_without_rows_is_said_with_the_nearest_name(pipe: Pipeline) -> None:
    pipe.insert([row(1, 0)])
    pipe.add("radoi")
    pipe.add("zebra")
    found = overview(pipe.context)
    assert found.warehouse.silent == {"radoi": "radio", "zebra": None}
    assert found.needs_you
    assert found.verdict == "The warehouse has no row of radoi, zebra."
    assert app_without_rows(pipe.context, "radoi") == "the warehouse has no row of app radoi yet: did you mean radio?"
    assert app_without_rows(pipe.context, "radio") == ""
    pipe.tick()
    assert overview(pipe.context).warehouse.silent == {"radoi": "radio", "zebra": None}
    integrations.set_enabled(pipe.context.store, "radoi/main", enabled=False)
    integrations.set_enabled(pipe.context.store, "zebra/main", enabled=False)
    assert overview(pipe.context).warehouse.silent == {}


def test_the_users_of_what_no_outbox_has_yet(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    by_nami = pipe.add("radio", "nami", user_id_kind="nami_user_id")
    pipe.insert([row(1, 0, user="a"), row(2, 1, user="b"), row(3, 2, user="a")])
    stages.capture_apps(pipe.context)
    waits = {(user.integration, user.user or user.nami_user): user.events for user in pending(pipe.context)}
    assert waits == {
        (one.key, "nami-a"): 2, (one.key, "nami-b"): 1, (by_nami.key, "nami-a"): 2, (by_nami.key, "nami-b"): 1,
    }  # fmt: skip
    stages.snapshot_apps(pipe.context)
    assert {user.user for user in pending(pipe.context, [one])} == {"a", "b"}
    stages.prepare_integrations(pipe.context, [one])
    found = pending(pipe.context, [one])
    assert [(user.user, user.nami_user, user.events, user.reason) for user in found] == [
        ("a", "nami-a", 2, "queued"), ("b", "nami-b", 1, "queued"),
    ]  # fmt: skip
    assert all(user.until is not None for user in found)


def test_who_waits_for_a_login_until_when_they_are_given_up(pipe: Pipeline) -> None:
    one = pipe.add("radio", anonymous="wait_for_login")
    pipe.insert([{**row(1, 0), "payload": "{}"}])
    pipe.tick()
    (user,) = pending(pipe.context, [one])
    assert (user.user, user.nami_user, user.reason, user.until) == (None, "nami-a", "waiting_for_login", None)
    assert "given up 2026-10-01" in user.why


@pytest.mark.slow
def test_typing_errors_are_said_with_the_nearest_name(tmp_path: Path) -> None:
    none = invoke(tmp_path, "status", "--check")
    assert (none.exit_code, none.stdout.splitlines()[0]) == (1, "There is no integration yet.")
    load_events(tmp_path, event(1))
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    wrong = invoke(tmp_path, "integrations", "add", "raido", "main", "--endpoint", "us", "--api-key-env", "KEY",
                   "--allow-shared-key")  # fmt: skip
    assert wrong.exit_code == 0
    assert "no row of app raido yet: did you mean radio?" in one_line(wrong.stderr)
    shown = invoke(tmp_path, "status")
    assert "no row of app raido: did you mean radio?" in shown.stdout
    assert invoke(tmp_path, "status", "--check", "radio/prod").exit_code == 0
    typed = invoke(tmp_path, "status", "radio/prdo")
    assert typed.exit_code == 2
    assert "did you mean radio/prod?" in one_line(typed.stderr)
    setting = nami_amp(tmp_path, "status", NAMI_AMP_TICK_MINUETS="3")
    assert "NAMI_AMP_TICK_MINUETS is not a setting; did you mean NAMI_AMP_TICK_MINUTES?" in setting.stderr
    pattern = invoke(tmp_path, "integrations", "update", "radio/prod", "--events", "user.subscription.renewd")
    assert pattern.exit_code == 2
    assert "did you mean user.subscription.renewed?" in one_line(pattern.stderr)
    for arguments in (
        ("integrations", "enable", "radio/prdo"),
        ("alerts", "silence", "integration_halted", "radio/prdo"),
        ("alerts", "silence", "nothing_ingested", "radoi"),
        ("alerts", "silence", "warehouse_unreadable", "wherehouse"),
        ("alerts", "silence", "integration_halt"),
        ("deliveries", "radio/prod", "--events", "skipped", "--type", "user.subscription.renewd"),
    ):
        done = invoke(tmp_path, *arguments)
        assert done.exit_code == 2
        assert "did you mean " in one_line(done.stderr)
    assert "did you mean ra" in one_line(invoke(tmp_path, "apps", "history", "radoi").stderr)


def test_the_object_of_status_has_what_the_contract_names_and_the_rest(tmp_path: Path) -> None:
    load_events(tmp_path, event(1))
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    found = orjson.loads(invoke(tmp_path, "status", "--json").stdout)
    assert set(found) == {
        "run_id", "integrations", "verdict", "needs_you", "integrations_in_need", "warehouse", "last_run", "alerts",
        "dagster_histories", "backfills",
    }  # fmt: skip
    (one,) = found["integrations"]
    assert set(one) >= {
        "integration", "captured", "delivered", "skipped", "dead_letters", "pending", "watermark", "lag_seconds",
        "error", "standing", "needs_you", "since", "why", "next_try", "what_to_do", "whose", "rejected", "not_read",
    }  # fmt: skip
    assert one["not_read"] == 1
    both = invoke(tmp_path, "status", "--watch", "--json")
    assert both.exit_code == 2


@pytest.mark.slow
def test_open_alerts_about_what_nothing_else_tells_need_a_person(pipe: Pipeline) -> None:
    one = pipe.add("radio")
    pipe.insert([row(1, 0)])
    pipe.tick()
    assert not overview(pipe.context).needs_you
    with pipe.context.store.begin() as tx:
        for kind, subject, ended in (
            ("nothing_ingested", "radio", None),
            ("integration_halted", one.key, None),
            ("run_failed", "micro_batch", 5),
        ):
            tx.execute(
                sa.insert(tables.alerts).values(
                    kind=kind, subject=subject, summary="no event for 1 d", causes="[]", page="/", since=1, seen_at=1,
                    ended_at=ended,
                )
            )  # fmt: skip
    found = overview(pipe.context)
    assert [alert.kind for alert in found.alerts] == ["integration_halted", "nothing_ingested"]
    assert found.verdict == "1 alert is open."
    assert found.needs_you
    assert {alert.subject for alert in overview(pipe.context, [one]).alerts} == {"radio", "radio/main"}


@pytest.mark.slow
def test_a_run_that_was_killed_is_not_under_way_and_not_well(pipe: Pipeline) -> None:
    pipe.add("radio")
    pipe.insert([row(1, 0)])
    pipe.tick()
    heart = Heartbeat(pipe.context.store, "test")
    heart.start()
    assert overview(pipe.context).outcome == "under way"
    beating = tables.leases.c.name == "run:test"
    with pipe.context.store.begin() as tx:
        machine, _, rest = tx.execute(sa.select(tables.leases.c.owner).where(beating)).scalar_one().split("|", 2)
        gone = f"{machine}|{2**22 + 1}|{rest}"  # no process has such a number
        tx.execute(sa.update(tables.leases).where(beating).values(owner=gone))
    assert overview(pipe.context).outcome == "killed"
    assert lost_runs(pipe.context.store) == ["test"]
    pipe.clock.set(START + 30 * MINUTE)
    pipe.tick()
    assert overview(pipe.context).outcome == "ended"
    heart.stop()
    pipe.tick()
    assert overview(pipe.context).outcome == "ended"


def test_events_loaded_for_an_app_that_nobody_takes_are_said(tmp_path: Path) -> None:
    load_events(tmp_path, event(1))
    assert "no integration" in invoke(tmp_path, "pending", "list").stdout
    assert "no integration" in invoke(tmp_path, "dead-letters", "list").stdout
    add(tmp_path, "http://127.0.0.1:9/2/httpapi")
    assert invoke(tmp_path, "pending", "list").stdout == "Nothing is pending.\n"
    assert invoke(tmp_path, "dead-letters", "list").stdout == "No dead letters.\n"
    typed = invoke(tmp_path, "load", "events.ndjson", "--app", "raido")
    assert typed.exit_code == 0
    assert "no integration takes events of app raido: did you mean radio?" in one_line(typed.stderr)
    assert invoke(tmp_path, "load", "events.ndjson", "--app", "radio").stderr == ""
    plan = invoke(tmp_path, "apps", "plan", "raido", "free")
    assert "did you mean radio?" in one_line(plan.stderr)
    assert invoke(tmp_path, "apps", "plan", "radio", "free").stderr == ""
