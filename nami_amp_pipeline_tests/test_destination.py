"""A second destination, as small as one can be, goes through the same delivery with all its faults."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

from nami_amp_pipeline.delivery.destination import (
    REJECTED,
    TOO_LARGE,
    EndpointLimits,
    Frame,
    Outcome,
    Verdict,
)
from nami_amp_pipeline.delivery.json_destination import JsonDestination
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.destinations import DESTINATIONS
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.scripted_answers import API_KEY, Bench, event


class Tiny(JsonDestination):
    """Takes ``[events]`` with a bearer token; 202 is yes, 422 names what it refuses, 507 wants less."""

    name = "tiny"
    title = "Tiny"
    most = EndpointLimits(7, 3_000, 1_000, timedelta(days=1))

    def headers(self, api_key: Secret, body: bytes, now: float) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {api_key.reveal()}"}

    def frame(self, api_key: Secret) -> Frame:
        return Frame(b"[", b"]")

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        if isinstance(answer, NoAnswer):
            return Verdict(Outcome.AGAIN, answer.kind, maybe_stored=answer.maybe_stored)
        if answer.status == 202:
            return Verdict(Outcome.DELIVERED, "delivered")
        if answer.status == 422:
            refused = orjson.loads(answer.body)["rejected"]
            assert all(0 <= index < len(identities) for index in refused)
            return Verdict(Outcome.REFUSED_SOME, REJECTED, dead=dict.fromkeys(refused, "tiny_says_no"))
        if answer.status == 507:
            return Verdict(Outcome.REFUSED_ONE_OF, TOO_LARGE)
        if answer.status == 401:
            return Verdict(Outcome.HALT, f"unauthorized: {answer.body.decode()}")
        return Verdict(Outcome.AGAIN, f"http_{answer.status}", maybe_stored=True)

    def names_events(self, answer: HttpAnswer) -> bool:
        return answer.status == 422

    def redact(self, text: str, api_key: Secret) -> str:
        return text.replace(api_key.reveal(), "…")

    def fingerprints(self, bodies: pa.ChunkedArray) -> pa.Table:
        return pa.table({"fingerprint_size": pc.binary_length(bodies)})

    def repair(self, reason: str) -> str:
        return "Ask Tiny"


class Receiver:
    """What stands at the other end: it keeps what it took by insert_id, and has bad days."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.taken: Counter[str] = Counter()
        self.order: list[str] = []
        self.rng = random.Random(seed)
        self.status = 0
        self._bench = bench
        self._came: list[tuple[int, HttpAnswer | NoAnswer]] = []
        self._texts: dict[str, str] = {}

    def start(self, number: int, request: Request) -> None:
        assert request.headers == {"Authorization": f"Bearer {API_KEY}"}
        assert API_KEY.encode() not in request.body
        events = orjson.loads(request.body)
        assert 1 <= len(events) <= 7
        assert len(request.body) <= 3_000
        ids = [one["insert_id"] for one in events]
        for one, text in zip(ids, re.findall(r'\{"event_type".*?\}\}', request.body.decode()), strict=True):
            assert self._texts.setdefault(one, text) == text, "what is sent again is the same"
        self._came.append((number, self._answer(ids)))

    def _answer(self, ids: list[str]) -> HttpAnswer | NoAnswer:
        if self.status:
            return HttpAnswer(self.status, f"no such key: {API_KEY}".encode())
        drawn = self.rng.random()
        if drawn < 0.1:
            return HttpAnswer(500, b"")
        bad = [index for index, one in enumerate(ids) if int(one[1:]) % 23 == 0]
        if bad:
            return HttpAnswer(422, orjson.dumps({"rejected": bad[:1]}))
        if "e5" in ids:
            return HttpAnswer(507, b"")
        self.order += [one for one in ids if one not in self.taken]
        self.taken.update(ids)
        return NoAnswer("reset", maybe_stored=True) if drawn < 0.2 else HttpAnswer(202, b"")

    def wait(self, seconds: float) -> list[tuple[int, HttpAnswer | NoAnswer]]:
        self._bench.time.true += 0.01 if self._came else seconds + 1e-6
        came, self._came = self._came, []
        return came

    def close(self) -> None:
        return


@pytest.mark.parametrize("seed", range(5))
def test_another_destination_is_delivered_to(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DESTINATIONS, "tiny", Tiny())
    bench = Bench(tmp_path, max_lanes=3, run_retry_seconds=600.0)
    bench.prepare([event(number, f"user{number % 9}") for number in range(300)], lanes=1)
    with bench.context.store.begin() as tx:
        tx.execute(sa.update(tables.integrations).values(destination="tiny"))
    receiver = Receiver(bench, seed)
    receiver.status = 401
    _deliver(bench, receiver)
    assert (bench.reason_of_halt() or "").startswith("unauthorized: no such key: …")
    receiver.status = 0
    registry.set_enabled(bench.context.store, "app/i0", enabled=True)
    _deliver(bench, receiver)
    refused = {f"e{number}" for number in range(0, 300, 23)}
    dead = {one: row.reason for one, row in bench.exceptions("dead").items()}
    assert dead == {**dict.fromkeys(refused, "tiny_says_no"), "e5": "too_large"}
    assert bench.status().delivered == 300 - len(dead)
    assert receiver.taken.keys() == {f"e{number}" for number in range(300)} - dead.keys()
    for user in range(9):
        mine = [int(one[1:]) for one in receiver.order if int(one[1:]) % 9 == user]
        assert mine == sorted(mine)


def test_its_own_window_decides_when_a_repeat_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DESTINATIONS, "tiny", Tiny())
    bench = Bench(tmp_path, run_retry_seconds=0.0)
    bench.prepare([event(1)])
    with bench.context.store.begin() as tx:
        tx.execute(sa.update(tables.integrations).values(destination="tiny"))
    receiver = Receiver(bench, 1)
    receiver.status = 500
    _deliver(bench, receiver)
    bench.time.true += 86_400
    receiver.status = 0
    _deliver(bench, receiver)
    assert bench.status().dead_letters == {"outcome_unknown": 1}
    assert not receiver.taken


def test_a_destination_that_nobody_knows_stops_its_integration_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, integrations=2)
    bench.prepare([event(0)])
    with bench.context.store.begin() as tx:
        table = tables.integrations
        tx.execute(sa.update(table).where(table.c.id == bench.ids[0]).values(destination="later"))
    done = bench.deliver()
    assert done[bench.ids[0]].error == "app/i0: unknown destination 'later'"
    assert [bench.status(number).delivered for number in (0, 1)] == [0, 1]


def test_the_delivery_names_no_destination() -> None:
    folder = Path(pipeline.__file__).parent / "delivery"
    for file in folder.glob("*.py"):
        assert "amplitude" not in file.read_text().lower(), file.name


def _deliver(bench: Bench, receiver: Receiver) -> None:
    pipeline.deliver_integrations(
        bench.context, registry.all_integrations(bench.context.store), wire=receiver, rng=random.Random(1)
    )
