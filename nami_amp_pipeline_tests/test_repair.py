"""Files of the data folder that are lost: found, and mended so that every event still arrives."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked
from nami_amp_pipeline.operations.repair import LostFile, lost_files, repair
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations, remove
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline_tests.support.command_line import invoke, one_line
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline

pytestmark = pytest.mark.slow_cases


def rows(first: int, count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"e{number}",
            "app_id": "app",
            "event_type": "user.subscription.renewed",
            "user_id": f"u{number % 5}",
            "created_date": START + timedelta(seconds=number),
            "ingested_at": START + timedelta(seconds=number),
            "payload": "nonsense" if number % 10 == 7 else "{}",
            **more,
        }
        for number in range(first, first + count)
    ]


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made = Pipeline(tmp_path, {"NAMI_AMP_BATCH_EVENTS": "4", "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0"})
    made.insert(rows(0, 40))
    made.clock.set(START + timedelta(hours=1))
    yield made
    made.close()


class Stopping(Agreeing):
    """Says yes to some requests; then the run is told to stop."""

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.requests = requests

    def is_over(self) -> bool:
        return len(self.bodies) >= self.requests


def through(scene: Pipeline, stage: str) -> None:
    stages.capture_apps(scene.context)
    if stage != "capture":
        stages.snapshot_apps(scene.context)
    if stage == "prepare":
        stages.prepare_integrations(scene.context, all_integrations(scene.context.store))


def half_posted(scene: Pipeline, one: Integration, requests: int) -> list[str]:
    through(scene, "prepare")
    wire = Stopping(requests)
    stages.deliver_integrations(scene.context, [one], wire=wire, stop=wire.is_over)
    return [event["insert_id"] for event in wire.events]


def lost_in(scene: Pipeline) -> list[LostFile]:
    return lost_files(scene.context.store, scene.context.folder)


def names(scene: Pipeline, kind: str) -> list[str]:
    return [file.file for file in lost_in(scene) if file.kind == kind]


def lose(scene: Pipeline, folder: str) -> None:
    (file,) = [path for path in (scene.context.folder.root / folder).iterdir() if path.is_file()]
    file.unlink()


def is_conserved(scene: Pipeline, one: Integration) -> bool:
    now = scene.status(one)
    ends = sum(now.skipped.values()) + sum(now.dead_letters.values())
    return now.captured == now.delivered + ends + now.pending


def finish(scene: Pipeline, one: Integration) -> set[str]:
    scene.tick()
    now = scene.status(one)
    assert (now.captured, now.delivered, now.dead_letters) == (40, 36, {"malformed_payload": 4})
    assert is_conserved(scene, one)
    assert lost_in(scene) == []
    return {event["insert_id"] for event in scene.sent(one)}


GOOD = {f"e{number}" for number in range(40) if number % 10 != 7}


@pytest.mark.parametrize("requests", [0, 1, 3, 6])
def test_lost_outbox_is_made_again(scene: Pipeline, requests: int) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    before = half_posted(scene, one, requests)
    assert not lost_in(scene)
    lose(scene, "outboxes")
    (lost,) = lost_in(scene)
    assert (lost.kind, lost.stops, lost.mend) == ("outbox", lost.stops, lost.mend)
    assert repair(scene.context, [lost]) == [(lost, None)]
    assert is_conserved(scene, one)
    assert scene.status(one).delivered == 0
    assert finish(scene, one) == GOOD
    assert set(before) <= GOOD


@pytest.mark.slow
def test_outbox_of_which_some_events_wait_keeps_them(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    half_posted(scene, one, 2)
    table, lanes = tables.exceptions, tables.lanes
    with scene.context.store.begin() as tx:  # as a throttled user's event is put aside
        lane = tx.execute(sa.select(lanes).where(lanes.c.next_row < lanes.c.rows)).first()
        assert lane is not None
        reader = scene.context.folder.open_ipc(tx.execute(sa.select(tables.outboxes.c.file)).scalar_one())
        row = reader.get_batch(lane.batch).slice(lane.next_row, 1).to_pylist()[0]
        tx.execute(
            sa.insert(table).values(
                integration_id=one.id, state="held", reason="throttled", event_id=row["id"],
                event_type=row["event_type"], user_id=row["user_id"], identity=row["identity"],
                created_date=int(row["created_date"].timestamp() * 1e6), body=row["body"], lane_id=lane.id,
                lane_row=lane.next_row, segment_id=1, run_id="x", at=scene.context.now(),
            )
        )  # fmt: skip
    assert is_conserved(scene, one)
    lose(scene, "outboxes")
    ((_, why),) = repair(scene.context, lost_in(scene))
    assert why is None
    assert is_conserved(scene, one)
    assert finish(scene, one) == GOOD
    ids = [event["insert_id"] for event in scene.sent(one)]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_old_outbox_is_sent_again_only_on_request(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    half_posted(scene, one, 1)
    lose(scene, "outboxes")
    scene.clock.set(START + timedelta(days=9))
    lost = lost_in(scene)
    ((_, why),) = repair(scene.context, lost)
    assert why is not None
    assert "--resend" in why
    assert repair(scene.context, lost, resend=True) == [(lost[0], None)]
    assert finish(scene, one) == GOOD


def test_lost_ledger_is_made_again(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.tick()
    lose(scene, "ledger")
    assert names(scene, "ledger")
    with pytest.raises(Blocked, match="ledger"):
        stages.capture_apps(scene.context)
    assert [why for _, why in repair(scene.context, lost_in(scene))] == [None]
    scene.insert(rows(0, 40, ingested_at=START + timedelta(hours=2)))  # loaded again: known all the same
    scene.clock.set(START + timedelta(hours=3))
    assert finish(scene, one) == GOOD
    assert len(scene.sent(one)) == len(GOOD)


@pytest.mark.slow
def test_lost_snapshots_are_computed_again(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    through(scene, "snapshot")
    lose(scene, "snapshots")
    assert names(scene, "snapshots")
    assert [why for _, why in repair(scene.context, lost_in(scene))] == [None]
    assert finish(scene, one) == GOOD


@pytest.mark.slow
def test_snapshots_and_an_outbox_that_are_lost_together(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    half_posted(scene, one, 1)
    lose(scene, "snapshots")
    lose(scene, "outboxes")
    assert [why for _, why in repair(scene.context, lost_in(scene))] == [None, None]
    assert is_conserved(scene, one)
    assert finish(scene, one) == GOOD


@pytest.mark.parametrize("stage", ["capture", "snapshot"])
@pytest.mark.slow
def test_lost_segment_is_read_again(scene: Pipeline, stage: str) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    through(scene, stage)
    lose(scene, "segments")
    lost = [file for file in lost_in(scene) if file.kind == "segment"]
    assert [why for _, why in repair(scene.context, lost)] == [None]
    assert finish(scene, one) == GOOD
    assert len(scene.sent(one)) == len(GOOD)


@pytest.mark.slow
def test_segment_that_everybody_has_prepared_is_only_forgotten(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.tick()
    lose(scene, "segments")
    assert [why for _, why in repair(scene.context, lost_in(scene))] == [None]
    assert finish(scene, one) == GOOD
    assert len(scene.sent(one)) == len(GOOD)


def test_segment_that_some_lack_is_left_alone(scene: Pipeline) -> None:
    first, second = scene.add("app", user_id_kind="nami_user_id"), scene.add("app", "later")
    through(scene, "snapshot")
    stages.prepare_integrations(scene.context, [first])
    lose(scene, "segments")
    ((_, why),) = repair(scene.context, lost_in(scene))
    assert why is not None
    assert "restore the file" in why
    assert second.key == "app/later"


@pytest.mark.slow
def test_lost_receipts_are_forgotten(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    scene.tick()
    lose(scene, "receipts")
    assert names(scene, "receipts")
    assert [why for _, why in repair(scene.context, lost_in(scene))] == [None]
    assert finish(scene, one) == GOOD


def test_file_that_a_process_works_with_is_left_to_it(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    half_posted(scene, one, 1)
    lose(scene, "outboxes")
    other = Pipeline(scene.settings.home / "elsewhere", {"NAMI_AMP_STATE_URL": scene.settings.state_url})
    other.clock.set(START + timedelta(hours=1))
    assert other.context.store.acquire([f"integration:{one.id}"])
    ((lost, why),) = repair(scene.context, lost_in(scene))
    assert isinstance(lost, LostFile)
    assert why is not None
    assert "another process" in why
    other.close()


@pytest.mark.parametrize("meanwhile", ["delivered", "removed"])
def test_outbox_that_is_done_or_gone_by_the_time_of_the_lease_is_left_alone(
    scene: Pipeline, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Whoever had the lease had the file open still."""
    one = scene.add("app", user_id_kind="nami_user_id")
    half_posted(scene, one, 1)
    (file,) = (scene.context.folder.root / "outboxes").iterdir()
    aside = file.rename(scene.settings.home / "aside")
    lost, acquire = lost_in(scene), scene.context.store.acquire

    def a_moment_later(wanted: Sequence[str]) -> dict[str, Lease]:
        monkeypatch.setattr(scene.context.store, "acquire", acquire)
        if meanwhile == "removed":
            remove(scene.context.store, one.key)
        else:
            aside.rename(file)
            scene.tick()
        return acquire(wanted)

    monkeypatch.setattr(scene.context.store, "acquire", a_moment_later)
    assert [why for _, why in repair(scene.context, lost)] == [None]
    if meanwhile == "delivered":
        sent = len(scene.sent(one))
        assert finish(scene, one) <= GOOD
        assert len(scene.sent(one)) == sent


@pytest.mark.slow
def test_segment_that_is_being_prepared_is_left_to_who_has_it_open(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    through(scene, "snapshot")
    other = Context.open(scene.settings, run_id="other", clock=scene.clock)
    said: list[str | None] = []

    def lose_and_repair(step: str) -> None:
        if step == "prepare.commit" and not said:
            lose(scene, "segments")
            said.extend(why for _, why in repair(other, lost_files(other.store, other.folder)))

    scene.context.step = lose_and_repair
    scene.tick()
    other.store.close()
    assert said
    assert all(why is not None and "in use by another process" in why for why in said)
    assert [why for _, why in repair(scene.context, lost_in(scene))] == [None]
    assert finish(scene, one) == GOOD
    assert len(scene.sent(one)) == len(GOOD)  # each once


def test_segment_that_is_gone_by_the_time_of_its_repair(scene: Pipeline) -> None:
    scene.add("app", user_id_kind="nami_user_id")
    through(scene, "snapshot")
    lose(scene, "segments")
    lost = lost_in(scene)
    assert [why for _, why in repair(scene.context, lost)] == [None]
    assert [why for _, why in repair(scene.context, lost)] == [None]  # as after a retention in between


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_lost_at_whatever_moment_is_mended(seed: int, scene: Pipeline) -> None:
    rng = random.Random(seed)
    one = scene.add("app", user_id_kind="nami_user_id")
    before: set[str] = set()
    for _ in range(4):
        before |= set(half_posted(scene, one, rng.randrange(8)))
        files = sorted(path for path in scene.context.folder.root.rglob("*.*") if path.is_file())
        others = [path for path in files if path.parent.name != "segments"]  # with it and its outbox all would be gone
        for path in rng.sample(others, min(len(others), rng.choice([0, 1, 2]))):
            path.unlink()
        unmended = [why for _, why in repair(scene.context, lost_in(scene)) if why is not None]
        if unmended:  # an outbox and its snapshots at once
            assert all("that the next run computes" in why for why in unmended)
            through(scene, "snapshot")
            assert {why for _, why in repair(scene.context, lost_in(scene))} <= {None}
        assert is_conserved(scene, one), seed
    assert before | finish(scene, one) == GOOD


@pytest.mark.slow
def test_command_says_what_is_lost_and_mends_it(scene: Pipeline) -> None:
    one = scene.add("app", user_id_kind="nami_user_id")
    half_posted(scene, one, 1)
    home = scene.settings.home
    assert invoke(home, "repair", settings={"NAMI_AMP_HOME": str(home)}).stdout == "No file is lost.\n"
    lose(scene, "outboxes")
    settings = {"NAMI_AMP_HOME": str(home)}
    looked = invoke(home, "doctor", settings=settings)
    assert "data files: 1 file missing" in looked.stdout
    assert "nami-amp repair" in looked.stdout
    planned = invoke(home, "repair", "--dry-run", "--json", settings=settings)
    ((file,), code) = (json.loads(planned.stdout)["files"], planned.exit_code)
    assert (file["kind"], file["mended"], file["error"], code) == ("outbox", False, None, 0)
    refused = invoke(home, "repair", settings=settings)  # its clock is today's, the outbox is from START
    assert (refused.exit_code, "--resend" in one_line(refused.stderr)) == (1, True)
    done = invoke(home, "repair", "--resend", settings=settings)
    assert done.exit_code == 0
    assert lost_in(scene) == []
    assert finish(scene, one) == GOOD
