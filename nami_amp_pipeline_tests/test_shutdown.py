"""SIGTERM ends a run within 10 seconds in every stage, as canceled; the next one loses and repeats nothing."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from nami_amp_pipeline.dagster_support.instance import dagster_instance
from nami_amp_pipeline.dagster_support.shutdown import graceful, guarded, prompt
from nami_amp_pipeline.runner import run_micro_batch
from nami_amp_pipeline.state.integrations import all_integrations
from nami_amp_pipeline_tests.support.command_line import environment
from nami_amp_pipeline_tests.support.nursery import Started
from nami_amp_pipeline_tests.support.scene import WARNINGS, Scene, scene

pytestmark = [pytest.mark.slow_cases, pytest.mark.filterwarnings(WARNINGS)]

END_SECONDS = 10.0


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path / ".nami-amp", lease_seconds="120") as made:
        made.load(apps=("radio",), users=60)
        made.add("radio")
        yield made


def wait_for(what: Callable[[], object], process: Started) -> None:
    until = time.monotonic() + 60
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def stopped(stage: Scene, number: signal.Signals, ready: Callable[[], object], at: str = "", busy: str = "") -> int:
    """Starts ``nami-amp run``, sends the signal when it is ready for it; returns the exit status.

    What the run is busy with takes minutes longer than the wait here: a run that the signal does not end is an error.
    """
    folder = stage.home.parent
    environ = environment(folder, STOP_AT=at, STOP_BUSY=busy, STOP_FILE=str(folder / "busy"))
    process = Started(["run"], folder, environ, program="nami_amp_pipeline_tests.support.slow_command:run")
    try:
        wait_for(ready, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.send_signal(signal.SIGKILL)
    assert said == "", said
    assert process.returncode is not None
    return process.returncode


def slow(stage: Scene, milliseconds: float) -> None:
    """Lets Amplitude take that long for each answer, which it gives to what it has stored."""
    stage.sandbox.options = dataclasses.replace(stage.sandbox.options, latency_ms=milliseconds)


def statuses(stage: Scene) -> list[dg.DagsterRunStatus]:
    with dagster_instance(stage.settings) as instance:
        return [record.dagster_run.status for record in instance.get_run_records()]


def check_that_the_next_run_does_the_rest(stage: Scene) -> None:
    report = run_micro_batch(stage.settings)
    assert report.ok
    (one,) = stage.status(*all_integrations(stage.context.store)).values()
    assert (one.pending, one.delivered) == (0, one.captured)
    assert stage.sandbox.audit.accepted == one.delivered > 0
    assert stage.sandbox.audit.duplicates == 0


@pytest.mark.parametrize(
    ("at", "busy", "number"),
    [
        ("capture.commit", "computing", signal.SIGTERM),
        ("snapshot.commit", "computing", signal.SIGTERM),
        ("prepare.commit", "sleeping", signal.SIGTERM),
        ("capture.commit", "sleeping", signal.SIGINT),
    ],
)
@pytest.mark.slow
def test_run_that_computes_breaks_off_at_once(stage: Scene, at: str, busy: str, number: signal.Signals) -> None:
    marker = stage.home.parent / "busy"
    status = stopped(stage, number, marker.exists, at, busy)
    assert status == 128 + number
    assert statuses(stage) == [dg.DagsterRunStatus.CANCELED]
    assert stage.sandbox.audit.requests == 0
    check_that_the_next_run_does_the_rest(stage)


@pytest.mark.slow
def test_run_that_hears_nothing_is_ended_all_the_same(stage: Scene) -> None:
    marker = stage.home.parent / "busy"
    status = stopped(stage, signal.SIGTERM, marker.exists, "snapshot.commit", "deaf")
    assert status == 143
    assert statuses(stage) == [dg.DagsterRunStatus.CANCELED]
    check_that_the_next_run_does_the_rest(stage)


@pytest.mark.slow
def test_requests_under_way_are_recorded_and_no_new_ones_sent(stage: Scene) -> None:
    slow(stage, 2_000)
    status = stopped(stage, signal.SIGTERM, lambda: stage.sandbox.audit.accepted)
    assert status == 143
    assert statuses(stage) == [dg.DagsterRunStatus.CANCELED]
    (one,) = stage.status(*all_integrations(stage.context.store)).values()
    assert one.delivered == stage.sandbox.audit.accepted > 0
    slow(stage, 0)
    check_that_the_next_run_does_the_rest(stage)


@pytest.mark.slow
def test_answers_that_do_not_come_are_not_waited_for(stage: Scene) -> None:
    slow(stage, 600_000)
    status = stopped(stage, signal.SIGTERM, lambda: stage.sandbox.audit.accepted)
    assert status == 143
    assert statuses(stage) == [dg.DagsterRunStatus.CANCELED]
    slow(stage, 0)
    run_micro_batch(stage.settings)
    (one,) = stage.status(*all_integrations(stage.context.store)).values()
    assert (one.pending, one.delivered) == (0, one.captured)
    assert stage.sandbox.audit.accepted == one.delivered  # repeats were recognised by their insert_id


@pytest.mark.slow
def test_run_leaves_signals_as_they_were(stage: Scene) -> None:
    """What comes while the command says what the run did ends it as it would have before."""
    before = {number: lambda *_: None for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert run_micro_batch(stage.settings).ok
    assert {number: signal.getsignal(number) for number in before} == before


def becomes_another_error() -> None:
    """What DuckDB does when a signal handler raises."""
    try:
        time.sleep(60)
    except dg.DagsterExecutionInterruptedError:
        raise RuntimeError("Query interrupted") from None


@pytest.mark.parametrize("busy", [becomes_another_error, lambda: time.sleep(60)])
def test_prompt_breaks_off_whatever_a_library_makes_of_it(busy: Callable[[], object]) -> None:
    called: list[str] = []

    def block() -> None:
        with prompt(lambda: called.append("end")):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            busy()

    with pytest.raises(dg.DagsterExecutionInterruptedError):
        block()
    assert called == ["end"]


def test_a_second_signal_breaks_off_what_was_to_end_gracefully() -> None:
    called: list[str] = []

    def block() -> None:
        with graceful(lambda: called.append("end")) as stop:
            signal.raise_signal(signal.SIGTERM)
            called.append(f"asked: {stop()}")
            signal.raise_signal(signal.SIGINT)
            called.append("went on")

    with pytest.raises(dg.DagsterExecutionInterruptedError):
        block()
    assert called == ["asked: True", "end"]


def test_an_error_that_has_nothing_to_do_with_it_stays_one() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), prompt():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_guards_are_one_and_leave_no_thread() -> None:
    threads = set(threading.enumerate())
    with guarded() as outer, guarded() as inner:
        assert outer is inner
        assert set(threading.enumerate()) - threads
    until = time.monotonic() + 10
    while set(threading.enumerate()) - threads and time.monotonic() < until:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - threads
    assert signal.set_wakeup_fd(-1) == -1
