"""The lost outbox of a backfill or an identify: a repair sets its events aside, and the next one sends them, once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import NewBackfill, NewIdentify
from nami_amp_pipeline.operations.repair import LostFile, lost_files, repair
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline

DAY = timedelta(days=1)
USERS = 20


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, {"NAMI_AMP_BATCH_EVENTS": "3", "NAMI_AMP_MAX_LANES": "1"})
    made.insert(
        [
            {
                "id": f"e{number}",
                "app_id": "app",
                "event_type": "user.subscription.purchased",
                "user_id": f"user{number}",
                "created_date": START - DAY,
                "ingested_at": START - DAY,
                "payload": '{"active_entitlements": [{"entitlement_ref_id": "pro"}]}',
            }
            for number in range(USERS)
        ]
    )
    made.add("app", "first")
    made.tick()
    yield made
    made.close()


def half_done(pipeline: Pipeline, new: NewBackfill | NewIdentify) -> tuple[int, Agreeing, LostFile]:
    """One that has posted a part of its outbox, which is gone then."""
    number = backfills.create(pipeline.context, new).id
    wire = Agreeing()
    run_backfill(pipeline.context, number, Work(wire=lambda: wire, stop=lambda: len(wire.bodies) >= 2))
    assert 0 < len(wire.events) < USERS
    for path in (pipeline.settings.data_dir / "outboxes").iterdir():
        path.unlink()
    assert run_backfill(pipeline.context, number, Work(wire=lambda: wire)).state == "failed"
    (lost,) = lost_files(pipeline.context.store, pipeline.context.folder)
    return number, wire, lost


def new_of(kind: str, integration: Integration) -> NewBackfill | NewIdentify:
    if kind == "identify":
        return NewIdentify(integration.key)
    return NewBackfill(integration.key, Window(0, from_datetime(START)))


@pytest.mark.contract("7.1.6", "7.1.10")
@pytest.mark.parametrize("kind", ["backfill", "identify"])
@pytest.mark.slow
def test_what_was_in_it_is_set_aside_and_sent_by_the_next_one(pipeline: Pipeline, kind: str) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id", start_from=START)
    number, wire, lost = half_done(pipeline, new_of(kind, integration))
    assert (lost.kind, lost.stops) == ("backfill", f"{kind} 1 of app/main")
    assert f"'nami-amp backfills resume {number}'" in lost.mend
    assert f"'nami-amp {kind} app/main" in lost.mend
    ((_, why),) = repair(pipeline.context, [lost])
    assert why is None
    assert not lost_files(pipeline.context.store, pipeline.context.folder)
    assert run_backfill(pipeline.context, number, Work(wire=lambda: wire)).state == "done"
    status, posted = show(pipeline.context, number), len(wire.events)
    assert (status.delivered, status.skipped, status.pending) == (posted, {"lost_file": USERS - posted}, 0)
    assert repair(pipeline.context, [lost]) == [(lost, None)], "a second repair changes nothing"
    again = backfills.create(pipeline.context, new_of(kind, integration)).id
    run_backfill(pipeline.context, again, Work(wire=lambda: wire))
    assert show(pipeline.context, again).backfill.state == "done"
    first: dict[str, dict[str, Any]] = {}
    for event in wire.events:
        assert first.setdefault(event["insert_id"], event) == event, "a repeat is a repeat"
    assert len(first) == USERS


def test_it_is_not_sent_by_itself_once_amplitude_forgets(pipeline: Pipeline) -> None:
    integration = pipeline.add("app", user_id_kind="nami_user_id", start_from=START)
    new = new_of("backfill", integration)
    number, wire, lost = half_done(pipeline, new)
    repair(pipeline.context, [lost])
    assert run_backfill(pipeline.context, number, Work(wire=lambda: wire)).state == "done"
    pipeline.clock.set(START + 8 * DAY)
    again = backfills.create(pipeline.context, new).id
    run_backfill(pipeline.context, again, Work(wire=Agreeing))
    assert show(pipeline.context, again).found == {"unknown": USERS}
