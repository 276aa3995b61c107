"""One process works on a partition; one that lost it neither posts nor records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nami_amp_pipeline.errors import LostLease
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.state.owners import has_ended, new_owner
from nami_amp_pipeline.state.store import Store
from nami_amp_pipeline_tests.simulation.network import Time
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, Posted, event


def _stores(url: str) -> tuple[Time, Store, Store]:
    time = Time()
    first, second = (Store(url, time.clock, 60.0, owner) for owner in ("one", "two"))
    create_or_upgrade(first)
    return time, first, second


@pytest.mark.slow
def test_a_partition_that_is_taken_is_left_alone(state_url: str) -> None:
    _, first, second = _stores(state_url)
    taken = first.acquire(["a", "b"])
    assert taken.keys() == {"a", "b"}
    assert second.acquire(["b", "c"]).keys() == {"c"}
    first.release(taken.values())
    assert second.acquire(["a", "b", "c"]).keys() == {"a", "b", "c"}


def test_a_lease_that_ran_out_can_be_taken_and_its_old_holder_notices(state_url: str) -> None:
    time, first, second = _stores(state_url)
    mine = first.acquire(["a", "b"])
    time.true += 61
    theirs = second.acquire(["a"])
    assert theirs["a"].fence > mine["a"].fence
    with pytest.raises(LostLease), first.begin(under=mine.values()):
        raise AssertionError("must not get here")
    first.renew([mine["b"]])
    first.release(mine.values())  # leaves the other's alone
    second.renew(theirs.values())


def test_renewing_keeps_a_lease(state_url: str) -> None:
    time, first, second = _stores(state_url)
    mine = first.acquire(["a"])
    for _ in range(5):
        time.true += 50
        first.renew(mine.values())
    assert second.acquire(["a"]) == {}


def test_very_many_leases_at_once(state_url: str) -> None:
    time, first, second = _stores(state_url)
    mine = first.acquire([f"integration:{number}" for number in range(1_200)])
    first.renew(mine.values())
    time.true += 61
    second.acquire(["integration:700"])
    with first.begin() as tx:
        assert first.lost(tx, list(mine.values())) == [mine["integration:700"]]


def test_what_a_process_of_this_machine_held_that_has_ended_is_free(tmp_path: Path) -> None:
    script = "from nami_amp_pipeline.state.owners import new_owner; print(new_owner())"
    gone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert has_ended(gone)
    assert not has_ended(new_owner())
    assert not has_ended("another-machine:boot:pid:[1]|1|1|abc")
    assert not has_ended("anything")
    time = Time()
    url = f"sqlite:///{tmp_path / 'state.db'}"
    dead, alive = Store(url, time.clock, 60.0, gone), Store(url, time.clock, 60.0)
    create_or_upgrade(dead)
    dead.acquire(["a"])
    assert alive.acquire(["a"]).keys() == {"a"}
    assert str(os.getpid()) in alive.owner


@pytest.mark.parametrize("moment", ["deliver.post", "deliver.commit", "deliver.committed", "deliver.answered"])
@pytest.mark.contract("5.2.2", "5.3.5")
def test_a_process_that_wakes_up_after_its_lease_neither_posts_nor_records(moment: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=5, lease_seconds=60)
    bench.prepare([event(number) for number in range(20)])
    sleeper = bench.process()
    slept_at: list[int] = []

    def step(name: str) -> None:
        if name == moment and len(bench.posted) == 2 - (moment == "deliver.post") and not slept_at:
            slept_at.append(len(bench.posted))
            bench.time.true += 100
            bench.deliver()
            slept_at.append(len(bench.posted))

    sleeper.step = step
    done = bench.deliver(sleeper)
    assert slept_at, "it never slept"
    assert len(bench.posted) == slept_at[1], "it posted after it had lost its lease"
    assert "another process" in (done[bench.ids[0]].error or "")
    assert bench.status().delivered == 20
    texts: dict[str, str] = {}
    for posted in bench.posted:
        for one, text in zip(posted.ids, posted.events, strict=True):
            assert texts.setdefault(one, text) == text


def test_a_second_process_meanwhile_does_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=5)
    bench.prepare([event(number) for number in range(20)])
    other = bench.process()
    nested: list[object] = []

    def answer(posted: Posted) -> object:
        if posted.number == 1:
            nested.append(bench.deliver(other))
        return OK

    bench.answer = answer  # type: ignore[assignment]
    bench.deliver()
    assert nested == [{}]
    assert bench.order == [f"e{number}" for number in range(20)]
