"""The search for a refused event that no list names: what it may cost, and that it never takes a good one for it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from nami_amp_pipeline.delivery.bisection import Bisection, narrowed
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline_tests.simulation.scripted_answers import Bench, Posted, event
from nami_amp_pipeline_tests.tools.bisection_cost import REFUSED, TAKEN, worst


@pytest.mark.parametrize("waiting", [False, True], ids=["lane", "waiting"])
@pytest.mark.parametrize("events", [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 32, 64, 100])
@pytest.mark.contract("5.5.3")
@pytest.mark.slow
def test_wherever_it_stands_it_costs_log2_and_one(events: int, waiting: bool) -> None:
    """More sizes, up to 256: ``python -m nami_amp_pipeline_tests.tools.bisection_cost``."""
    most = worst(events, [(place,) for place in range(events)], waiting=waiting)
    assert most >= events.bit_length() - 1, "the halving cannot be faster"
    if events <= 13:
        worst(events, combinations(range(events), 2), waiting=waiting)
        worst(events, combinations(range(events), 3), waiting=waiting)


def test_an_answer_that_was_only_a_bad_moment_costs_no_event(tmp_path: Path) -> None:
    """The whole batch is refused once, and then every part of it is taken."""
    bench = Bench(tmp_path, batch_events=16)
    bench.prepare([event(number) for number in range(16)])
    bench.answer = lambda posted: REFUSED if posted.number == 0 else TAKEN
    bench.deliver()
    assert bench.status().delivered == 16
    assert not bench.exceptions("dead")


def test_who_is_throttled_meanwhile_is_not_taken_for_the_refused_one(tmp_path: Path) -> None:
    throttled = HttpAnswer(429, b'{"code":429,"throttled_users":{"user2":31},"throttled_events":[0]}')
    bench = Bench(tmp_path, batch_events=8, run_retry_seconds=100.0)
    bench.prepare([event(number) for number in range(8)])
    asked: list[tuple[str, ...]] = []

    def answer(posted: Posted) -> HttpAnswer:
        first = posted.ids == ("e2",) and posted.ids not in asked
        asked.append(posted.ids)
        return throttled if first else REFUSED if "e3" in posted.ids else TAKEN

    bench.answer = answer
    bench.deliver()
    assert ("e2",) in asked
    assert set(bench.exceptions("dead")) == {"e3"}
    assert bench.status().delivered == 7


def test_the_answer_of_the_smallest_refused_request_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, batch_events=8)
    bench.prepare([event(number) for number in range(9)])
    bench.answer = lambda posted: (
        HttpAnswer(400, b'{"code":400,"error":"of %d"}' % len(posted.ids)) if "e5" in posted.ids else TAKEN
    )
    bench.deliver()
    (dead,) = bench.exceptions("dead").values()
    assert dead.answer == '{"code":400,"error":"of 2"}'
    assert dead.request_id == 3, "8 refused, 4 taken, 2 refused, 1 taken"
    assert ("e5",) not in [posted.ids for posted in bench.posted]


@pytest.mark.parametrize("reason", ["too_large", "forbidden"])
def test_what_may_be_the_whole_requests_fault_is_asked_of_each(reason: str) -> None:
    record = RequestRecord({})
    search = narrowed(None, [1, 2, 3, 4], reason, 100, None, record)
    search = narrowed(search, [1, 2], reason, 50, None, record)
    search.accepted({1})
    assert search.suspects == [2]
    assert search.found is None


def test_refusals_count_only_within_one_another() -> None:
    record = RequestRecord({})
    search = narrowed(None, [1, 2, 3, 4], "rejected", 100, None, record)
    assert narrowed(search, [1, 2], "rejected", 50, None, record).refusals == 2
    assert narrowed(search, [4, 5], "rejected", 50, None, record).refusals == 1
    assert narrowed(search, [1, 2], "forbidden", 50, None, record).refusals == 1
    assert Bisection([7], "rejected", 1, None, record, refusals=1).found is None
    assert Bisection([7], "rejected", 1, None, record, refusals=2).found == 7
