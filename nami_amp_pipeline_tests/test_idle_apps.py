"""Apps without news cost a tick no lease but their own, and no statement each; and none with work is taken for idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.micro_batch import LEFT_TO_ANOTHER, MicroBatch
from nami_amp_pipeline.stages.stage import Stage
from nami_amp_pipeline.stages.table import DELIVER, PREPARE, SNAPSHOTS, STAGES, delivering
from nami_amp_pipeline.state import integration_rows, tables
from nami_amp_pipeline.state.integrations import Integration, halt, remove, set_enabled
from nami_amp_pipeline.state.store import Store
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline


@pytest.fixture
def scene(tmp_path: Path, state_url: str) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url, "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0"})
    yield made
    made.close()


def add(scene: Pipeline, apps: int) -> list[Integration]:
    return [scene.add(f"app-{number}", user_id_kind="nami_user_id") for number in range(apps)]


def load(scene: Pipeline, app_id: str, event_id: str) -> None:
    now = datetime.fromtimestamp(scene.clock.now, UTC)
    row = {"id": event_id, "app_id": app_id, "event_type": "user.subscription.renewed", "user_id": "u"}
    scene.insert([row | {"created_date": START, "ingested_at": now, "payload": "{}"}])


def with_work(scene: Pipeline, stage: Stage) -> set[Any]:
    assert stage.with_work is not None
    return set(stage.with_work(scene.context))


def leases(scene: Pipeline) -> set[str]:
    with scene.context.store.reading() as tx:
        return set(tx.execute(sa.select(tables.leases.c.name)).scalars())


def test_an_idle_integration_is_not_leased(scene: Pipeline) -> None:
    integrations = add(scene, 4)
    load(scene, "app-2", "a")
    scene.tick()
    assert scene.status(integrations[2]).delivered == 1
    assert {name for name in leases(scene) if name.startswith("integration:")} == {f"integration:{integrations[2].id}"}


@contextmanager
def statements(scene: Pipeline) -> Iterator[list[str]]:
    """What the store is asked meanwhile."""
    asked: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        asked.append(statement)

    engine = scene.context.store.engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def quiet_batch(scene: Pipeline) -> list[str]:
    with statements(scene) as asked:
        tick = MicroBatch.begin(scene.context)
        for stage in STAGES:
            tick.run(stage)
        assert tick.problems() == []
        assert not any(row["error"] or row["pending"] for row in tick.report())
    return asked


def test_a_quiet_tick_asks_as_much_for_many_apps_as_for_few(scene: Pipeline) -> None:
    load(scene, "app-0", "a")
    add(scene, 2)
    scene.tick()
    few = quiet_batch(scene)
    for number in range(2, 30):
        scene.add(f"app-{number}")
    quiet_batch(scene)  # their leases are new
    many = quiet_batch(scene)
    assert len(many) == len(few)
    assert not any("api_key" in statement for statement in many), "nobody needs a key"
    assert sum("FROM integrations JOIN apps" in statement for statement in many) == 2, "all are listed at begin and end"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the integrations that are made of whole rows meanwhile."""
    found: list[str] = []
    make = integration_rows._made

    def note(row: Any, *more: Any) -> Integration:
        integration: Integration = make(row, *more)
        found.append(integration.key)
        return integration

    monkeypatch.setattr(integration_rows, "_made", note)
    monkeypatch.setattr(integration_rows, "_KNOWN", integration_rows._Known())
    return found


def test_only_integrations_with_work_are_read_whole(scene: Pipeline, made: list[str]) -> None:
    add(scene, 4)
    made.clear()
    quiet_batch(scene)
    assert made == []
    load(scene, "app-2", "a")
    (*_, busy, _) = quiet_report(scene)
    assert (busy["integration"], busy["delivered"], busy["pending"]) == ("app-2/main", 1, 0)
    assert set(made) == {"app-2/main"}


def test_what_a_tick_says_of_idle_integrations(scene: Pipeline) -> None:
    _, off, halted, _ = integrations = add(scene, 4)
    load(scene, "app-0", "a")
    scene.tick()
    set_enabled(scene.context.store, off.key, enabled=False)
    with scene.context.store.begin() as tx:
        halt(tx, halted.id, "invalid_api_key: no such key", scene.context.now())
    rows = quiet_report(scene)
    assert [row["integration"] for row in rows] == [integration.key for integration in integrations]
    assert [row["state"] for row in rows] == ["enabled", "disabled", "halted", "enabled"]
    assert [row["watermark"] for row in rows] == ["2026-09-01T00:00:00Z", None, None, None]
    for row in rows:
        assert (row["captured"], row["delivered"], row["skipped"], row["pending"], row["lag_by"]) == (0, 0, {}, 0, {})


def test_what_is_changed_between_ticks_holds_at_the_next(scene: Pipeline) -> None:
    paused, gone, new = (scene.add("app", name, user_id_kind="nami_user_id") for name in ("paused", "gone", "new"))
    load(scene, "app", "a")
    scene.tick()
    set_enabled(scene.context.store, paused.key, enabled=False)
    remove(scene.context.store, gone.key)
    load(scene, "app", "b")
    rows = {row["integration"]: row for row in quiet_report(scene)}
    assert rows.keys() == {paused.key, new.key}
    assert (rows[paused.key]["pending"], rows[paused.key]["delivered"], rows[paused.key]["error"]) == (1, 0, None)
    assert (rows[new.key]["pending"], rows[new.key]["delivered"]) == (0, 1)


def test_an_integration_that_is_removed_meanwhile_is_left_out(scene: Pipeline) -> None:
    one, other = add(scene, 2)
    load(scene, one.app_id, "a")
    load(scene, other.app_id, "b")
    tick = MicroBatch.begin(scene.context)
    for stage in STAGES:
        if stage is DELIVER:
            remove(scene.context.store, one.key)
        tick.run(agreeing(stage))
    assert [row["integration"] for row in tick.report()] == [other.key]
    assert tick.problems() == []


@pytest.mark.parametrize("stage", [SNAPSHOTS, PREPARE, DELIVER], ids=lambda stage: stage.asset)
def test_whoever_has_work_is_known_before_each_stage(scene: Pipeline, stage: Stage) -> None:
    _, busy, _ = add(scene, 3)
    load(scene, busy.app_id, "a")
    tick = MicroBatch.begin(scene.context)
    for other in STAGES:
        if other is stage:
            break
        tick.run(other)
    assert with_work(scene, stage) == {busy.app_id if stage.per == "app" else busy.id}


def test_a_halted_integration_still_says_why(scene: Pipeline) -> None:
    one, other = add(scene, 2)
    with scene.context.store.begin() as tx:
        halt(tx, one.id, "invalid_api_key: no such key", scene.context.now())
    tick = MicroBatch.begin(scene.context)
    done = tick.run(DELIVER)
    assert done[one.partition_key].error == "invalid_api_key: no such key"
    assert other.partition_key not in done
    assert with_work(scene, PREPARE) == set()


def test_one_that_was_off_lacks_what_came_meanwhile(scene: Pipeline) -> None:
    """The other integration of the app keeps it read."""
    one = scene.add("app", user_id_kind="nami_user_id")
    other = scene.add("app", "other", user_id_kind="nami_user_id")
    set_enabled(scene.context.store, one.key, enabled=False)
    load(scene, "app", "a")
    scene.tick()
    assert scene.status(other).delivered == 1
    assert with_work(scene, PREPARE) == set()
    set_enabled(scene.context.store, one.key, enabled=True)
    assert with_work(scene, PREPARE) == {one.id}
    scene.tick()
    assert scene.status(one).delivered == 1


def test_waiting_events_are_given_up_though_nothing_comes(scene: Pipeline) -> None:
    one = scene.add("app", anonymous="wait_for_login")
    load(scene, "app", "a")
    scene.tick()
    assert scene.status(one).waiting == 1
    assert with_work(scene, PREPARE) == with_work(scene, DELIVER) == set()
    (row,) = quiet_report(scene)
    assert (row["pending"], row["error"]) == (1, None), "nobody but its user can move it"
    scene.clock.now += scene.context.settings.hold_days * 86_400 + 1
    assert with_work(scene, PREPARE) == {one.id}
    scene.tick()
    assert scene.status(one).skipped == {"no_external_id": 1}


def quiet_report(scene: Pipeline) -> list[dict[str, Any]]:
    tick = MicroBatch.begin(scene.context)
    for stage in STAGES:
        tick.run(agreeing(stage))
    return tick.report()


def agreeing(stage: Stage) -> Stage:
    """The stage; what it posts stays here."""
    return replace(stage, run=delivering(wire=Agreeing())) if stage is DELIVER else stage


def test_what_another_process_has_is_left_to_it(scene: Pipeline) -> None:
    (one,) = add(scene, 1)
    load(scene, one.app_id, "a")
    other = Store(scene.context.settings.state_url, scene.clock, 60.0)
    assert other.acquire([f"integration:{one.id}"])
    (row,) = quiet_report(scene)
    assert (row["pending"], row["error"]) == (1, LEFT_TO_ANOTHER)
    other.close()
