"""Outboxes that are done are finished beside the posting, for as long as it takes and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.outbox_finisher import AtOnce, InThread, OutboxFinisher
from nami_amp_pipeline.delivery.receipts import Ending, finish_outbox, finish_outboxes
from nami_amp_pipeline.errors import Blocked, StoreUnavailable
from nami_amp_pipeline.stages import deliver as delivery
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.scripted_answers import Bench, Posted, event

PATIENCE = 60_000_000


def test_what_the_store_keeps_from_being_finished_is_tried_again_until_patience_ends() -> None:
    tries: list[tuple[int, int]] = []

    def finish(some: Sequence[tuple[int, int]]) -> dict[int, Exception]:
        tries.extend(some)
        return {outbox_id: StoreUnavailable("away") for _, outbox_id in some}

    finishing = OutboxFinisher(finish, AtOnce(), PATIENCE)
    assert finishing.next_at(0) is None
    finishing.start(1, 7, 0)
    now = 0
    while now <= PATIENCE:
        assert finishing.settle(now) == []
        again = finishing.next_at(now)
        assert again is not None
        assert again > now
        now = again
    assert 50 <= len(tries) <= 62
    assert set(tries) == {(1, 7)}
    ((channel_id, error),) = finishing.settle(now)
    assert (channel_id, str(error)) == (1, "away")
    assert finishing.next_at(now) is None


def test_what_cannot_be_finished_is_said_and_other_outboxes_are() -> None:
    def finish(some: Sequence[tuple[int, int]]) -> dict[int, Exception]:
        return {outbox_id: Blocked("the disk is full") for channel_id, outbox_id in some if channel_id == 1}

    finishing = OutboxFinisher(finish, AtOnce(), PATIENCE)
    finishing.start(1, 7, 0)
    finishing.start(2, 8, 0)
    assert [(channel_id, str(error)) for channel_id, error in finishing.settle(0)] == [(1, "the disk is full")]
    assert finishing.next_at(0) is None


def test_looking_at_what_is_under_way_does_not_grow_with_it() -> None:
    looks: list[int] = []

    class Waiting(Future[None]):
        def done(self) -> bool:
            looks.append(1)
            return super().done()

    class Held:
        def start(self, act: Callable[[], None]) -> Future[None]:
            del act
            return Waiting()

        def close(self) -> None:
            pass

    finishing = OutboxFinisher(lambda _some: {}, Held(), PATIENCE)
    for number in range(1_000):
        finishing.start(number, number, 0)
    assert finishing.settle(0) == []
    assert finishing.next_at(0) is not None
    assert len(looks) <= 2


@pytest.mark.parametrize("background", [AtOnce, InThread])
def test_a_bug_stops_the_integration_that_meets_it_only(background: type[AtOnce | InThread]) -> None:
    def finish(some: Sequence[tuple[int, int]]) -> dict[int, Exception]:
        return {outbox_id: ZeroDivisionError() for channel_id, outbox_id in some if channel_id == 1}

    finishing = OutboxFinisher(finish, background(), PATIENCE)
    finishing.start(1, 7, 0)
    finishing.start(2, 8, 0)
    finishing.close()
    ((channel_id, error),) = finishing.settle(0)
    assert (channel_id, type(error)) == (1, ZeroDivisionError)
    assert finishing.next_at(0) is None


def test_requests_go_on_while_receipts_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    for first in (0, 10):
        bench.prepare([event(first + number) for number in range(10)])
    posted_second = threading.Event()
    threads: set[str] = set()
    in_time: list[bool] = []

    def finish(*arguments: Any) -> dict[int, Exception]:
        threads.add(threading.current_thread().name[:8])
        in_time.append(posted_second.wait(20))
        return finish_outboxes(*arguments)

    def answer(posted: Posted) -> object:
        if "e10" in posted.ids:
            posted_second.set()
        return bench_answer(posted)

    bench_answer = bench.answer
    bench.answer = answer  # type: ignore[assignment]
    monkeypatch.setattr(delivery, "finish_outboxes", finish)
    bench.background = InThread()
    bench.deliver()
    assert threads == {"receipts"}
    assert in_time == [True, True], "the next outbox is posted while the receipts of the one before are written"
    assert bench.status().delivered == 20
    with bench.context.store.begin() as tx:
        assert tx.execute(sa.select(sa.func.count()).where(tables.outboxes.c.done_at.is_(None))).scalar() == 0


def test_a_run_that_cannot_write_receipts_says_so_and_the_next_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])

    def full(_context: object, endings: Sequence[Ending]) -> dict[int, Exception]:
        return {ending.outbox_id: Blocked("the receipts cannot be written: OSError") for ending in endings}

    with monkeypatch.context() as patch:
        patch.setattr(delivery, "finish_outboxes", full)
        bench.background = InThread()
        assert bench.deliver()[bench.ids[0]].error == "the receipts cannot be written: OSError"
    assert bench.status().delivered == 1
    bench.background = None
    assert bench.deliver()[bench.ids[0]].error is None
    assert len(bench.posted) == 1
    assert list((bench.settings.data_dir / "receipts").iterdir())


def test_finishing_leaves_a_lease_as_it_is(tmp_path: Path) -> None:
    """Until when it holds tells whoever posts whether a transaction of theirs was committed."""
    bench = Bench(tmp_path)
    bench.prepare([])
    store = bench.context.store
    (lease,) = store.acquire([f"integration:{bench.ids[0]}"]).values()
    before = store.commits(lease)
    bench.time.true += 30
    with store.begin() as tx:
        (outbox_id,) = tx.execute(sa.select(tables.outboxes.c.id)).scalars()
    finish_outbox(bench.context, outbox_id, lease)
    assert store.commits(lease) == before
    with store.begin() as tx:
        assert tx.execute(sa.select(tables.outboxes.c.done_at)).scalar() is not None
