"""Apps without news cost a tick no lease but their own, and no statement each; and none with work is taken for idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.micro_batch import LEFT_TO_ANOTHER, MicroBatch
from nami_amp_pipeline.stages.stage import Stage
from nami_amp_pipeline.stages.table import DELIVER, PREPARE, SNAPSHOTS, STAGES
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, halt, set_enabled
from nami_amp_pipeline.state.store import Store
from nami_amp_pipeline_tests.support.harness import START, Pipeline


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
    assert sum("api_key" in statement for statement in many) <= 2, "all integrations are read at begin and end"


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
        tick.run(stage)
    return tick.report()


def test_what_another_process_has_is_left_to_it(scene: Pipeline) -> None:
    (one,) = add(scene, 1)
    load(scene, one.app_id, "a")
    other = Store(scene.context.settings.state_url, scene.clock, 60.0)
    assert other.acquire([f"integration:{one.id}"])
    (row,) = quiet_report(scene)
    assert (row["pending"], row["error"]) == (1, LEFT_TO_ANOTHER)
    other.close()
