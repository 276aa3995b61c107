"""Ticks without news, bursts and wide windows, on both warehouses; and one app's error, which is its own."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.errors import Blocked, Unexpected
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.stages import table
from nami_amp_pipeline.stages.table import CAPTURE, DELIVER, PREPARE, SNAPSHOTS
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline.warehouse import adbc_reading
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline
from nami_amp_pipeline_tests.support.postgres import Postgres


@pytest.fixture(params=["duckdb", "postgresql"])
def warehouse(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "duckdb":
        return {}
    postgres: Postgres = request.getfixturevalue("postgres")
    return {"NAMI_AMP_WAREHOUSE_URL": postgres.fresh_database()}


def rows(first: int, count: int, app: str = "app", *, minutes: float = 0) -> list[dict[str, Any]]:
    """Rows that were loaded one millisecond after the other."""
    return [
        {
            "id": f"{app}-{number}",
            "app_id": app,
            "event_type": "user.subscription.renewed",
            "user_id": f"u{number % 7}",
            "created_date": START,
            "ingested_at": START + timedelta(minutes=minutes, milliseconds=number - first),
            "payload": json.dumps({"n": number}),
        }
        for number in range(first, first + count)
    ]


@pytest.mark.slow
def test_quiet_ticks_over_a_large_window_do_nothing(tmp_path: Path, warehouse: Mapping[str, str]) -> None:
    scene = Pipeline(tmp_path, warehouse)
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.insert(rows(0, 5_000))
    for minutes in (1, 2, 3, 30):
        scene.clock.set(START + timedelta(minutes=minutes))
        scene.tick()
        assert scene.status(one).delivered == 5_000
    scene.insert(rows(5_000, 1, minutes=31))
    for minutes in (32, 33):
        scene.clock.set(START + timedelta(minutes=minutes))
        scene.tick()
        assert scene.status(one).delivered == 5_001
    assert len({event["insert_id"] for event in scene.sent(one)}) == len(scene.sent(one)) == 5_001
    scene.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_any_mix_of_quiet_ticks_and_bursts(
    seed: int, tmp_path: Path, warehouse: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(adbc_reading, "GAP_ROWS", rng.choice([0, 1, 3, 20]))
    window = rng.choice(["0", "60", "600", "86400"])
    scene = Pipeline(tmp_path, {**warehouse, "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": window})
    apps = {app: scene.add(app, user_id_kind="nami_user_id") for app in ("app", "other", "third")}
    loaded = dict.fromkeys(apps, 0)
    minute = 0.0
    for _ in range(12):
        minute += rng.choice([0.1, 1, 11, 300])
        for app in apps:
            count = rng.choice([0, 0, 0, 1, 5, 60])
            if count:
                scene.insert(rows(loaded[app], count, app, minutes=minute))
                loaded[app] += count
        scene.clock.set(START + timedelta(minutes=minute, seconds=1))
        scene.tick()
    scene.tick()
    for app, one in apps.items():
        ids = [event["insert_id"] for event in scene.sent(one)]
        assert sorted(ids) == sorted(f"{app}-{number}" for number in range(loaded[app])), (seed, app)
    scene.close()


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("capture", IndexError("no such thing")),
        ("snapshot", ZeroDivisionError("of nothing")),
        ("prepare", Blocked("a file is lost")),
        ("deliver", KeyError("unexpected")),
    ],
)
@pytest.mark.contract("5.3.4")
def test_error_of_one_app_is_its_own(
    stage: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Pipeline(tmp_path)
    apps = ["a", "b", "broken", "c", "d"]
    integrations = {app: scene.add(app, user_id_kind="nami_user_id") for app in apps}
    for app in apps:
        scene.insert(rows(0, 3, app))
    scene.clock.set(START + timedelta(minutes=1))
    act = getattr(table, stage)
    takes_integrations = stage in ("prepare", "deliver")

    def failing(context: Any, *args: Any, **more: Any) -> Any:
        given = {one.app_id for one in args[0]} if takes_integrations else set(args[0])
        if "broken" in given:
            raise error
        return act(context, *args, **more)

    monkeypatch.setattr(table, stage, failing)
    wire_of = scene.wires

    def deliver(tick: MicroBatch) -> None:
        for one in all_integrations(tick.context.store):
            wire = wire_of.setdefault(one.id, Agreeing())
            by_wire = dataclasses.replace(DELIVER, run=table.delivering(wire=wire))
            monkeypatch.setattr(tick, "subjects", lambda _stage, one=one: [one])
            tick.run(by_wire)

    tick = MicroBatch.begin(scene.context)
    tick.run(CAPTURE)
    tick.run(SNAPSHOTS)
    tick.run(PREPARE)
    deliver(tick)
    for app, one in integrations.items():
        assert scene.status(one).delivered == (0 if app == "broken" else 3), app
    ((_asset, trouble),) = tick.troubles
    assert str(trouble).startswith("broken")
    assert isinstance(trouble, Blocked if isinstance(error, Blocked) else Unexpected)
    monkeypatch.setattr(table, stage, act)
    scene.context.run_id = "the next run"
    tick = MicroBatch.begin(scene.context)
    tick.run(CAPTURE)
    tick.run(SNAPSHOTS)
    tick.run(PREPARE)
    deliver(tick)
    assert not tick.troubles
    assert {scene.status(one).delivered for one in integrations.values()} == {3}
    scene.close()


@pytest.mark.slow
def test_error_that_all_share_is_looked_into_so_many_times_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Pipeline(tmp_path)
    for number in range(100):
        scene.add(f"app-{number}")
    calls: list[int] = []

    def failing(_context: Any, leases: Mapping[str, Any], **_more: Any) -> Any:
        calls.append(len(leases))
        raise RuntimeError("everywhere")

    monkeypatch.setattr(table, "capture", failing)
    tick = MicroBatch.begin(scene.context)
    tick.run(CAPTURE)
    assert len(tick.troubles) == 100
    assert len(calls) <= 60
    scene.close()
