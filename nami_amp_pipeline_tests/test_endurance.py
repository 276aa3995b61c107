"""The long runs of ``endurance``, short."""

from __future__ import annotations

from pathlib import Path

import pytest

from nami_amp_pipeline.delivery.transport import HttpAnswer
from nami_amp_pipeline_tests.endurance import day, fairness, faults, outage
from nami_amp_pipeline_tests.endurance.report import Report
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, event
from nami_amp_pipeline_tests.support.scene import WARNINGS

pytestmark = pytest.mark.slow


@pytest.fixture
def report() -> Report:
    return Report(lambda _line: None)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_fails_at_once_and_nothing_is_lost_or_twice(seed: int, tmp_path: Path, report: Report) -> None:
    faults.run(report, tmp_path, rows=2_000, seeds=1, first_seed=seed, share=0.005)
    assert not report.failed


def test_a_refused_event_that_no_list_names_is_found_by_halving(tmp_path: Path, report: Report) -> None:
    faults.search_cost(report, tmp_path, rows=3_000, batches=(64,))
    assert not report.failed


def test_nineteen_integrations_are_delivered_whatever_the_twentieth_does(tmp_path: Path, report: Report) -> None:
    fairness.run(report, tmp_path, events=30, repeats=1, latency_ms=0.0, apart=False)
    assert not report.failed


@pytest.mark.parametrize("how", outage.WAYS)
def test_after_an_outage_everything_is_delivered_once(how: str, tmp_path: Path, report: Report) -> None:
    outage.run(report, tmp_path, hours=0.25, events=1_500, how=how)
    assert not report.failed


@pytest.mark.filterwarnings(WARNINGS)
def test_nothing_grows_once_retention_is_reached(tmp_path: Path, report: Report) -> None:
    day.run(report, tmp_path, day.Plan(ticks=12, events=1_200, every=2, kept=2, unused=1))
    assert not report.failed


@pytest.mark.filterwarnings(WARNINGS)
def test_growth_without_retention_is_found(tmp_path: Path, report: Report) -> None:
    day.run(report, tmp_path, day.Plan(ticks=12, events=1_200, every=2, kept=2, unused=1, retain=False))
    grown = {line.partition(" grew")[0] for line in report.failed}
    assert grown >= {"segments (files)", "segments", "receipts (files)", "outboxes", "requests", "exceptions",
                     "Dagster's runs", "Dagster's files"}  # fmt: skip
    assert all(" grew from " in line for line in report.failed)


@pytest.mark.parametrize("body", [b"", b'{"throttled_users":{"user0":31}}'])
def test_retry_after_0_for_good_does_not_become_an_endless_loop(body: bytes, tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=60.0)
    bench.prepare([event(number, "user0") for number in range(10)])
    bench.answer = lambda _posted: HttpAnswer(429, body, {"retry-after": "0"})
    bench.deliver()
    assert 2 <= len(bench.posted) <= 62
    bench.answer = lambda _posted: OK
    bench.time.true += 60
    bench.deliver()
    assert bench.status().delivered == 10


def test_what_does_not_hold_is_reported(report: Report) -> None:
    report.zero("somewhere", lost=0, accepted_twice=2)
    report.check(False, "a bound")
    assert report.failed == ["somewhere: accepted twice: 2", "a bound"]
