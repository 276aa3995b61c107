"""An answer is taken for that of the request before it, or of none, whatever else a server sends."""

from __future__ import annotations

import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import urllib3.util.connection

from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer, Request
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.scripted_answers import Bench, event
from nami_amp_pipeline_tests.support.raw_server import BODY, GOOD, Behaviour, answer, raw_server, send
from nami_amp_pipeline_tests.support.tls import certificate

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n" + BODY + b"\r\n0\r\n\r\n"
REFUSED = answer(400, b'{"code":400}')
LARGE = b"x" * 8_000_000
"""More than the system takes in one go."""


def post(transport: HttpTransport, url: str, body: bytes = b"{}") -> HttpAnswer | NoAnswer:
    try:
        return transport.post(Request(url, body))
    except NoAnswer as error:
        return error


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    if request.param == "http":
        return None
    file = certificate(tmp_path, "server")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    return file


@pytest.mark.parametrize(
    "interim",
    [
        HINTS,
        PROCESSING * 2,
        CONTINUE + HINTS + PROCESSING,
        HINTS * 20,
        b"HTTP/1.1 199 Whatever\r\nContent-Length: 12\r\n\r\n",
        b"HTTP/1.0 103\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\n\n",
    ],
)
@pytest.mark.parametrize("final", [GOOD, CHUNKED])
@pytest.mark.contract("5.5.9")
def test_interim_answers_are_read_past(interim: bytes, final: bytes, tls: Path | None) -> None:
    with raw_server(send(interim + final, close=False), tls=tls) as (url, requests):
        transport = HttpTransport(2.0)
        for _ in range(3):
            got = post(transport, url)
            assert isinstance(got, HttpAnswer)
            assert (got.status, got.body) == (200, BODY)
        transport.close()
    assert len(requests) == 3


def test_interim_answers_that_come_byte_by_byte() -> None:
    parts = [bytes([byte]) for byte in HINTS + PROCESSING + GOOD]
    with raw_server(send(*parts, pause=0.001, close=False)) as (url, _):
        transport = HttpTransport(5.0)
        for _ in range(2):
            got = post(transport, url)
            assert isinstance(got, HttpAnswer)
            assert got.body == BODY
        transport.close()


@pytest.mark.parametrize("size", [2, len(LARGE)])
def test_interim_answers_may_come_before_the_request_is_whole(size: int, tls: Path | None) -> None:
    def hint(connection: socket.socket, _number: int) -> None:
        connection.sendall(HINTS)
        time.sleep(0.02)

    with raw_server(send(GOOD, close=False), tls=tls, after_head=hint) as (url, _):
        transport = HttpTransport(20.0)
        for _ in range(3):
            got = post(transport, url, LARGE[:size])
            assert isinstance(got, HttpAnswer), got
            assert got.body == BODY
        transport.close()


UNKNOWN = {
    "two answers": GOOD + GOOD,
    "a refusal and an answer": REFUSED + GOOD,
    "an answer and a refusal": GOOD + REFUSED,
    "an answer and half of one": GOOD + GOOD[:20],
    "an answer and an interim one": GOOD + HINTS,
    "an empty line first": b"\r\n" + GOOD,
    "garbage first": b"garbage\r\n" + GOOD,
    "zeros first": b"\0\0\0\0" + GOOD,
    "garbage behind": GOOD + b"x",
    "an empty line behind": GOOD + b"\r\n",
    "a longer body than said": answer(200, BODY).replace(b"Length: 12", b"Length: 11"),
    "garbage behind chunks": CHUNKED + b"x",
    "an answer behind chunks": CHUNKED + GOOD,
    "garbage behind an answer without a body": answer(204, b"").replace(b"Content-Length: 0\r\n", b"") + b"x",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + GOOD,
    "another protocol alone": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "no end of interim answers": HINTS * 1_000 + GOOD,
    "an interim answer and the end": HINTS,
    "half an interim answer and the end": HINTS[:-2],
    "half a line and the end": b"HTTP/1.1 20",
    "two lengths": GOOD.replace(b"Content-Length: 12", b"Content-Length: 12\r\nContent-Length: 4"),
    "a length and chunks": CHUNKED.replace(b"\r\nTransfer", b"\r\nContent-Length: 12\r\nTransfer"),
    "a length that is none": GOOD.replace(b"Length: 12", b"Length: twelve"),
    "a length below nothing": GOOD.replace(b"Length: 12", b"Length: -1"),
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 12\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("sent", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_cannot_be_accounted_for_is_an_unknown_outcome(sent: bytes, tls: Path | None) -> None:
    """And the next request goes over another connection, on which its own answer comes."""
    behave: list[Behaviour] = [send(sent, close=False), send(answer(200, b'{"second":1}'), close=False)]

    def first_this_then_that(connection: socket.socket, number: int) -> None:
        behave[number - 1](connection, number)
        if number == 1 and sent in (HINTS, HINTS[:-2], b"HTTP/1.1 20") and tls is None:
            connection.shutdown(socket.SHUT_WR)

    with raw_server(first_this_then_that, tls=tls) as (url, requests):
        transport = HttpTransport(0.7)
        got = post(transport, url)
        assert isinstance(got, NoAnswer), got
        assert got.kind in ("out_of_step", "truncated", "timeout", "reset")
        assert got.maybe_stored
        second = post(transport, url)
        assert isinstance(second, HttpAnswer)
        assert second.body == b'{"second":1}'
        transport.close()
    assert len(requests) == 2


@pytest.mark.parametrize("stray", [GOOD, REFUSED, b"x", HINTS, b"\r\n"])
def test_an_unsolicited_answer_on_an_idle_connection_is_nobodys(stray: bytes, tls: Path | None) -> None:
    strayed = threading.Event()

    def behave(connection: socket.socket, number: int) -> None:
        connection.sendall(answer(200, b"%d" % number))
        if number == 1:
            time.sleep(0.05)
            connection.sendall(stray)
            strayed.set()

    with raw_server(behave, tls=tls) as (url, requests):
        transport = HttpTransport(2.0)
        for number in (1, 2):
            got = post(transport, url)
            assert isinstance(got, HttpAnswer)
            assert got.body == b"%d" % number
            assert strayed.wait(30), "it was never sent"
            time.sleep(0.1)
        transport.close()
    assert len(requests) == 2


@pytest.mark.parametrize("first", [GOOD, REFUSED, b"220 mail.example ESMTP\r\n"])
def test_a_server_that_speaks_first_is_not_asked(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = urllib3.util.connection.create_connection

    def slowly(*args: Any, **more: Any) -> socket.socket:
        connected = connect(*args, **more)
        time.sleep(0.05)  # the greeting is there first
        return connected

    monkeypatch.setattr(urllib3.util.connection, "create_connection", slowly)
    with raw_server(send(GOOD), at_once=lambda connection: connection.sendall(first)) as (url, _):
        transport = HttpTransport(2.0)
        outcomes = []
        for _ in range(20):
            got = post(transport, url)
            if isinstance(got, NoAnswer):
                outcomes.append((got.kind, got.maybe_stored))
            else:
                # It was so quick that the greeting came behind the request: then it is the answer, or none.
                assert got.status in (200, 400)
        transport.close()
    assert {kind for kind, _ in outcomes} <= {"out_of_step", "reset", "truncated"}
    assert outcomes


@pytest.mark.parametrize("early", [GOOD, REFUSED, answer(413, b"{}"), answer(500, b"")])
@pytest.mark.parametrize("closes", [False, True])
def test_an_answer_before_the_request_is_whole(early: bytes, closes: bool, tls: Path | None) -> None:
    """On a new connection it can only be a refusal of this request; on one that was used, nobody knows whose it is."""
    reused = False

    def after_head(connection: socket.socket, number: int) -> None:
        if number == 1 and reused:
            return
        connection.sendall(early)
        time.sleep(0.05)
        if closes:
            raise OSError("the server closes")

    for reused in (False, True):
        with raw_server(send(GOOD, close=False), tls=tls, after_head=after_head) as (url, _):
            transport = HttpTransport(10.0)
            if reused:
                assert isinstance(post(transport, url), HttpAnswer)
            got = post(transport, url, LARGE)
            if reused or early is GOOD:
                assert isinstance(got, NoAnswer), got
                assert got.kind in ("out_of_step", "reset", "truncated")
                assert got.maybe_stored
            elif isinstance(got, HttpAnswer):
                assert got.status == int(early[9:12])
            else:  # the end of the connection overtook the refusal
                assert got.maybe_stored
            if not reused and early is not GOOD and not closes:
                # It reads on and answers a second time, which nobody waits for.
                assert isinstance(got, HttpAnswer) or got.kind == "out_of_step"
            transport.close()


def test_what_is_left_of_a_refused_request_is_not_taken_for_another_one() -> None:
    """The server refuses at the head and reads no more; a next request on that connection would be body to it."""
    connections: set[int] = set()

    def refuse(connection: socket.socket, _number: int) -> None:
        connections.add(id(connection))
        if len(connections) == 1:
            connection.sendall(answer(413, b"{}"))
            time.sleep(1.0)
            raise OSError("the server closes")

    with raw_server(send(GOOD, close=False), after_head=refuse) as (url, requests):
        transport = HttpTransport(5.0)
        first = post(transport, url, LARGE * 3)
        second = post(transport, url, b"second")
        transport.close()
    assert isinstance(first, HttpAnswer), first
    assert first.status == 413
    assert isinstance(second, HttpAnswer)
    assert second.status == 200
    assert [request.partition(b"\r\n\r\n")[2] for request in requests] == [b"second"]
    assert len(connections) == 2


# -- generated -------------------------------------------------------------------------------------------------------


class Ledger:
    """A server that takes requests or does not, and answers as a seed has it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.taken: set[bytes] = set()
        self.answered: dict[bytes, bytes] = {}

    def behave(self, connection: socket.socket, _number: int, request: bytes) -> None:
        rng = self.rng
        head, _, name = request.partition(b"\r\n\r\n")
        assert head
        status = rng.choice((200, 200, 200, 400, 429, 500))
        if status == 200:
            self.taken.add(name)
        own = answer(status, name)
        self.answered[name] = b"%d" % status
        before = b"".join(rng.choice((HINTS, PROCESSING, CONTINUE)) for _ in range(rng.choice((0, 0, 1, 3))))
        stray = answer(rng.choice((200, 400, 500)), b"stray")
        sent = before + rng.choice((own, own, own, own, stray + own, own + stray, own + b"x", b"y" + own, own + HINTS))
        how = rng.random()
        if how < 0.1:
            connection.sendall(sent[: rng.randrange(len(sent))])
            raise OSError("the server closes")
        if how < 0.3:
            for start in range(0, len(sent), 40):
                connection.sendall(sent[start : start + 40])
                time.sleep(0.0005)
        else:
            connection.sendall(sent)
        if rng.random() < 0.2:  # later, when nobody waits for anything
            time.sleep(0.002)
            connection.sendall(rng.choice((stray, own, HINTS, b"z")))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.contract("5.5.9")
def test_delivered_only_if_the_server_says_that_it_took_that_request(seed: int) -> None:
    ledger = Ledger(seed)
    asked: list[bytes]
    done = 0

    def behave(connection: socket.socket, number: int) -> None:
        nonlocal done
        try:
            ledger.behave(connection, number, asked[number - 1])
        finally:
            done = number

    met = {"taken": 0, "refused": 0, "unknown": 0}
    with raw_server(behave) as (url, requests):
        asked = requests
        transport = HttpTransport(2.0)
        for number in range(150):
            name = b"request %d" % number
            got = post(transport, url, name)
            while done < len(asked):  # what it sends later must come before the next request
                time.sleep(0.001)
            time.sleep(0.002)
            if isinstance(got, NoAnswer):
                met["unknown"] += 1
                continue
            assert got.body == name, "this is another request's answer"
            assert b"%d" % got.status == ledger.answered[name]
            assert (got.status == 200) == (name in ledger.taken)
            met["taken" if got.status == 200 else "refused"] += 1
        transport.close()
    assert min(met.values()) > 10


def test_with_early_hints_a_whole_run_says_what_the_server_has(tmp_path: Path) -> None:
    """A shifted answer would call events delivered that are not, and good events dead letters."""
    bench = Bench(tmp_path, batch_events=5, max_lanes=4, run_retry_seconds=20.0)
    bench.prepare([event(number) for number in range(200)], lanes=4)
    taken: set[bytes] = set()
    rng = random.Random(3)
    asked: list[list[bytes]] = []

    def behave(connection: socket.socket, number: int) -> None:
        body = asked[0][number - 1]
        interim = rng.choice((HINTS, PROCESSING * 2, b""))
        if b'"e7"' in body or b'"e111"' in body:
            connection.sendall(interim + answer(400, b'{"code":400,"error":"Invalid event JSON"}'))
        elif rng.random() < 0.2:
            connection.sendall(interim + answer(500, b"{}"))
        else:
            taken.update(part.split(b'"')[0] for part in body.split(b'"insert_id":"')[1:])
            connection.sendall(interim + GOOD + rng.choice((b"", b"", REFUSED)))

    with raw_server(behave) as (url, requests):
        asked.append(requests)
        with bench.context.store.begin() as tx:
            tx.execute(sa.update(tables.integrations).values(endpoint=url))
        integrations = registry.all_integrations(bench.context.store)
        bench.context.clock = time.time
        bench.context.monotonic = time.monotonic
        bench.context.sleep = time.sleep
        pipeline.deliver_integrations(bench.context, integrations)
    status = bench.status()
    assert status.dead_letters == {"rejected": 2}
    assert status.delivered == 198
    assert taken == {b"e%d" % number for number in range(200)} - {b"e7", b"e111"}
