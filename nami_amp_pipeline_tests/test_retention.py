"""Retention removes what is past its time, nothing that is still needed, and comes out the same however it is cut."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.errors import Busy
from nami_amp_pipeline.operations.trace import trace
from nami_amp_pipeline.retention import RetentionReport, retain
from nami_amp_pipeline.stages import pipeline as stages
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.harness import START, Pipeline

pytestmark = pytest.mark.slow_cases

DAY = 86_400


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def each_pipe(tmp_path: Path, state_url: str) -> Iterator[Pipeline]:
    """On each kind of state store."""
    made = Pipeline(tmp_path / "home", {"NAMI_AMP_STATE_URL": state_url})
    yield made
    made.close()


def load(pipe: Pipeline, *idents: str, user: str = "u", app: str = "app", created: float = 0.0, **payload: Any) -> None:
    """Rows of now, or created some seconds ago."""
    now = START + timedelta(seconds=pipe.clock.now - START.timestamp())
    payload.setdefault("devices", [{"id": "d1"}])
    payload.setdefault("external_ids", [{"key": "external_id", "type": "uuid", "value": f"account of {user}"}])
    pipe.insert(
        [
            {
                "id": ident,
                "app_id": app,
                "event_type": "user.subscription.renewed",
                "user_id": user,
                "created_date": now - timedelta(seconds=created),
                "ingested_at": now,
                "payload": json.dumps(payload),
            }
            for ident in idents
        ]
    )


def go_on(pipe: Pipeline, days: float) -> None:
    """Lets time pass without a tick."""
    pipe.clock.now += days * DAY


def settle(pipe: Pipeline, days: float) -> None:
    """Lets time pass, and the frontier move on with it: the warehouse gets rows of an app that has no integration."""
    go_on(pipe, days - 0.02)
    for _ in range(2):
        load(pipe, f"other-{pipe.clock.now}", app="other")
        stages.capture_apps(pipe.context)
        go_on(pipe, 0.01)


def both(pipe: Pipeline) -> RetentionReport:
    """Retention; what it does is what it said that it would do."""
    said = retain(pipe.context, dry_run=True)
    did = retain(pipe.context)
    assert said.removed == did.removed
    assert said.held_back == did.held_back
    return did


def count(pipe: Pipeline, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    with pipe.context.store.begin() as tx:
        return tx.execute(sa.select(sa.func.count()).select_from(table).where(*conditions)).scalar_one()


def files(pipe: Pipeline) -> dict[str, int]:
    return {
        kind: len(list((pipe.settings.data_dir / kind).iterdir()))
        for kind in ("segments", "ledger", "snapshots", "outboxes", "receipts")
    }


def ids(pipe: Pipeline, one: registry.Integration) -> list[str]:
    return sorted(event["insert_id"] for event in pipe.sent(one))


@pytest.mark.slow
def test_what_is_delivered_goes_after_its_time_and_the_numbers_stay(each_pipe: Pipeline) -> None:
    pipe = each_pipe
    one = pipe.add("app")
    load(pipe, "1", "2")
    pipe.tick()
    before = pipe.status(one)
    settle(pipe, 29)
    assert not both(pipe).removed
    settle(pipe, 1.1)
    removed = both(pipe).removed
    assert (removed["segments"].rows, removed["segments"].files, removed["snapshots"].files) == (1, 1, 1)
    assert removed.keys() == {"segments", "snapshots", "captured_ids"}
    # Whoever had read that they are there can still open them, for a day.
    assert both(pipe).removed == {}
    settle(pipe, 1.1)
    assert both(pipe).removed["unused_files"].files == 2
    assert files(pipe)["segments"] == count(pipe, tables.segments)
    assert trace(pipe.context, "1").integrations[0]["state"] == "delivered"
    settle(pipe, 60)
    removed = both(pipe).removed
    assert removed["receipts"].files == 1
    assert "requests" not in removed  # the newest one
    assert trace(pipe.context, "1").integrations[0]["state"] in ("expired", "not_captured")
    after = pipe.status(one)
    assert (after.captured, after.delivered, after.pending) == (before.captured, before.delivered, 0) == (2, 2, 0)


@pytest.mark.parametrize("why", ["disabled", "halted"])
@pytest.mark.slow
def test_segment_waits_for_an_integration_that_stands_still(pipe: Pipeline, why: str) -> None:
    one, late = pipe.add("app"), pipe.add("app", "late")
    if why == "disabled":
        registry.set_enabled(pipe.context.store, late.key, enabled=False)
    else:
        with pipe.context.store.begin() as tx:
            registry.halt(tx, late.id, "invalid_api_key", 0)
    load(pipe, "1")
    pipe.tick()
    settle(pipe, 100)
    report = both(pipe)
    assert report.held_back == {late.key: 1}
    assert "segments" not in report.removed
    assert pipe.status(late).pending == 1
    registry.set_enabled(pipe.context.store, late.key, enabled=True)
    pipe.tick()
    assert (ids(pipe, one), ids(pipe, late)) == (["1"], ["1"])
    assert not both(pipe).held_back


@pytest.mark.slow
def test_segment_waits_for_its_open_outbox(each_pipe: Pipeline) -> None:
    pipe = each_pipe
    one = pipe.add("app")
    load(pipe, "1")
    stages.capture_apps(pipe.context)
    stages.snapshot_apps(pipe.context)
    stages.prepare_integrations(pipe.context, registry.all_integrations(pipe.context.store))
    with pipe.context.store.begin() as tx:
        registry.halt(tx, one.id, "invalid_api_key", 0)
    settle(pipe, 200)
    assert both(pipe).held_back == {one.key: 1}
    registry.set_enabled(pipe.context.store, one.key, enabled=True)
    lag = pipe.status(one).lag_seconds
    assert lag > 199 * DAY  # told by the segment
    pipe.tick()
    assert ids(pipe, one) == ["1"]


@pytest.mark.slow
def test_what_ticks_read_again_is_recognised_however_long_the_pipeline_was_down(pipe: Pipeline) -> None:
    one = pipe.add("app")
    load(pipe, "1")
    pipe.tick()
    go_on(pipe, 200)
    both(pipe)  # comes first after the pause
    load(pipe, "2")
    pipe.tick()
    assert ids(pipe, one) == ["1", "2"]


@pytest.mark.slow
def test_event_that_waits_for_its_snapshot_is_kept(pipe: Pipeline) -> None:
    one = pipe.add("app")
    load(pipe, "1")
    stages.capture_apps(pipe.context)
    registry.set_enabled(pipe.context.store, one.key, enabled=False)
    settle(pipe, 100)
    assert one.key in both(pipe).held_back
    registry.set_enabled(pipe.context.store, one.key, enabled=True)
    pipe.tick()
    assert ids(pipe, one) == ["1"]


@pytest.mark.slow
def test_new_integration_starts_from_what_is_kept(pipe: Pipeline) -> None:
    pipe.add("app")
    load(pipe, "old")
    pipe.tick()
    settle(pipe, 20)
    load(pipe, "new")
    pipe.tick()
    settle(pipe, 9)
    both(pipe)
    late = pipe.add("app", "late")
    pipe.tick()
    assert ids(pipe, late) == ["new", "old"]


@pytest.mark.slow
def test_event_whose_id_is_known_can_be_had_from_its_segment(pipe: Pipeline) -> None:
    pipe.add("app")
    load(pipe, "morning")
    pipe.tick()
    go_on(pipe, 0.9)
    load(pipe, "evening")
    pipe.tick()
    settle(pipe, 29.6)  # the morning is past the retention; the ledger forgets a day at a time
    assert not both(pipe).removed
    late = pipe.add("app", "late")
    pipe.tick()
    assert ids(pipe, late) == ["evening", "morning"]
    settle(pipe, 1)
    assert both(pipe).removed["segments"].rows == 2


def test_segments_of_apps_without_integrations_go(pipe: Pipeline) -> None:
    one = pipe.add("app")
    load(pipe, "1")
    stages.capture_apps(pipe.context)
    registry.remove(pipe.context.store, one.key)
    go_on(pipe, 31)
    assert both(pipe).removed["segments"].rows == 1
    assert count(pipe, tables.segment_apps) == 0


def properties(pipe: Pipeline, one: registry.Integration, ident: str) -> dict[str, Any]:
    (event,) = [event for event in pipe.sent(one) if event["insert_id"] == ident]
    found: dict[str, Any] = event["user_properties"]
    return found


@pytest.mark.slow
def test_late_event_finds_its_snapshot_within_the_retention_and_leaves_it_out_after(pipe: Pipeline) -> None:
    one = pipe.add("app")
    load(pipe, "1", devices=[{"id": "first"}])
    pipe.tick()
    settle(pipe, 25)
    load(pipe, "2", devices=[{"id": "second"}])
    pipe.tick()
    both(pipe)
    load(pipe, "late", created=20 * DAY, devices=None)
    pipe.tick()
    assert properties(pipe, one, "late")["namiml_device_ids"] == ["first"]
    settle(pipe, 20)
    assert both(pipe).removed["segments"].rows > 0
    load(pipe, "very late", created=40 * DAY, devices=None)
    load(pipe, "3", devices=None)
    pipe.tick()
    assert "namiml_device_ids" not in properties(pipe, one, "very late")  # not known any more, and not guessed
    assert properties(pipe, one, "3")["namiml_device_ids"] == ["second"]  # the current one is always known


@pytest.mark.slow
def test_requests_go_but_the_newest_and_those_of_open_outboxes_stay(each_pipe: Pipeline) -> None:
    pipe = each_pipe
    one = pipe.add("app")
    for number in range(3):
        load(pipe, str(number))
        pipe.tick()
        go_on(pipe, 1)
    with pipe.context.store.begin() as tx:  # as a crash between the last answer and the receipts leaves it
        newest = tx.execute(sa.select(sa.func.max(tables.outboxes.c.id))).scalar_one()
        tx.execute(sa.update(tables.outboxes).where(tables.outboxes.c.id == newest - 1).values(done_at=None))
    go_on(pipe, 100)
    removed = retain(pipe.context).removed
    assert (removed["requests"].rows, removed["receipts"].rows) == (1, 2)
    assert count(pipe, tables.requests, tables.requests.c.integration_id == one.id) == 2
    assert count(pipe, tables.lanes) == 1


def bury(pipe: Pipeline, one: registry.Integration, state: str, days: float, lane_id: int | None = None) -> None:
    at = int((pipe.clock.now - days * DAY) * 1e6)
    with pipe.context.store.begin() as tx:
        tx.execute(
            sa.insert(tables.exceptions).values(
                integration_id=one.id, state=state, reason="rejected", event_id="1", event_type="x", user_id="u",
                identity="u:u", created_date=0, run_id="r", at=at, lane_id=lane_id, lane_row=0,
            )
        )  # fmt: skip
        if state == "dead":
            pipe.context.store.count(tx, one.id, "captured", 1)
            pipe.context.store.count(tx, one.id, "dead", {"rejected": 1})


def test_dead_letters_and_what_was_held_go_and_what_is_pending_never_does(each_pipe: Pipeline) -> None:
    pipe = each_pipe
    one = pipe.add("app")
    for state in ("dead", "delivered", "held", "waiting"):
        for days in (80, 100):
            bury(pipe, one, state, days)
    removed = both(pipe).removed
    assert {kind: gone.rows for kind, gone in removed.items()} == {"dead_letters": 1, "settled_events": 1}
    for state, left in (("dead", 1), ("delivered", 1), ("held", 2), ("waiting", 2)):
        assert count(pipe, tables.exceptions, tables.exceptions.c.state == state) == left
    assert pipe.status(one).dead_letters == {"rejected": 2}


@pytest.mark.slow
def test_what_receipts_are_made_of_stays_until_they_are(pipe: Pipeline) -> None:
    one = pipe.add("app")
    load(pipe, "1")
    stages.capture_apps(pipe.context)
    stages.snapshot_apps(pipe.context)
    stages.prepare_integrations(pipe.context, registry.all_integrations(pipe.context.store))
    with pipe.context.store.begin() as tx:
        lane = tx.execute(sa.select(tables.lanes.c.id)).scalar_one()
    for state in ("dead", "delivered"):
        bury(pipe, one, state, 100, lane)
    assert not both(pipe).removed


def test_files_that_never_counted_are_swept_when_they_are_old(pipe: Pipeline) -> None:
    pipe.add("app")
    load(pipe, "1")
    stages.capture_apps(pipe.context)
    stages.snapshot_apps(pipe.context)
    stages.prepare_integrations(pipe.context, registry.all_integrations(pipe.context.store))
    counting = files(pipe)
    for kind in ("segments", "ledger", "snapshots", "outboxes", "receipts", "spill"):
        for name, age in (("old", 1.5), ("young", 0.5)):
            for suffix in ("arrow", "arrow.part"):
                path = pipe.settings.data_dir / kind / f"{name}.{suffix}"
                path.write_bytes(b"12345")
                os.utime(path, (pipe.clock.now - age * DAY,) * 2)
    for kind in counting:
        for path in (pipe.settings.data_dir / kind).iterdir():
            if path.stem not in ("old", "young", "old.arrow", "young.arrow"):
                os.utime(path, (0, 0))  # what counts stays, however old it is
    swept = both(pipe).removed["unused_files"]
    assert (swept.files, swept.bytes) == (12, 60)
    assert files(pipe) == {kind: there + 2 for kind, there in counting.items()}
    pipe.tick()
    assert len(pipe.wires) == 1


def test_process_that_stood_still_cannot_make_a_swept_file_count(pipe: Pipeline) -> None:
    one = pipe.add("app")
    load(pipe, "1")

    def stand_still(step: str) -> None:
        if step == "capture.commit":
            pipe.context.step = lambda _step: None
            for path in (pipe.settings.data_dir / "segments").iterdir():
                os.utime(path, (pipe.clock.now,) * 2)
            go_on(pipe, 1.5)
            other = Pipeline.__new__(Pipeline)
            other.context = type(pipe.context).open(pipe.settings, clock=pipe.clock)
            assert retain(other.context).removed["unused_files"].files == 1
            other.context.store.close()

    pipe.context.step = stand_still
    stages.capture_apps(pipe.context)  # it takes its leases again, and captures again: the swept file never counts
    pipe.tick()
    assert ids(pipe, one) == ["1"]
    with pipe.context.store.begin() as tx:
        files = list(tx.execute(sa.select(tables.segments.c.file)).scalars())
    assert [pipe.context.folder.path(file).exists() for file in files] == [True]


def test_pauses_that_are_over_and_leases_of_nothing_go(each_pipe: Pipeline) -> None:
    pipe = each_pipe
    one = pipe.add("app")
    now = int(pipe.clock.now * 1e6)
    bury(pipe, one, "held", 5)
    with pipe.context.store.begin() as tx:
        for identity, until in (("u:u", -2), ("u:gone", -2), ("u:soon", 1)):
            values = {"integration_id": one.id, "identity": identity, "reason": "throttled"}
            tx.execute(sa.insert(tables.pauses).values(**values, until=now + until * DAY * 1_000_000))
    pipe.context.store.release(
        pipe.context.store.acquire([f"integration:{one.id}", "integration:77", "app:x", "run:y"]).values()
    )
    pipe.context.store.acquire(["app:held"])
    removed = both(pipe).removed
    assert (removed["pauses"].rows, removed["leases"].rows) == (1, 3)
    assert count(pipe, tables.pauses) == 2


def test_one_at_a_time(pipe: Pipeline) -> None:
    other = type(pipe.context).open(pipe.settings, clock=pipe.clock)
    assert other.store.acquire(["retention"])
    other.store.owner = other.store.owner.replace(other.store.owner.split("|")[0], "another machine")
    with other.store.begin() as tx:
        tx.execute(sa.update(tables.leases).values(owner=other.store.owner))
    with pytest.raises(Busy):
        retain(pipe.context)
    retain(pipe.context, dry_run=True)  # only looks
    other.store.close()


def _grown(home: Path) -> None:
    """A home in which something of each kind is past its retention."""
    pipe = Pipeline(home)
    one = pipe.add("app")
    for number in range(2):
        load(pipe, str(number))
        pipe.tick()
        go_on(pipe, 0.5)
    bury(pipe, one, "dead", 0)
    bury(pipe, one, "delivered", 0)
    settle(pipe, 120)
    (home / "now").write_text(str(pipe.clock.now))
    pipe.close()


def _copy(home: Path, to: Path) -> Pipeline:
    shutil.copytree(home, to)
    pipe = Pipeline(to)
    pipe.clock.now = float((to / "now").read_text())
    return pipe


def _end(pipe: Pipeline) -> tuple[Any, ...]:
    """What is left when time has passed once more."""
    retain(pipe.context)
    go_on(pipe, 1.5)
    retain(pipe.context)
    names = [tables.segments, tables.segment_apps, tables.outboxes, tables.lanes, tables.requests, tables.exceptions]
    return (*(count(pipe, table) for table in names), tuple(files(pipe).values()))


@pytest.mark.slow
def test_killed_at_any_step_it_comes_out_the_same(tmp_path: Path) -> None:
    _grown(tmp_path / "home")
    whole = _copy(tmp_path / "home", tmp_path / "whole")
    steps: list[str] = []
    whole.context.step = steps.append
    retain(whole.context)
    taken = len(steps)
    assert taken > 10
    expected = _end(whole)
    whole.close()

    for at in range(1, taken + 1):
        pipe = _copy(tmp_path / "home", tmp_path / str(at))
        left = at

        def step(_name: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        pipe.context.step = step
        with pytest.raises(Killed):
            retain(pipe.context)
        pipe.context.step = lambda _step: None
        assert _end(pipe) == expected, f"killed at {at}"
        pipe.close()
