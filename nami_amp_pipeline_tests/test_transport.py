"""One request over a real socket: every way in which no answer comes, and that none takes longer than it may."""

from __future__ import annotations

import gzip
import socket
import struct
import time

import pytest

from nami_amp_pipeline.delivery.request_threads import ThreadedWire
from nami_amp_pipeline.delivery.transport import HttpAnswer, HttpTransport, NoAnswer, Request
from nami_amp_pipeline.sandbox import Fault, Sandbox, SandboxServer
from nami_amp_pipeline_tests.support.raw_server import GOOD, Behaviour, raw_server, send


def _reset(connection: socket.socket, _number: int) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _sleep(connection: socket.socket, _number: int) -> None:
    time.sleep(3)


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (_reset, "reset"),
        (send(), "reset"),
        (send(b"HTTP/1.1 200 OK\r\n"), "truncated"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Le"), "truncated"),
        (send(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"), "truncated"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n"), "truncated"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"code"'), "truncated"),
        (send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n" + b'{"code"'), "truncated"),
        (send(b"SSH-2.0-OpenSSH\r\n"), "truncated"),
        (_sleep, "timeout"),
        (send(*[b"H"] * 50, pause=0.05), "timeout"),
        (send(b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n"] * 50, pause=0.05), "timeout"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n", *[b"x"] * 50, pause=0.05), "timeout"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000), "truncated"),
    ],
)
def test_no_answer(behave: Behaviour, kind: str) -> None:
    with raw_server(behave) as (url, bodies):
        transport = HttpTransport(0.6)
        begun = time.monotonic()
        with pytest.raises(NoAnswer) as caught:
            transport.post(Request(url, b"{}"))
        assert (caught.value.kind, caught.value.maybe_stored) == (kind, True)
        assert time.monotonic() - begun < 1.5
        assert len(bodies) == 1, "a request must never go twice by itself"
        transport.close()


def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(NoAnswer) as caught:
        HttpTransport(2.0).post(Request(f"http://127.0.0.1:{port}/2/httpapi", b"{}"))
    assert (caught.value.kind, caught.value.maybe_stored) == ("no_connection", False)


def test_tls_with_a_server_that_does_not_speak_it() -> None:
    with raw_server(send(GOOD)) as (url, bodies), pytest.raises(NoAnswer) as caught:
        HttpTransport(1.0).post(Request(url.replace("http:", "https:"), b"{}"))
    assert not caught.value.maybe_stored
    assert bodies == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a b", "http://" + "a" * 70 + ".invalid/x", "http://127.0.0.1:1/\x00"]
)
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        HttpTransport(1.0).post(Request(url, b"{}"))
    assert not caught.value.maybe_stored


def test_redirects_are_not_followed() -> None:
    with raw_server(send(GOOD)) as (other, others):
        answer = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n".encode()
        with raw_server(send(answer)) as (url, _):
            transport = HttpTransport(2.0)
            assert transport.post(Request(url, b"{}")).status == 307
            transport.close()
        assert others == []


def test_an_answer_that_ends_with_its_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b'{"code":200}'
    with raw_server(send(answer)) as (url, bodies):
        transport = HttpTransport(2.0)
        for _ in range(2):
            assert transport.post(Request(url, b"{}")).body == b'{"code":200}'
        transport.close()
    assert len(bodies) == 2


def test_connections_are_kept_and_a_closed_one_is_not_used() -> None:
    def behave(connection: socket.socket, number: int) -> None:
        connection.sendall(GOOD)
        if number == 2:  # without saying so
            connection.shutdown(socket.SHUT_RDWR)

    with raw_server(behave) as (url, bodies):
        transport = HttpTransport(2.0)
        for _ in range(2):
            assert transport.post(Request(url, b"{}")).status == 200
        time.sleep(0.05)
        assert transport.post(Request(url, b"{}")) == HttpAnswer(200, b'{"code":200}', {"content-length": "12"})
        assert len(bodies) == 3
        transport.close()


def test_compressed_bodies_are_the_same_bytes() -> None:
    with raw_server(send(GOOD)) as (url, bodies):
        transport = HttpTransport(2.0, compress=True)
        transport.post(Request(url, b'{"a":1}' * 100))
        transport.close()
    head, _, body = bodies[0].partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert gzip.decompress(body) == b'{"a":1}' * 100


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("500", 500),
        ("html_400", 400),
        ("redirect", 302),
        ("reset_before_response", "reset"),
        ("closed_without_answer", "reset"),
        ("truncated_body", "truncated"),
        ("stall", "timeout"),
        ("trickle", "timeout"),
        ("empty_body", 200),
    ],
)
def test_faults_of_the_sandbox(kind: str, expected: int | str) -> None:
    sandbox = Sandbox()
    sandbox.faults.add(Fault(kind, seconds=3.0))  # type: ignore[arg-type]
    event = b'{"event_type":"e","user_id":"someone","insert_id":"1","time":1}'
    with SandboxServer(sandbox) as server:
        transport = HttpTransport(0.5)
        try:
            body = b'{"api_key":"k","events":[' + event + b"]}"
            got: int | str = transport.post(Request(server.endpoint, body)).status
        except NoAnswer as error:
            got = error.kind
        transport.close()
    assert got == expected


class _Slow:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def post(self, request: Request) -> HttpAnswer:
        body = request.body
        if body == b"bug":
            raise RuntimeError("a bug")
        if body == b"no":
            raise NoAnswer("reset", maybe_stored=True)
        time.sleep(self._seconds)
        return HttpAnswer(200, body)

    def close(self) -> None:
        return


def test_wire_gives_each_answer_once_and_survives_a_bug() -> None:
    wire = ThreadedWire(_Slow(0.01), 4)
    bodies = [b"bug", b"no", *(b"%d" % number for number in range(20))]
    for number, body in enumerate(bodies):
        wire.start(number, Request("http://x", body))
    came: dict[int, HttpAnswer | NoAnswer] = {}
    while len(came) < len(bodies):
        for number, answer in wire.wait(5.0):
            assert number not in came
            came[number] = answer
    assert [getattr(came[number], "kind", "") for number in (0, 1)] == ["failed", "reset"]
    assert all(came[number] == HttpAnswer(200, bodies[number]) for number in range(2, 22))
    wire.close()


def test_wire_stops_waiting_when_told_and_does_not_hang_at_the_end() -> None:
    told = False
    wire = ThreadedWire(_Slow(5.0), 2, stop=lambda: told)
    wire.start(1, Request("http://x", b""))
    begun = time.monotonic()
    assert wire.wait(0.1) == []
    told = True
    assert wire.wait(10.0) == []
    wire.close()
    assert time.monotonic() - begun < 1.5
