"""Integrations that post to one project share its rate: what a user may be sent, and the pauses of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline.delivery.rate_limit import WINDOW_SECONDS, ProjectRate, ProjectRates, RateLimiter
from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, Posted, event

THROTTLED = HttpAnswer(429, b'{"code":429,"error":"Too many requests"}')
LIMIT = 900
"""Events of one user in 30 s at the HTTP V2 API."""


def to(bench: Bench, port: int) -> list[Posted]:
    return [posted for posted in bench.posted if f":{port}/" in posted.url]


@pytest.mark.contract("5.3.6")
def test_a_user_of_two_integrations_is_sent_at_the_rate_of_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ports=(9000, 9000, 9001), batch_events=200)
    bench.prepare([event(number, "hot") for number in range(600)])
    bench.deliver()

    assert sum(len(posted.ids) for posted in to(bench, 9000) if posted.at < 30) <= LIMIT
    assert sum(len(posted.ids) for posted in to(bench, 9001) if posted.at < 30) == 600, "another one has its own"
    bench.time.true += 2 * WINDOW_SECONDS
    for _ in range(3):
        bench.deliver()
        bench.time.true += WINDOW_SECONDS
    assert [bench.status(number).delivered for number in range(3)] == [600] * 3
    assert len(bench.order) == 1_800


@pytest.mark.contract("5.3.6")
def test_a_pause_of_the_project_holds_for_all_its_integrations(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ports=(9000, 9000, 9001), batch_events=1, run_retry_seconds=5.0)
    bench.prepare([event(number) for number in range(6)])
    bench.answer = lambda posted: THROTTLED if posted.number == 0 else OK
    done = bench.deliver()
    assert len(to(bench, 9000)) == 2, "one request of each was under way"
    assert len(to(bench, 9001)) == 6, "another project goes on"
    errors = [done[number].error or "" for number in bench.ids]
    assert ["project_throttled" in error for error in errors] == [True, True, False]
    bench.time.true += 61
    bench.deliver()
    assert [bench.status(number).delivered for number in range(3)] == [6] * 3


@pytest.mark.contract("5.3.6")
def test_a_later_run_of_another_process_knows_the_pause_of_the_project(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ports=(9000, 9000, 9001), run_retry_seconds=5.0)
    bench.prepare([event(1)], integrations=[bench.ids[0]])
    bench.answer = lambda posted: THROTTLED if posted.number == 0 else OK
    bench.deliver()
    registry.set_enabled(bench.context.store, "app/i0", enabled=False)  # so that only others are in the next run
    bench.prepare([event(2)], integrations=bench.ids[1:])
    done = bench.deliver(bench.process())
    assert [len(to(bench, port)) for port in (9000, 9001)] == [1, 1], "only the other project is posted to"
    assert done[bench.ids[1]].error is not None
    bench.time.true += 61
    bench.deliver(bench.process())
    assert [bench.status(number).delivered for number in range(3)] == [0, 1, 1]


def test_what_is_under_way_takes_room_until_it_is_known_not_to_be_stored() -> None:
    limiter = RateLimiter(30)
    limiter.take("u:ana", 800)
    assert limiter.room("u:ana", 0) == limiter.most - 800
    limiter.take("u:ana", limiter.most - 800)
    assert limiter.free_at("u:ana", 0) > 0, "it is asked again, later"
    limiter.settle("u:ana", limiter.most - 800, 0, maybe_stored=False)
    limiter.settle("u:ana", 800, 1, maybe_stored=True)
    assert limiter.room("u:ana", 1) == limiter.most - 800
    assert limiter.room("u:ana", WINDOW_SECONDS * 1_000_000 + 1) == limiter.most


def test_a_run_forgets_what_a_clock_that_was_ahead_noted() -> None:
    rates = ProjectRates()
    rate = rates.of("http://a", "print", 30)
    assert rates.of("http://a", "print", 30) is rate
    assert rates.of("http://b", "print", 30) is not rate
    assert rates.of("http://a", "another", 30) is not rate
    _note(rate, 800, 3_600_000_000)
    _note(rate, 50, 1_000_000)
    rate.pause(3_600_000_000)
    rate.pacer.take("u:ana", 5)
    rates.begin(2_000_000)
    assert rate.pacer.room("u:ana", 2_000_000) == rate.pacer.most - 50
    assert rate.resume_at == 0


def _note(rate: ProjectRate, events: int, now: int) -> None:
    rate.pacer.take("u:ana", events)
    rate.pacer.settle("u:ana", events, now, maybe_stored=True)
