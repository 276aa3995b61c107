"""The receiver of all benchmarks: answers as Amplitude does, keeps what came, and checks it when the clock has stopped.

It runs in a process of its own and spends next to nothing on a request while the clock runs: it reads the body into
memory and answers. Everything else is done afterwards, on demand: see :mod:`bench.checks`.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

import orjson
import pyarrow as pa

from bench.checks import check

RAW_BYTES: Final = 1_500_000_000
"""Bodies beyond this many bytes are kept compressed (LZ4), which costs the receiver about a second a gigabyte."""

_READ: Final = 1 << 18


@dataclass
class Request:
    """One request.

    Attributes:
        body: as it came, or compressed.
        size: bytes of the body on the wire.
        gzipped: whether it came gzipped.
        packed: whether it is kept compressed by the receiver.
        started: when its first bytes were read, in seconds.
        answered: when its answer was about to be written.
    """

    body: Any
    size: int
    gzipped: bool
    packed: bool
    started: float
    answered: float = 0.0


@dataclass
class Received:
    """What came since the last reset, and what it cost.

    Attributes:
        latency: seconds before each answer.
        requests: in order of arrival.
        size: bytes of all bodies.
        cpu: the process's seconds at the last reset.
        lock: around ``requests``.
    """

    latency: float = 0.0
    requests: list[Request] = field(default_factory=list)
    size: int = 0
    cpu: float = field(default_factory=time.process_time)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server:
    """A thread for each connection, HTTP/1.1 with keep-alive.

    Args:
        port: 0 takes a free one.
    """

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.received = Received()

    def serve(self) -> None:
        """Serves until the process ends."""
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            buffer = bytearray()
            while True:
                while (end := buffer.find(b"\r\n\r\n")) < 0:
                    chunk = connection.recv(_READ)
                    if not chunk:
                        return
                    buffer += chunk
                started = time.monotonic()
                head, rest = bytes(buffer[:end]).lower(), buffer[end + 4 :]
                size = _number_after(head, b"content-length:")
                if b"expect: 100-continue" in head:
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = bytearray(size)
                have = min(len(rest), size)
                body[:have] = rest[:have]
                buffer = rest[size:]
                view = memoryview(body)
                while have < size:
                    read = connection.recv_into(view[have:])
                    if not read:
                        return
                    have += read
                path = head.split(b" ", 2)[1]
                answer = self._control(path) if path.startswith(b"/bench/") else self._keep(head, body, started)
                closing = b"connection: close" in head
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"
                    % (len(answer), b"Connection: close\r\n" if closing else b"", answer)
                )
                if closing:
                    return
        except OSError:
            return
        finally:
            connection.close()

    def _keep(self, head: bytes, body: bytearray, started: float) -> bytes:
        received = self.received
        gzipped = b"content-encoding: gzip" in head
        request = Request(body, len(body), gzipped, packed=False, started=started)
        if received.size > RAW_BYTES and not gzipped:
            request.body, request.packed = (len(body), pa.compress(memoryview(body), codec="lz4", asbytes=True)), True
        with received.lock:
            received.requests.append(request)
            received.size += len(body)
        if received.latency:
            time.sleep(received.latency)
        # Counting what is gzipped would mean to inflate it; nobody who posts reads the number.
        ingested = b"" if gzipped else b'"events_ingested":%d,' % body.count(b'"insert_id"')
        request.answered = time.monotonic()
        return b'{"code":200,%s"payload_size_bytes":%d,"server_upload_time":%d}' % (
            ingested,
            len(body),
            int(time.time() * 1000),
        )

    def _control(self, path: bytes) -> bytes:
        if path.startswith(b"/bench/reset"):
            self.received = Received(latency=float(path.partition(b"?latency=")[2] or 0))
            return b"{}"
        facts = {"receiver_cpu": time.process_time() - self.received.cpu, "bytes": self.received.size}
        return orjson.dumps({**facts, **check(self.received.requests)})


def _number_after(head: bytes, name: bytes) -> int:
    at = head.find(name)
    return int(head[at + len(name) :].split(b"\r\n", 1)[0]) if at >= 0 else 0


class Receiver:
    """The receiver's process, for a ``with`` statement.

    Attributes:
        url: where events are posted.
        pid: its process.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.pid = 0

    def __enter__(self) -> Receiver:
        self._process = subprocess.Popen([sys.executable, "-m", "bench.receiver"], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self.pid = self._process.pid
        self._base = f"http://127.0.0.1:{port}"
        self.url = f"{self._base}/2/httpapi"
        return self

    def reset(self, latency: float = 0.0) -> None:
        """Forgets what came; from now on each answer takes ``latency`` seconds."""
        self._get(f"/bench/reset?latency={latency}")

    def report(self) -> dict[str, Any]:
        """What came since the last reset (see :func:`bench.checks.check`), and what it cost the receiver."""
        return dict(orjson.loads(self._get("/bench/report")))

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self._base + path, timeout=600) as answer:
            return bytes(answer.read())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    server = Server(parser.parse_args().port)
    print(server.port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
