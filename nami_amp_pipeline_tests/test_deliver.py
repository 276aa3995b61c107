"""A run of deliveries: patience, pacing, isolation, stopping, and a store or a process that fails meanwhile."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery import channel_loader as channels
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS, OutboxBatch, OutboxCache
from nami_amp_pipeline.delivery.recorder import STORE_PATIENCE_SECONDS
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, Posted, event

DAY = 86_400.0


@pytest.mark.contract("6.7")
def test_gives_up_after_the_time_set_and_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=60.0)
    bench.prepare([event(0)])
    bench.answer = lambda _posted: HttpAnswer(500, b"")
    done = bench.deliver()
    assert "http_500" in (done[bench.ids[0]].error or "")
    assert 40 <= bench.time.true - bench.start <= 62
    assert 5 <= len(bench.posted) <= 30


def test_does_not_sleep_for_what_comes_after_the_time_set(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=60.0)
    bench.prepare([event(0)])
    bench.answer = lambda _posted: HttpAnswer(429, b"", {"retry-after": "100"})
    bench.deliver()
    assert bench.time.true - bench.start < 1
    assert bench.status().pending == 1


@pytest.mark.contract("5.6.1")
def test_of_a_long_lane_only_the_part_at_hand_is_kept_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    kept: list[int] = []

    class Watched(OutboxCache):
        def batch(self, name: str, number: int) -> OutboxBatch:
            if (name, number) not in self._batches:
                opened.append(number)
            batch = super().batch(name, number)
            kept.append(len(self._batches))
            return batch

        def drop(self, name: str, number: int) -> None:
            super().drop(name, number)
            kept.append(len(self._batches))

    monkeypatch.setattr(channels, "OutboxCache", Watched)
    bench = Bench(tmp_path)
    bench.prepare([event(number) for number in range(2 * LANE_BATCH_ROWS + 1)])
    bench.deliver()
    assert bench.status().delivered == 2 * LANE_BATCH_ROWS + 1
    assert opened == [0, 1, 2]
    assert (max(kept), kept[-1]) == (1, 0)


def test_without_any_patience_each_run_tries_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=0.0, batch_events=10)
    bench.prepare([event(number) for number in range(30)])
    bench.answer = lambda posted: HttpAnswer(503, b"") if posted.number == 1 else OK
    bench.deliver()
    assert len(bench.posted) == 2
    bench.deliver()
    assert bench.status().delivered == 30


@pytest.mark.contract("5.3.3")
def test_an_endpoint_that_is_down_does_not_delay_the_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=3, batch_events=10, run_retry_seconds=60.0)
    bench.prepare([event(number) for number in range(100)])

    def answer(posted: Posted) -> HttpAnswer | NoAnswer:
        return NoAnswer("no_connection", maybe_stored=False) if ":9000/" in posted.url else OK

    bench.answer = answer
    bench.deliver()
    assert [bench.status(number).delivered for number in range(3)] == [0, 100, 100]
    assert max(posted.at for posted in bench.posted if ":9000/" not in posted.url) < 1


@pytest.mark.contract("5.3.3")
def test_a_wrong_key_or_file_of_one_integration_leaves_the_others_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=3)
    bench.prepare([event(1)], integrations=bench.ids[:1])
    bench.prepare([event(2)], integrations=bench.ids[1:2])
    bench.prepare([event(3)], integrations=bench.ids[2:])
    with bench.context.store.begin() as tx:
        boxes = tables.outboxes
        name = tx.execute(sa.select(boxes.c.file).where(boxes.c.integration_id == bench.ids[0])).scalar_one()
        table = tables.integrations
        tx.execute(sa.update(table).where(table.c.id == bench.ids[1]).values(api_key="not a token"))
    bench.context.folder.path(name).write_bytes(b"nothing")
    done = bench.deliver()
    assert "cannot be read" in (done[bench.ids[0]].error or "")
    assert done[bench.ids[1]].error
    assert done[bench.ids[2]].error is None
    assert [bench.status(number).delivered for number in range(3)] == [0, 0, 1]


@pytest.mark.contract("5.1.4")
def test_after_a_week_nothing_of_unknown_outcome_is_sent_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=10, run_retry_seconds=5.0)
    bench.prepare([event(number) for number in range(30)])
    bench.answer = lambda posted: NoAnswer("timeout", maybe_stored=True)
    bench.deliver()
    assert {posted.ids for posted in bench.posted} == {tuple(f"e{number}" for number in range(10))}
    bench.time.true += 7 * DAY
    bench.answer = lambda _posted: OK
    posted = len(bench.posted)
    bench.deliver()
    assert bench.status().dead_letters == {"outcome_unknown": 10}
    assert bench.status().delivered == 20
    assert not set(bench.order[sum(len(one.ids) for one in bench.posted[:posted]) :]) & set(bench.exceptions("dead"))


def test_a_week_of_refusals_before_the_connection_is_no_reason_to_give_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=5.0)
    bench.prepare([event(0)])
    bench.answer = lambda posted: NoAnswer("no_connection", maybe_stored=False)
    bench.deliver()
    bench.time.true += 8 * DAY
    bench.answer = lambda _posted: OK
    bench.deliver()
    assert bench.status().delivered == 1


def test_what_is_held_of_unknown_outcome_is_given_up_too_unless_a_person_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=40.0)
    bench.prepare([event(0, "hot"), event(1)])
    answers = [HttpAnswer(429, b'{"throttled_users":{"hot":31}}'), OK]
    bench.answer = lambda posted: answers[posted.number] if posted.number < 2 else NoAnswer("reset", maybe_stored=True)
    bench.deliver()
    assert bench.exceptions("held")["e0"].unknown_since is not None
    bench.time.true += 7 * DAY
    bench.answer = lambda _posted: OK
    bench.deliver()
    assert bench.exceptions("dead")["e0"].reason == "outcome_unknown"
    with bench.context.store.begin() as tx:
        tx.execute(sa.update(tables.exceptions).values(state="held", unknown_since=None))
        bench.context.store.count(tx, bench.ids[0], "dead", {"outcome_unknown": -1})
    bench.deliver()
    assert bench.status().delivered == 2


@pytest.mark.contract("5.3.2")
def test_a_user_with_very_many_events_is_paced_and_the_others_do_not_notice(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=1000, max_lanes=4, run_retry_seconds=600.0)
    bench.prepare([event(n, "hot" if n % 2 else None) for n in range(6_000)], lanes=4)
    hot = {f"e{number}" for number in range(1, 6_000, 2)}
    window: list[tuple[float, int]] = []

    def answer(posted: Posted) -> HttpAnswer:
        mine = len(hot & set(posted.ids))
        if mine:
            window.append((posted.at, mine))
            assert sum(count for at, count in window if at > posted.at - 30) <= 900
        return OK

    bench.answer = answer
    bench.deliver()
    assert bench.status().delivered == 6_000
    others = [posted.at for posted in bench.posted if set(posted.ids) - hot]
    assert max(others) < 2
    assert bench.time.true - bench.start < 130
    mine = [one for one in bench.order if one in hot]
    assert mine == sorted(mine, key=lambda one: int(one[1:]))
    assert max(Counter(bench.order).values()) == 1


@pytest.mark.contract("5.2.1", "5.3.2")
def test_held_events_survive_a_new_process_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=4, run_retry_seconds=5.0)
    bench.prepare([event(n, f"user{n % 2}") for n in range(12)])
    bench.answer = lambda posted: HttpAnswer(429, b'{"throttled_users":{"user1":31}}') if posted.number == 0 else OK
    bench.deliver()
    assert bench.status().pending_by == {"throttled": 6}
    bench.prepare([event(n, "user1") for n in (20, 21)])
    other = bench.process()
    bench.deliver(other)
    assert bench.status().pending_by == {"throttled": 8}
    bench.time.true += 31
    bench.deliver(bench.process())
    assert bench.status().delivered == 14
    again = [
        int(one[1:]) for posted in bench.posted[1:] for one in posted.ids if int(one[1:]) % 2 or int(one[1:]) == 20
    ]
    assert again == [1, 3, 5, 7, 9, 11, 20, 21]


def test_told_to_stop_it_records_what_is_under_way_and_starts_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=5, max_lanes=4)
    bench.prepare([event(number) for number in range(200)], lanes=4)

    def answer(posted: Posted) -> HttpAnswer:
        bench.stop = posted.number >= 5
        return OK

    bench.answer = answer
    bench.deliver()
    assert len(bench.posted) <= 9
    assert bench.status().delivered == len(bench.order)


def test_told_to_stop_it_does_not_wait_for_an_answer_that_does_not_come(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])
    bench.latency = 29.0

    def answer(_posted: Posted) -> HttpAnswer:
        bench.stop = True
        return OK

    bench.answer = answer
    bench.deliver()
    assert bench.time.true - bench.start < 10
    bench.stop, bench.latency = False, 0.01
    bench.deliver()
    assert bench.status().delivered == 1


@pytest.mark.parametrize("kind", ["of a lane", "held"])
def test_told_to_stop_while_a_request_is_recorded_it_does_not_post_it(tmp_path: Path, kind: str) -> None:
    """The store may be away for a minute just then."""
    bench = Bench(tmp_path, run_retry_seconds=5.0)
    bench.prepare([event(number, "user1") for number in range(3)])
    if kind == "held":
        bench.answer = lambda _posted: HttpAnswer(429, b'{"throttled_users":{"user1":31}}')
        bench.deliver()
        bench.time.true += 3_600
        bench.answer = lambda _posted: OK
    posted = len(bench.posted)

    def step(name: str) -> None:
        bench.stop = name == "deliver.commit" or bench.stop

    bench.context.step = step
    bench.deliver()
    assert bench.stop
    assert len(bench.posted) == posted
    with bench.context.store.reading() as tx:
        for table in (tables.lanes, tables.exceptions):
            assert set(tx.execute(sa.select(table.c.unknown_since)).scalars()) <= {None}, "none may have been posted"
    bench.context.step, bench.stop = lambda _name: None, False
    bench.deliver()
    assert len(bench.posted) > posted
    assert bench.status().delivered == 3


def test_a_store_that_is_away_for_a_while_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, batch_events=5)
    bench.prepare([event(number) for number in range(50)])
    store = bench.context.store
    real = store.begin
    failures = 0

    def begin(**more: object) -> object:
        nonlocal failures
        if bench.posted and failures < 20:
            failures += 1
            raise StoreUnavailable("state store: gone")
        return real(**more)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "begin", begin)
    bench.deliver()
    assert failures == 20
    assert bench.status().delivered == 50
    assert max(Counter(bench.order).values()) == 1


def test_a_store_that_stays_away_ends_the_run_and_the_next_sends_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, batch_events=5)
    bench.prepare([event(number) for number in range(50)])
    store = bench.context.store
    real = store.begin

    def begin(**more: object) -> object:
        if bench.posted:
            raise StoreUnavailable("state store: gone")
        return real(**more)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "begin", begin)
    with pytest.raises(StoreUnavailable):
        bench.deliver()
    assert bench.time.true - bench.start < STORE_PATIENCE_SECONDS + 10
    monkeypatch.setattr(store, "begin", real)
    bench.deliver()
    assert bench.status().delivered == 50
    assert bench.posted[0].events == bench.posted[1].events
    assert max(Counter(bench.order).values()) == 2


def test_a_clock_that_is_set_back_makes_nobody_wait(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=60.0)
    bench.prepare([event(0)])

    def answer(posted: Posted) -> HttpAnswer:
        if posted.number == 0:
            bench.time.error -= 7_200
            return HttpAnswer(500, b"")
        return OK

    bench.answer = answer
    bench.deliver()
    assert bench.time.true - bench.start < 5
    assert bench.status().delivered == 1


@pytest.mark.contract("2.1")
def test_a_disabled_or_halted_integration_sends_nothing_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.prepare([event(0)])
    registry.set_enabled(bench.context.store, "app/i0", enabled=False)
    assert bench.deliver() == {}
    registry.set_enabled(bench.context.store, "app/i0", enabled=True)
    bench.answer = lambda posted: OK if posted.number else HttpAnswer(401, b"")
    bench.deliver()
    assert bench.deliver()[bench.ids[0]].error
    assert len(bench.posted) == 1
    registry.set_enabled(bench.context.store, "app/i0", enabled=True)
    bench.deliver()
    assert bench.status().delivered == 1


def calls_of_a_delivery(folder: Path, integrations: int, answers: int) -> int:
    """Python's calls in the posting loop: one integration has that many answers to come, the others wait."""
    bench = Bench(folder, integrations=integrations, batch_events=1, run_retry_seconds=3_600.0)
    bench.prepare([event(number) for number in range(answers)], integrations=bench.ids[:1])
    bench.prepare([event(0)], integrations=bench.ids[1:])
    bench.answer = lambda posted: OK if ":9000/" in posted.url else HttpAnswer(429, b"", {"retry-after": "3000"})
    calls = 0

    def count(_frame: object, kind: str, _argument: object) -> None:
        nonlocal calls
        calls += kind == "call"

    sys.setprofile(count)
    try:
        bench.deliver()
    finally:
        sys.setprofile(None)
    assert bench.status().delivered == answers
    return calls


@pytest.mark.slow
def test_work_for_an_answer_does_not_grow_with_the_number_of_integrations(tmp_path: Path) -> None:
    few, many, answers = 20, 200, 200
    alone = [calls_of_a_delivery(tmp_path / f"{number}-1", number, 1) for number in (few, many)]
    busy = [calls_of_a_delivery(tmp_path / f"{number}-n", number, answers) for number in (few, many)]
    of_answers = [whole - base for whole, base in zip(busy, alone, strict=True)]
    assert of_answers[1] < 2 * of_answers[0]
