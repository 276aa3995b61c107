"""On the wire, the sandbox speaks HTTP to any client and breaks connections as told."""

from __future__ import annotations

import gzip
import http.client
import io
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import requests

from nami_amp_pipeline.sandbox import Fault, FaultKind, Options, Sandbox, SandboxServer

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Sandbox()) as running:
        yield running


def body(*insert_ids: str, user_id: str = "user-1") -> dict[str, Any]:
    events = [{"event_type": "renewed", "user_id": user_id, "time": 1, "insert_id": name} for name in insert_ids]
    return {"api_key": KEY, "events": events}


def at_once(server: SandboxServer, *contents: dict[str, Any]) -> None:
    threads = [
        threading.Thread(target=requests.post, args=(server.endpoint,), kwargs={"json": content})
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def accepted(server: SandboxServer) -> int:
    count: int = requests.get(server.url + "/sandbox/audit", timeout=5).json()["accepted"]
    return count


def raw(server: SandboxServer, text: bytes) -> bytes:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(text)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_a_connection_is_kept_for_many_requests(server: SandboxServer) -> None:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    sockets = set()
    for path in ("/2/httpapi", "/sandbox/summary", "/nowhere", "/2/httpapi"):
        connection.request("GET" if path.startswith("/s") else "POST", path, b"", {"Content-Type": "application/json"})
        connection.getresponse().read()
        sockets.add(id(connection.sock))
    connection.close()
    assert len(sockets) == 1
    assert None not in sockets


def test_gzip_and_chunked_bodies_arrive(server: SandboxServer) -> None:
    packed = gzip.compress(orjson.dumps(body("a")))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert requests.post(server.endpoint, data=packed, headers=headers, timeout=5).status_code == 200
    chunks = iter([packed[:10], packed[10:]])
    assert requests.post(server.batch_endpoint, data=chunks, headers=headers, timeout=5).json()["code"] == 200
    assert accepted(server) == 1


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"POST /2/httpapi HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /2/httpapi HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"POST /2/httpapi HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST /2/httpapi HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_what_is_not_http_is_refused_and_the_server_goes_on(server: SandboxServer, text: bytes, status: bytes) -> None:
    assert raw(server, text).split(b" ")[1] == status
    assert requests.post(server.endpoint, json=body("a"), timeout=5).status_code == 200


def test_a_client_that_leaves_in_the_middle_of_a_body_harms_nobody(server: SandboxServer) -> None:
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall(b"POST /2/httpapi HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
    assert requests.post(server.endpoint, json=body("a"), timeout=5).status_code == 200


@pytest.mark.parametrize(
    ("kind", "error", "taken"),
    [
        ("reset_before_response", ConnectionResetError, 0),
        ("closed_without_answer", http.client.RemoteDisconnected, 0),
        ("stall", http.client.RemoteDisconnected, 1),
        ("truncated_body", http.client.IncompleteRead, 1),
    ],
)
def test_a_broken_connection_looks_like_one(
    server: SandboxServer, kind: FaultKind, error: type[Exception], taken: int
) -> None:
    server.sandbox.faults.add(Fault(kind, times=1, seconds=0.1))
    content = orjson.dumps(body("a"))
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    connection.request("POST", "/2/httpapi", content, {"Content-Type": "application/json"})
    with pytest.raises(error) as caught:
        connection.getresponse().read()
    assert type(caught.value) is error
    connection.close()
    assert accepted(server) == taken


def test_a_trickle_comes_in_pieces_and_arrives_whole(server: SandboxServer) -> None:
    server.sandbox.faults.add(Fault("trickle", seconds=1))
    """It takes a second, a byte at a time; somebody who reads meanwhile gets it in more than one piece."""
    content = orjson.dumps(body("a"))
    pieces = []
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        head = "POST /2/httpapi HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        while piece := connection.recv(65536):
            pieces.append(piece)
    assert len(pieces) > 2
    assert orjson.loads(b"".join(pieces).partition(b"\r\n\r\n")[2])["events_ingested"] == 1


def test_latency_delays_the_answer_but_not_other_clients() -> None:
    """Nobody gets an answer for ten minutes; each of eight clients is heard meanwhile."""
    with SandboxServer(Sandbox(options=Options(latency_ms=600_000))) as server:
        for number in range(8):
            content = body(str(number), user_id=f"user-{number}")
            with pytest.raises(requests.ReadTimeout):
                requests.post(server.endpoint, json=content, timeout=(5, 0.05))
        until = time.monotonic() + 60
        while server.sandbox.audit.accepted < 8:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert server.sandbox.audit.concurrent_same_user.count == 0


def test_two_requests_with_one_user_at_once_are_noticed_and_one_after_the_other_are_not() -> None:
    with SandboxServer(Sandbox(options=Options(latency_ms=100))) as server:
        for name in "ab":
            requests.post(server.endpoint, json=body(name), timeout=5)
        assert server.sandbox.audit.concurrent_same_user.count == 0
        at_once(server, body("c"), body("d"))
        assert server.sandbox.audit.concurrent_same_user.count == 1


def test_a_retry_after_a_timeout_is_not_concurrent(server: SandboxServer) -> None:
    server.sandbox.faults.add(Fault("stall", times=1, seconds=30))
    for _ in range(2):
        try:
            requests.post(server.endpoint, json=body("a"), timeout=0.2)
        except requests.Timeout:
            continue
    audit = server.sandbox.audit
    assert (audit.accepted, audit.duplicates, audit.concurrent_same_user.count) == (1, 1, 0)


def test_the_page_is_self_contained_and_may_load_nothing_else(server: SandboxServer) -> None:
    for path in ("/", "/sandbox/page.css", "/sandbox/page.js"):
        answer = requests.get(server.url + path, timeout=5)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        for address in ("http://", "https://", "//cdn"):
            assert address not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in requests.get(server.url + "/sandbox/page.js", timeout=5).text


@pytest.mark.parametrize("headers", [{"Origin": "https://example.com"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_can_neither_read_nor_clear(server: SandboxServer, headers: dict[str, str]) -> None:
    assert requests.get(server.url + "/sandbox/events", headers=headers, timeout=5).status_code == 403
    assert requests.delete(server.url + "/sandbox/data", headers=headers, timeout=5).status_code == 403
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert requests.get(server.url + "/sandbox/events", headers=own, timeout=5).status_code == 200


def test_a_server_stops_with_clients_waiting_and_frees_its_port() -> None:
    server = SandboxServer(Sandbox(options=Options(latency_ms=600_000)))
    server.start()
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
    connection.request("POST", "/2/httpapi", b"{}", {"Content-Type": "application/json"})
    time.sleep(0.05)
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive(), "it waits for its client"
    connection.close()
    assert address.port is not None
    with SandboxServer(Sandbox(), port=address.port) as again:
        assert requests.get(again.url, timeout=5).status_code == 200


def test_a_taken_port_is_an_error_of_the_caller(server: SandboxServer) -> None:
    with pytest.raises(OSError, match="in use"):
        SandboxServer(Sandbox(), port=server.port).start()


@pytest.mark.slow
def test_an_export_arrives_whole_while_others_upload_and_one_that_is_given_up_harms_nobody() -> None:
    sandbox = Sandbox(lambda: 1_790_000_000.0, options=Options(throttle=False, export_delay_hours=0))
    with SandboxServer(sandbox) as server:
        for batch in range(4):
            events = [
                {"event_type": "x", "user_id": f"user-{number}", "insert_id": f"{batch}-{number}", "time": 1,
                 "event_properties": {"noise": f"{number * 7919 % 10_007:05}" * 40}}
                for number in range(2_000)
            ]  # fmt: skip
            content = {"api_key": KEY, "events": events}
            assert requests.post(server.batch_endpoint, json=content, timeout=10).status_code == 200
        asked = {"start": "20260101T00", "end": "20261231T23"}
        url = f"{server.url}/api/2/export"
        with requests.get(url, params=asked, auth=(KEY, "secret"), timeout=10, stream=True) as given_up:
            next(given_up.iter_content(1_000))
        with requests.get(url, params=asked, auth=(KEY, "secret"), timeout=10, stream=True) as answer:
            length = int(answer.headers["Content-Length"])
            pieces = answer.iter_content(10_000)
            received = next(pieces)
            assert requests.post(server.endpoint, json=body("later"), timeout=5).status_code == 200
            received += b"".join(pieces)
    assert len(received) == length
    with zipfile.ZipFile(io.BytesIO(received)) as archive:
        assert archive.testzip() is None
        lines = [line for name in archive.namelist() for line in gzip.decompress(archive.read(name)).splitlines()]
    assert len({orjson.loads(line)["$insert_id"] for line in lines}) == 8_000
