"""Live delivery goes first: it waits for no file that is computed, and has the rate of the project to itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.backfill.ahead import MOST_TIMES, Ahead
from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import live_first, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease, Store
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline

DAY = timedelta(days=1)


def row(ident: str, at: Any) -> dict[str, Any]:
    payload = '{"active_entitlements": [{"entitlement_ref_id": "pro"}]}'
    return {
        "id": ident, "app_id": "app", "event_type": "user.subscription.purchased", "user_id": "ana",
        "created_date": at, "ingested_at": at, "payload": payload,
    }  # fmt: skip


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path)
    made.insert([row("old", START - DAY)])
    yield made
    made.close()


def planned(pipeline: Pipeline) -> tuple[Integration, int]:
    integration = pipeline.add("app", user_id_kind="nami_user_id", start_from=START)
    new = NewBackfill(integration.key, Window(0, from_datetime(START)))
    return integration, backfills.create(pipeline.context, new).id


@pytest.mark.contract("7.1.9")
@pytest.mark.parametrize("comes", ["nobody", "somebody", "somebody each time", "live delivery"])
@pytest.mark.slow
def test_a_file_is_computed_without_the_lease_and_again_if_live_delivery_came_in_between(
    pipeline: Pipeline, comes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    integration, number = planned(pipeline)
    seen: list[str] = []
    counted: list[bool] = []
    take = Ahead.take

    def taken(self: Ahead, *arguments: Any) -> Any:
        found = take(self, *arguments)
        counted.append(found is not None)
        return found

    monkeypatch.setattr(Ahead, "take", taken)

    def step(name: str) -> None:
        if name != "backfill.computed" or (seen and comes != "somebody each time"):
            return
        seen.append(name)
        assert live_first.fence_if_free(pipeline.context.store, integration.id) is not None
        if comes.startswith("somebody"):  # nobody knows what for: a repair, or a dead letter that is retried
            other = Store(pipeline.settings.state_url, pipeline.clock, owner="another machine")
            other.release(other.acquire([f"integration:{integration.id}"]).values())
            other.close()
        if comes == "live delivery":  # and sends newer state of the user
            pipeline.clock.set(START + DAY)
            pipeline.insert([row("new", START + DAY / 2)])
            pipeline.tick()

    pipeline.context.step = step
    wire = Agreeing()
    assert run_backfill(pipeline.context, number, Work(wire=lambda: wire)).state == "done"
    (sent,) = wire.events
    assert seen
    # Live delivery waits for no computing, unless it is never long enough away.
    assert counted == {"nobody": [True], "somebody each time": [False] * MOST_TIMES}.get(comes, [False, True])
    assert sent["insert_id"] == "old"
    assert ("$skip_user_properties_sync" in sent) is (comes == "live delivery")


@pytest.mark.contract("7.1.9")
@pytest.mark.parametrize("who", ["itself", "another one of the project", "a stranger"])
@pytest.mark.slow
def test_a_project_that_amplitude_throttles_is_left_to_live_delivery(pipeline: Pipeline, who: str) -> None:
    integration, number = planned(pipeline)
    key = Secret("0" * 32 if who == "another one of the project" else "1" * 32)
    told = integration if who == "itself" else pipeline.add("tv", api_key=key, start_from=START)
    until = pipeline.context.now() + 60_000_000
    pause = {"integration_id": told.id, "identity": "", "reason": "project_throttled", "until": until}
    with pipeline.context.store.begin() as tx:
        tx.execute(sa.insert(tables.pauses).values(pause))
    posted_at: list[int] = []

    class Noting(Agreeing):
        def start(self, number: int, request: Any) -> None:
            posted_at.append(pipeline.context.now())
            super().start(number, request)

    assert run_backfill(pipeline.context, number, Work(wire=Noting)).state == "done"
    assert (posted_at[0] >= until) is (who != "a stranger")
    assert show(pipeline.context, number).delivered == 1


@pytest.mark.contract("7.1.9")
def test_a_backfill_gives_way_to_live_events_of_another_integration_of_the_project(pipeline: Pipeline) -> None:
    """Another process delivers for it: nothing more is posted until it is done."""
    pipeline.insert([row(f"old{number}", START - DAY / 2 + number * DAY / 100) for number in range(9)])
    pipeline.context.settings = pipeline.settings.replace(batch_events=1)
    pipeline.context.monotonic = pipeline.clock
    _, number = planned(pipeline)
    other = pipeline.add("tv", start_from=START)
    backfiller = pipeline.add("radio", start_from=START)
    stranger = pipeline.add("car", start_from=START, api_key=Secret("1" * 32))
    live = Store(pipeline.settings.state_url, pipeline.clock, owner="another machine")
    # Somebody who delivers to another project, and another backfill of the project, are nobody to wait for.
    live.acquire([f"integration:{stranger.id}", f"integration:{backfiller.id}", f"backfill-turn:{backfiller.id}"])
    held: list[Lease] = []
    posted_meanwhile: list[bool] = []
    waits = 0

    class Meeting(Agreeing):
        def start(self, number: int, request: Any) -> None:
            super().start(number, request)
            pipeline.clock.sleep(live_first.LOOK_SECONDS)
            posted_meanwhile.append(bool(held))
            if len(posted_meanwhile) == 2:
                held.extend(live.acquire([f"integration:{other.id}"]).values())

    def sleep(seconds: float) -> None:
        nonlocal waits
        pipeline.clock.sleep(seconds)
        waits += bool(held)
        if waits == 5:
            live.release(held)
            held.clear()

    pipeline.context.sleep = sleep
    assert run_backfill(pipeline.context, number, Work(wire=Meeting)).state == "done"
    assert posted_meanwhile == [False] * 10
    assert waits == 5
    live.close()
