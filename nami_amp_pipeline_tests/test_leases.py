"""One process works on a partition; one that lost it neither posts nor records."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.transport import NoAnswer
from nami_amp_pipeline.errors import LostLease
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.heartbeat import lost_runs
from nami_amp_pipeline.state.migrate import create_or_upgrade
from nami_amp_pipeline.state.owners import LONGEST_LEASE_SECONDS, has_ended, new_owner
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


PAUSE = {"identity": "", "reason": "throttled"}
YEAR = 365 * 86_400.0


def _clocks(url: str) -> tuple[Time, Store, Time, Store]:
    """A machine whose clock is a year ahead, and one whose clock is right; both see the same time pass."""
    wrong, right = Time(error=YEAR), Time()
    ahead = Store(url, wrong.clock, 120.0, "ahead:boot:|1|1|abc|120")
    create_or_upgrade(ahead)
    return wrong, ahead, right, Store(url, right.clock, 60.0, "right:boot:|1|1|abc|60")


def test_a_machine_a_year_ahead_that_dies_keeps_nobody_waiting_for_a_year(state_url: str) -> None:
    _, ahead, right, other = _clocks(state_url)
    ahead.acquire(["a", "b"])
    assert other.acquire(["a", "b"]) == {}, "it may be alive"
    right.true += 119
    assert other.acquire(["a", "b"]) == {}, "its own leases last so long"
    right.true += 2
    assert other.acquire(["a", "b"]).keys() == {"a", "b"}


def test_a_machine_a_year_ahead_that_lives_is_left_alone(state_url: str) -> None:
    wrong, ahead, right, other = _clocks(state_url)
    mine = ahead.acquire(["a"])
    for _ in range(20):
        for clock in (wrong, right):
            clock.true += 30
        ahead.renew(mine.values())
        for _ in range(3):
            assert other.acquire(["a"]) == {}
    ahead.release(mine.values())
    assert other.acquire(["a"]).keys() == {"a"}


def test_leases_of_other_lengths_are_not_taken_for_those_of_a_wrong_clock(state_url: str) -> None:
    time = Time()
    long = Store(state_url, time.clock, 600.0, new_owner(600.0).replace("|", "x|", 1))
    short = Store(state_url, time.clock, 10.0, "short:boot:|1|1|abc|10")
    create_or_upgrade(long)
    mine = long.acquire(["a"])
    for _ in range(5):
        assert short.acquire(["a"]) == {}
        time.true += 110
    long.renew(mine.values())
    time.true += 601
    assert short.acquire(["a"]).keys() == {"a"}


def test_an_owner_of_an_older_version_says_not_how_long_its_leases_last(state_url: str) -> None:
    wrong, right = Time(error=YEAR), Time()
    ahead = Store(state_url, wrong.clock, 120.0, "ahead:boot:|1|1|abc")
    create_or_upgrade(ahead)
    ahead.acquire(["a"])
    other = Store(state_url, right.clock, 60.0, "right")
    assert other.acquire(["a"]) == {}
    right.true += LONGEST_LEASE_SECONDS - 1
    assert other.acquire(["a"]) == {}
    right.true += 2
    assert other.acquire(["a"]).keys() == {"a"}


def test_a_clock_that_is_a_little_ahead_is_nothing(state_url: str) -> None:
    first, second = Time(error=20.0), Time()
    ahead = Store(state_url, first.clock, 60.0, "ahead:boot:|1|1|abc|60")
    create_or_upgrade(ahead)
    ahead.acquire(["a"])
    other = Store(state_url, second.clock, 60.0, "other")
    second.true += 79
    assert other.acquire(["a"]) == {}
    second.true += 2
    assert other.acquire(["a"]).keys() == {"a"}


def test_a_run_of_a_machine_a_year_ahead_is_missed_in_time(state_url: str) -> None:
    _, ahead, right, other = _clocks(state_url)
    ahead.acquire(["run:abc"])
    assert lost_runs(other) == []
    right.true += 121
    assert lost_runs(other) == ["abc"]


def test_whether_a_commit_went_through_is_a_number_of_its_own(state_url: str) -> None:
    time, first, second = _stores(state_url)
    lease = first.acquire(["a"])["a"]
    assert first.commits(lease) == 0
    with first.begin() as tx:
        assert first.prolong(tx, [lease]).commits == {lease: 1}
    assert first.commits(lease) == 1
    with first.begin() as tx:
        first.check(tx, [lease])
    assert first.commits(lease) == 1, "only looking counts nothing"
    with suppress(RuntimeError), first.begin() as tx:
        assert first.prolong(tx, [lease]).commits == {lease: 2}
        raise RuntimeError
    assert first.commits(lease) == 1
    time.true += 61
    second.acquire(["a"])
    assert first.commits(lease) is None


def test_a_pause_that_a_wrong_clock_noted_keeps_nobody_waiting(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=2, run_retry_seconds=0.0)
    bench.prepare([event(0)])
    with bench.context.store.begin() as tx:
        until = int((bench.time.true + YEAR) * 1e6)
        rows = [
            {**PAUSE, "integration_id": bench.ids[0], "until": until},
            {**PAUSE, "integration_id": bench.ids[1], "until": int((bench.time.true + 3_000) * 1e6)},
        ]
        tx.execute(sa.insert(tables.pauses), rows)
    bench.deliver()
    assert [bench.status(number).delivered for number in (0, 1)] == [1, 0]
    bench.time.true += 3_001
    bench.deliver()
    assert bench.status(1).delivered == 1


def test_what_was_posted_at_a_time_that_is_to_come_is_not_sent_again_by_itself(tmp_path: Path) -> None:
    """Its clock was ahead: nobody knows whether that was more than seven days ago."""
    bench = Bench(tmp_path, run_retry_seconds=0.0)
    bench.prepare([event(0)])
    bench.time.error = YEAR
    bench.answer = lambda _posted: NoAnswer("timeout", maybe_stored=True)
    bench.deliver()
    bench.time.error = 0.0
    bench.time.true += 3_600
    bench.answer = lambda _posted: OK
    bench.deliver()
    assert bench.status().dead_letters == {"outcome_unknown": 1}
    assert len(bench.posted) == 1


def test_leases_that_end_with_a_transaction(state_url: str) -> None:
    _, first, second = _stores(state_url)
    mine = first.acquire(["a", "b"])
    with suppress(ZeroDivisionError), first.begin(ending=list(mine.values())):
        raise ZeroDivisionError
    assert second.acquire(["a", "b"]) == {}, "nothing was committed"
    with first.begin(ending=list(mine.values())):
        pass
    first.renew([])
    with pytest.raises(LostLease):
        first.renew(mine.values())  # as a thread may that renews them until the work is over
    theirs = second.acquire(["a", "b"])
    assert theirs.keys() == {"a", "b"}
    first.release(mine.values())
    second.renew(theirs.values())
    with pytest.raises(LostLease), first.begin(ending=list(mine.values())):
        raise AssertionError("must not get here")
    second.renew(theirs.values())


def test_leases_of_any_name(state_url: str) -> None:
    _, first, second = _stores(state_url)
    names = ['a"b', "a\\b", "a\\", "a,b", "{a}", "NULL", "it's", "ü 'x'", " ", "%s", ":among", "$1"]
    mine = first.acquire(names)
    assert mine.keys() == set(names)
    first.renew(mine.values())
    assert second.acquire(names) == {}
    first.release(mine.values())
    assert second.acquire(names).keys() == set(names)


def test_processes_that_take_many_leases_at_once_share_them(state_url: str) -> None:
    create_or_upgrade(Store(state_url, Time().clock, 60.0, "none"))
    stores = [Store(state_url, Time().clock, 60.0, f"process-{number}") for number in range(4)]
    names = [f"app:{number}" for number in range(300)]
    held: dict[str, str] = {}
    lock = threading.Lock()

    def work(store: Store) -> None:
        for _ in range(5):
            taken = store.acquire(random.Random(store.owner).sample(names, 200))
            with lock:
                assert not held.keys() & taken.keys(), "one lease, two holders"
                held.update(dict.fromkeys(taken, store.owner))
            store.renew(taken.values())
            with lock:
                for name in taken:
                    assert held.pop(name) == store.owner
            store.release(taken.values())

    with ThreadPoolExecutor(len(stores)) as threads:
        for done in [threads.submit(work, store) for store in stores]:
            done.result()
    assert stores[0].acquire(names).keys() == set(names)
