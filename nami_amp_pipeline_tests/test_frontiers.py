"""How far apps are read is noted for thousands at once, and never past what an integration still needs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.stages import frontiers
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Pipeline

SECOND = 1_000_000


@pytest.fixture
def scene(tmp_path: Path, state_url: str) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_STATE_URL": state_url, "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0"})
    yield made
    made.close()


def add(scene: Pipeline, app_id: str, name: str = "main", **settings: Any) -> Integration:
    return scene.add(app_id, name, user_id_kind="nami_user_id", **settings)


def load(scene: Pipeline, app_id: str, event_id: str) -> None:
    now = datetime.fromtimestamp(scene.clock.now, UTC)
    row = {"id": event_id, "app_id": app_id, "event_type": "user.subscription.renewed", "user_id": "u"}
    scene.insert([row | {"created_date": START, "ingested_at": now, "payload": "{}"}])


def noted(scene: Pipeline) -> dict[str, tuple[int | None, int | None, int | None]]:
    """Frontier, watermark and when it was read last, by app."""
    apps = tables.apps
    with scene.context.store.reading() as tx:
        rows = tx.execute(sa.select(apps.c.app_id, apps.c.frontier, apps.c.watermark, apps.c.captured_at))
        return {app_id: tuple(more) for app_id, *more in rows}


def put(scene: Pipeline, positions: dict[str, int]) -> None:
    with scene.context.store.begin() as tx:
        for app_id, frontier in positions.items():
            tx.execute(sa.update(tables.apps).where(tables.apps.c.app_id == app_id).values(frontier=frontier))


@pytest.mark.parametrize("most", [0, 1, 20], ids=["by row", "too many positions", "by position"])
def test_idle_apps_are_read_as_far_as_the_busy_one(scene: Pipeline, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontiers, "_MOST_STATEMENTS", most)
    app_ids = [f"app-{number}" for number in range(5)]
    for app_id in app_ids:
        add(scene, app_id)
        load(scene, app_id, "a")
    scene.tick()
    first = int(scene.clock.now * SECOND)
    assert noted(scene) == dict.fromkeys(app_ids, (first, first, first))
    put(scene, {"app-3": first - 7, "app-4": first + 900 * SECOND})
    scene.clock.now += 600
    load(scene, "app-0", "b")
    scene.tick()
    now = int(scene.clock.now * SECOND)
    expected = dict.fromkeys(app_ids, (now, first, now)) | {"app-0": (now, now, now)}
    assert noted(scene) == expected | {"app-4": (first + 900 * SECOND, first, now)}, "it never goes back"


@pytest.mark.parametrize("is_read", [True, False], ids=["an app that was read before", "an app that was never read"])
@pytest.mark.parametrize("is_busy", [True, False], ids=["with news", "idle"])
def test_an_integration_that_is_added_while_its_app_is_read_gets_all(
    scene: Pipeline, is_read: bool, is_busy: bool
) -> None:
    load(scene, "app", "early")
    scene.clock.now += 1_000
    add(scene, "app", start_from=int(scene.clock.now * SECOND))
    add(scene, "other")
    if is_read:
        scene.tick()
        scene.clock.now += 1_000
    load(scene, "app" if is_busy else "other", "news")
    added: list[Integration] = []

    def step(name: str) -> None:
        if name == "capture.commit" and not added:
            added.append(add(scene, "app", "second"))

    scene.context.step = step
    scene.tick()
    scene.clock.now += 1_000
    scene.tick()
    assert scene.status(added[0]).delivered == 1 + is_busy
