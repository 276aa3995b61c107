"""A server of raw sockets, for answers that no HTTP library would give."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BODY = b'{"code":200}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY
Behaviour = Callable[[socket.socket, int], None]
"""Does as it likes with a connection, once a request has come whole; the number is counted over all connections."""


@contextmanager
def raw_server(
    behave: Behaviour,
    *,
    tls: Path | None = None,
    after_head: Behaviour | None = None,
    at_once: Callable[[socket.socket], None] | None = None,
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads each request whole, then does as told with the connection; its address and the requests.

    Args:
        behave: what it does then.
        tls: the file of a certificate for ``localhost``, with its key.
        after_head: what it does between a request's head and its body.
        at_once: what it does as soon as somebody connects.
    """
    requests: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = []
    workers: list[threading.Thread] = []
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)

    def serve(connection: socket.socket) -> None:
        try:
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
                open_sockets.append(connection)
            if at_once is not None:
                at_once(connection)
            while request := read_request(connection, after_head, len(requests) + 1):
                requests.append(request)
                behave(connection, len(requests))
        except (OSError, ValueError):
            pass
        finally:
            connection.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(connection)
            workers.append(threading.Thread(target=serve, args=(connection,), daemon=True))
            workers[-1].start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield f"https://localhost:{port}/2/httpapi" if tls else f"http://127.0.0.1:{port}/2/httpapi", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in open_sockets:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for worker in workers:  # it closes its socket itself: a number that is free is soon another socket's
            worker.join(5)


def read_request(connection: socket.socket, after_head: Behaviour | None = None, number: int = 0) -> bytes:
    """A request, its head included; empty once there are no more."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65_536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    if after_head is not None:
        after_head(connection, number)
    while len(body) < length:
        chunk = connection.recv(65_536)
        if not chunk:
            return b""
        body += chunk
    return head + b"\r\n\r\n" + body


def send(*parts: bytes, pause: float = 0.0, close: bool = True) -> Behaviour:
    """Sends parts, each after a pause, and closes."""

    def behave(connection: socket.socket, _number: int) -> None:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        if close:
            connection.shutdown(socket.SHUT_RDWR)

    return behave


def answer(status: int, body: bytes, *more: bytes) -> bytes:
    """A whole answer."""
    head = [b"HTTP/1.1 %d Something" % status, b"Content-Length: %d" % len(body), *more]
    return b"\r\n".join(head) + b"\r\n\r\n" + body
