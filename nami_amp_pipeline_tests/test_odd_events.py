"""Stage 4: an event that delivery cannot handle stops itself only; a bug stops the integration that meets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.amplitude.target import Amplitude
from nami_amp_pipeline.delivery.channel import Channel
from nami_amp_pipeline.delivery.channel_loader import ChannelLoader
from nami_amp_pipeline.delivery.destination import Verdict
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.dead_letters import show
from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.stages.table import CAPTURE, PREPARE, SNAPSHOTS, STAGES
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.storage.row_faults import MOST_ODD
from nami_amp_pipeline_tests.simulation.scripted_answers import OK, Bench, Posted, event
from nami_amp_pipeline_tests.support.harness import START, Agreeing, Pipeline
from nami_amp_pipeline_tests.support.scene import scene


def odd_judge(monkeypatch: pytest.MonkeyPatch, is_odd: Callable[[str], bool]) -> None:
    """Makes the destination unable to understand an answer about some identities."""

    class Odd(Amplitude):
        def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
            if any(is_odd(identity[0]) for identity in identities):
                raise KeyError("nobody thought of this")
            return super().judge(answer, identities, now=now)

    monkeypatch.setitem(DESTINATIONS, "amplitude", Odd())


def refuses(*ids: str) -> Callable[[Posted], HttpAnswer]:
    """An Amplitude that names these events as invalid."""

    def answer(posted: Posted) -> HttpAnswer:
        named = [index for index, event_id in enumerate(posted.ids) if event_id in ids]
        said = {"code": 400, "error": "Request missing required field", "events_with_invalid_fields": {"time": named}}
        return HttpAnswer(400, json.dumps(said).encode()) if named else OK

    return answer


@pytest.mark.parametrize("number", [0, 7, 29])
@pytest.mark.contract("1.12")
def test_an_event_whose_answer_cannot_be_computed_is_a_dead_letter_of_its_own(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, integrations=2, max_lanes=2)
    bench.prepare([event(each) for each in range(30)], lanes=2, integrations=bench.ids[:1])
    bench.prepare([event(each) for each in range(30, 35)], integrations=bench.ids[1:])
    odd_judge(monkeypatch, lambda identity: identity == f"u:user{number}")
    bench.answer = refuses(f"e{number}")
    done = bench.deliver()
    assert [done[key].error for key in bench.ids] == [None, None]
    assert (bench.status().delivered, bench.status().dead_letters) == (29, {"odd_row": 1})
    assert bench.status(1).delivered == 5
    (letter,) = show(bench.context.store, f"e{number}")
    assert "nobody thought of this" in (letter.answer or "")
    assert bench.exceptions("dead")[f"e{number}"].unknown_since is not None, "whether it was stored is not known"
    assert any("nobody thought of this" in line for line in caplog.messages)
    bench.deliver()
    assert bench.status().delivered == 29


def test_a_held_event_whose_answer_cannot_be_computed_is_a_dead_letter_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, run_retry_seconds=60.0)
    bench.prepare([event(number, f"hot{number % 3}") for number in range(9)])
    answers = [HttpAnswer(429, b'{"throttled_users":{"hot0":31,"hot1":31,"hot2":31}}')]
    odd_judge(monkeypatch, lambda identity: not answers and identity == "u:hot1")
    bench.answer = lambda posted: answers.pop() if answers else refuses("e1")(posted)
    bench.deliver()
    bench.deliver()
    status = bench.status()
    # Its user's other events go on once it no longer goes with them.
    assert (status.pending, status.delivered, status.dead_letters) == (0, 8, {"odd_row": 1})
    assert set(bench.exceptions("dead")) == {"e1"}


def test_what_every_answer_meets_is_no_events_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, integrations=2)
    bench.prepare([event(number) for number in range(MOST_ODD + 15)], integrations=bench.ids[:1])
    bench.prepare([event(number) for number in range(100, 105)], integrations=bench.ids[1:])
    with monkeypatch.context() as patched:
        odd_judge(patched, lambda identity: int(identity.removeprefix("u:user")) < 100)
        bench.answer = lambda posted: refuses(*posted.ids)(posted) if ":9000/" in posted.url else OK
        done = bench.deliver()
    assert "nobody thought of this" in (done[bench.ids[0]].error or "")
    assert (bench.status().pending, bench.status().dead_letters) == (MOST_ODD + 15, {})
    assert bench.status(1).delivered == 5
    bench.answer = lambda _posted: OK  # as a new version would
    bench.deliver()
    assert bench.status().delivered == MOST_ODD + 15


class Picky(Agreeing):
    """A wire whose other end refuses a request that is no UTF-8, and does not say why."""

    def __init__(self) -> None:
        super().__init__()
        self._refused: list[int] = []

    def start(self, number: int, request: Request) -> None:
        super().start(number, request)
        if b"\xff" in request.body:
            self._refused.append(number)

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        bad = HttpAnswer(400, b'{"code":400,"error":"Invalid JSON request body"}')
        return [(number, bad if number in self._refused else answer) for number, answer in super().wait(seconds)]


def test_an_event_whose_body_is_damaged_on_the_disk_stops_itself_only(tmp_path: Path) -> None:
    made = Pipeline(tmp_path)
    integration = made.add("app", user_id_kind="nami_user_id")
    made.insert(
        [
            {
                "id": f"e{number}",
                "app_id": "app",
                "event_type": "user.subscription.renewed",
                "user_id": f"u{number}",
                "created_date": START,
                "ingested_at": START,
                "payload": json.dumps({"text": f"text-{number}-"}),
            }
            for number in range(30)
        ]
    )
    wire = made.wires[integration.id] = Picky()
    batch = MicroBatch.begin(made.context)
    for stage in (CAPTURE, SNAPSHOTS, PREPARE):
        batch.run(stage)
    (path,) = (made.context.folder.root / "outboxes").glob("*.arrow")
    content = path.read_bytes()
    assert content.count(b"text-7-") == 1
    path.write_bytes(content.replace(b"text-7-", b"text-\xff-"))
    made.tick()
    status = made.status(integration)
    assert (status.delivered, status.dead_letters, status.pending) == (29, {"odd_row": 1}, 0)
    (letter,) = show(made.context.store, "e7")
    assert (letter.reason, letter.body) == ("odd_row", None)
    assert len(wire.bodies) <= 1 + 2 * 5
    made.close()


def test_a_held_event_whose_body_is_lost_stops_itself_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_retry_seconds=1.0)
    bench.prepare([event(number, "hot") for number in range(5)])
    bench.answer = lambda _posted: HttpAnswer(429, b'{"throttled_users":{"hot":31}}')
    bench.deliver()
    table = tables.exceptions
    with bench.context.store.begin() as tx:
        tx.execute(sa.update(table).where(table.c.event_id == "e2").values(body=None))
    bench.answer = lambda _posted: OK
    bench.time.true += 60
    bench.deliver()
    assert (bench.status().delivered, bench.status().dead_letters) == (4, {"odd_row": 1})


def _open_fails(monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    whole = ChannelLoader.open

    def fails(loader: ChannelLoader, integration: Any) -> Channel:
        if integration.id == bad:
            raise ZeroDivisionError("nobody thought of this")
        return whole(loader, integration)

    monkeypatch.setattr(ChannelLoader, "open", fails)


def _fails(monkeypatch: pytest.MonkeyPatch, bad: int, owner: type, name: str, after: int) -> None:
    """Makes a method fail for a channel, when it has been called so many times."""
    whole, calls = getattr(owner, name), 0

    def fails(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal calls
        channel = self if isinstance(self, Channel) else arguments[0]
        if channel.id == bad:
            calls += 1
            if calls > after:
                whole(self, *arguments, **more)  # its work is done, or the half of it, and no result is known
                raise ZeroDivisionError("nobody thought of this")
        return whole(self, *arguments, **more)

    monkeypatch.setattr(owner, name, fails)


FAILURES: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "open": _open_fails,
    "load_next": lambda patch, bad: _fails(patch, bad, ChannelLoader, "load_next", 0),
    "start": lambda patch, bad: _fails(patch, bad, Channel, "start", 0),
    "start, later": lambda patch, bad: _fails(patch, bad, Channel, "start", 2),
    "finish": lambda patch, bad: _fails(patch, bad, Channel, "finish", 0),
    "finish, later": lambda patch, bad: _fails(patch, bad, Channel, "finish", 2),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.contract("5.3.4")
def test_a_bug_that_one_integration_meets_leaves_the_others_their_turn(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, integrations=3, batch_events=10, max_lanes=3)
    bench.prepare([event(number) for number in range(60)], lanes=3)
    with monkeypatch.context() as patched:
        FAILURES[failure](patched, bench.ids[1])
        done = bench.deliver()
    assert "nobody thought of this" in (done[bench.ids[1]].error or "")
    assert [done[bench.ids[number]].error for number in (0, 2)] == [None, None]
    assert [bench.status(number).delivered for number in (0, 2)] == [60, 60]
    of_others = [event_id for posted in bench.posted if ":9001/" not in posted.url for event_id in posted.ids]
    assert len(of_others) == 120, "nothing of the others is sent again"
    bench.deliver()
    assert bench.status(1).delivered == 60


@pytest.mark.slow
def test_over_http_an_odd_event_stops_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene(tmp_path) as stage:
        radio, fit = stage.add("radio"), stage.add("fit")
        stage.load()
        with duckdb.connect(str(stage.home / "warehouse.duckdb")) as connection:
            ((event_id, user_id),) = connection.execute(
                "SELECT min(id), min_by(user_id, id) FROM nami_events WHERE app_id = 'radio' AND user_id IN ("
                "SELECT user_id FROM nami_events GROUP BY user_id HAVING count(*) > 1)"
            ).fetchall()
        stage.sandbox.faults.add(Fault("poison", insert_id=event_id))
        odd_judge(monkeypatch, lambda identity: identity == f"u:{user_id}")
        batch = MicroBatch.begin(stage.context)
        for each in STAGES:
            batch.run(each)
        assert batch.problems() == []
        numbers = stage.status(radio, fit)
        assert numbers["radio/main"].dead_letters == {"odd_row": 1}
        assert [number.pending for number in numbers.values()] == [0, 0]
        assert show(stage.context.store, event_id)[0].reason == "odd_row"
        delivered = sum(number.delivered for number in numbers.values())
        assert delivered == stage.sandbox.audit.accepted > 2
        assert stage.sandbox.audit.order_violations.count == 0
