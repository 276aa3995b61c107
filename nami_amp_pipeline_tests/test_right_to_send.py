"""A process that is stopped anywhere between its lease and the socket sends nothing once the lease may be another's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from nami_amp_pipeline.delivery.channel_loader import ChannelLoader
from nami_amp_pipeline.delivery.exchange import NoAnswer
from nami_amp_pipeline.delivery.recorder import MARGIN_SECONDS, Recorder
from nami_amp_pipeline.delivery.send_alarm import SendAlarm, alarm
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, Request
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline_tests.adversity.workers import Workers
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, Posted, event
from nami_amp_pipeline_tests.support.raw_server import GOOD, raw_server, send
from nami_amp_pipeline_tests.support.stopping import LOOKED, PLACES
from nami_amp_pipeline_tests.support.tls import certificate

_OF_A_REQUEST = [place for place in PLACES if "lease" not in place]


def _is_stopped(process: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.slow_cases
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("place", _OF_A_REQUEST)
@pytest.mark.slow
def test_a_stopped_request_is_not_sent_when_its_time_is_over(place: str, scheme: str, tmp_path: Path) -> None:
    tls = certificate(tmp_path, "server") if scheme == "https" else None
    came: list[float] = []

    def head(_connection: object, _number: int) -> None:
        came.append(time.monotonic())

    with raw_server(send(GOOD), tls=tls, after_head=head) as (url, requests):
        process = subprocess.Popen(
            [sys.executable, "-m", "nami_amp_pipeline_tests.support.stopping", url, place, "1.5"],
            env={**os.environ, **({"REQUESTS_CA_BUNDLE": str(tls)} if tls else {})},
            stdout=subprocess.PIPE,
            text=True,
        )
        while not _is_stopped(process):
            assert process.poll() is None, f"it never came {place}"
            time.sleep(0.01)
        time.sleep(1.7)
        heads = len(came)
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate(timeout=30)
        assert not requests, "a request came whole after its time"
        assert len(came) == heads, "a head came after its time"
    if place == LOOKED:
        assert process.returncode == -signal.SIGALRM, "it ran on"
        return
    assert process.returncode == 0
    assert said.strip() == ("late True" if place == "between head and body" else "late False")
    assert heads == (place == "between head and body")


@pytest.mark.slow_cases
@pytest.mark.parametrize("place", _OF_A_REQUEST)
@pytest.mark.slow
def test_a_short_stop_costs_nothing(place: str) -> None:
    with raw_server(send(GOOD)) as (url, requests):
        process = subprocess.Popen(
            [sys.executable, "-m", "nami_amp_pipeline_tests.support.stopping", url, place, "30"],
            stdout=subprocess.PIPE,
            text=True,
        )
        while not _is_stopped(process):
            assert process.poll() is None, f"it never came {place}"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate(timeout=30)
        assert said.strip() == "200"
        assert len(requests) == 1


def test_a_request_that_is_late_does_not_connect() -> None:
    with raw_server(send(GOOD)) as (url, requests):
        transport = HttpTransport(5.0)
        with pytest.raises(NoAnswer) as caught:
            transport.post(Request(url, b"{}", send_until=time.monotonic() - 0.001))
        assert (caught.value.kind, caught.value.maybe_stored) == ("late", False)
        transport.close()
    assert not requests


def test_a_receiver_that_takes_nothing_is_sent_no_more_once_the_time_is_over() -> None:
    """The system's buffers are full in the middle of a body: a part has gone, so nobody knows."""

    def dawdle(_connection: object, _number: int) -> None:
        time.sleep(1.0)

    with raw_server(send(GOOD), after_head=dawdle) as (url, requests):
        transport = HttpTransport(20.0)
        with pytest.raises(NoAnswer) as caught:
            transport.post(Request(url, b"x" * 40_000_000, send_until=time.monotonic() + 0.5))
        assert (caught.value.kind, caught.value.maybe_stored) == ("late", True)
        transport.close()
    assert not requests


def test_the_alarm_is_set_only_around_a_send_and_never_where_somebody_else_uses_it() -> None:
    mine = SendAlarm()
    assert mine.enable()
    with mine.until(time.monotonic() + 50):
        assert 49 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        with mine.until(time.monotonic() + 20):
            assert 19 < signal.getitimer(signal.ITIMER_REAL)[0] <= 20
        assert 49 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with mine.until(float("inf")):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        assert not mine.enable()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        assert not mine.enable()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not alarm.enabled, "a run that is over leaves it on"


# -- whole workers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "state_url"),
    # The places are the process's own: with the other store every second one will do.
    [*((place, "sqlite") for place in PLACES), *((place, "postgresql") for place in list(PLACES)[::2])],
    indirect=["state_url"],
)
@pytest.mark.contract("5.3.5")
def test_two_workers_of_which_one_is_stopped_at_the_send(place: str, state_url: str, tmp_path: Path) -> None:
    """The other takes over; the sleeper wakes up when it has finished, or while it works."""
    environ = {"NAMI_AMP_STATE_URL": state_url} if state_url.startswith("postgresql") else None
    playing = Workers(tmp_path, list(PLACES).index(place) + 50, environ)
    with playing.scene:
        playing.round("stopped at the send", place)
        facts = playing.scene.facts
    assert facts[f"stopped: {place}"] == 1, facts
    if place == LOOKED and facts["took over and finished"]:
        assert facts["ended by its alarm"] == 1, facts


# -- simulated -------------------------------------------------------------------------------------------------------


def test_the_right_to_send_is_each_integrations_own(tmp_path: Path) -> None:
    """Committing for one integration prolongs it for no other, and committing a lost lease for none."""
    bench = Bench(tmp_path, integrations=3, lease_seconds=60, http_timeout_seconds=20.0)
    bench.prepare([event(number) for number in range(5)])
    context, other = bench.context, bench.process()
    integrations = registry.all_integrations(context.store)
    names = {one.id: f"integration:{one.id}" for one in integrations}
    taken = context.store.acquire(list(names.values()))
    leases = {one.id: taken[names[one.id]] for one in integrations}
    loader = ChannelLoader(context, random.Random(1), DESTINATIONS)
    assert loader.pending(bench.ids) == set(bench.ids)
    first, second, third = channels = [loader.open(one) for one in integrations]
    recorder = Recorder(context, leases, {channel.id: channel for channel in channels}, context.now)
    assert first.send_until < bench.time.true, "nothing gives the right to send before a lease was prolonged"
    for channel in channels:
        recorder.note(channel)
    recorder.commit()
    begun = bench.time.true
    assert {channel.send_until for channel in channels} == {begun + 60 - 20 - MARGIN_SECONDS}
    bench.time.true += 10
    recorder.note(first)
    recorder.commit()
    assert first.send_until == begun + 10 + 60 - 20 - MARGIN_SECONDS
    assert second.send_until == third.send_until == begun + 60 - 20 - MARGIN_SECONDS
    assert not recorder.renew_for(second)
    bench.time.true += 61
    assert other.store.acquire([names[third.id]])
    assert recorder.renew_for(first)
    assert recorder.renew_for(third)
    assert recorder.commit() == [third.id]
    assert first.send_until == bench.time.true + 60 - 20 - MARGIN_SECONDS
    assert third.send_until < bench.time.true


def test_a_commit_that_seemed_to_fail_is_known_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither written twice nor lost, whichever side of the commit the connection broke on."""
    bench = Bench(tmp_path, batch_events=5)
    bench.prepare([event(number) for number in range(200)])
    store, real, rng = bench.context.store, bench.context.store.begin, random.Random(5)
    met: Counter[str] = Counter()

    @contextmanager
    def begin(*, under: Sequence[Lease] = ()) -> Iterator[Transaction]:
        fate = rng.choice(("well", "well", "before", "after"))
        met[fate] += 1
        with real(under=under) as tx:
            yield tx
            if fate == "before" and bench.posted:
                raise StoreUnavailable("state store: gone")
        if fate == "after" and bench.posted:
            raise StoreUnavailable("state store: gone")

    monkeypatch.setattr(store, "begin", begin)
    bench.deliver()
    monkeypatch.undo()
    bench.deliver()
    assert bench.status().delivered == 200
    assert max(Counter(bench.order).values()) == 1
    assert min(met.values()) > 5


def test_what_a_successor_gave_up_for_a_refusal_that_did_not_last_is_never_accepted_later(tmp_path: Path) -> None:
    """The sleeper's request would be accepted after newer ones, and the event is counted dead."""
    silenced_at = b'{"code":400,"error":"Events silenced for device_id","silenced_events":[0]}'
    bench = Bench(tmp_path, batch_events=4, lease_seconds=60)
    bench.prepare([event(number, "one user") for number in range(12)])
    sleeper = bench.process()
    accepted: list[str] = []
    asleep = [False]

    def answer(posted: Posted) -> HttpAnswer:
        if asleep[0] and posted.ids[0] == "e0" and len(posted.ids) == 4:
            return HttpAnswer(400, silenced_at)
        accepted.extend(posted.ids)
        return OK

    def step(name: str) -> None:
        if name == "deliver.post" and not asleep[0]:
            asleep[0] = True
            bench.time.true += 100
            bench.deliver()
            asleep[0] = False

    bench.answer = answer
    sleeper.step = step
    bench.deliver(sleeper)
    assert bench.status().dead_letters == {"silenced": 1}
    assert accepted == [f"e{number}" for number in range(1, 12)]


def test_settings_leave_time_for_an_answer_within_a_lease() -> None:
    defaults = Settings()
    assert defaults.lease_seconds >= 2 * defaults.http_timeout_seconds
