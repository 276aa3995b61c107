"""A receiver over real HTTP that has bad days: what suites of destinations post to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal

CUT: Final = -1
"""In place of a status: the connection breaks, and no answer comes."""


@dataclass(frozen=True)
class Posted:
    """A request as it came.

    Attributes:
        method: ``POST`` or ``HEAD``.
        path: of the URL.
        headers: names in lower case.
        body: as it came.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the receiver answers.

    Attributes:
        status: the HTTP status, or :data:`CUT`.
        body: of the answer.
        headers: besides its length.
        after: seconds to wait first.
    """

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0


Fault = Literal["", "error", "busy", "cut", "cut_stored", "late_stored"]
"""What goes wrong with a request: nothing; 500; 429; the connection breaks before anything is stored, or after all is;
the answer comes too late, and all is stored."""


class Receiver:
    """Listens at a loopback address until it is closed.

    Args:
        answer: what it answers to a POST; called by several threads at once.

    Attributes:
        url: its address.
        broken: what a call of ``answer`` ran into, for the suite to raise.
    """

    def __init__(self, answer: Callable[[Posted], Answer]) -> None:
        self.broken: list[BaseException] = []
        self._stop = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._send(Answer(body=b""))

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name.lower(): value for name, value in self.headers.items()}
                posted = Posted("POST", self.path, headers, self.rfile.read(length))
                try:
                    self._send(answer(posted))
                except (OSError, ValueError):
                    self.close_connection = True
                except BaseException as error:  # noqa: BLE001 - a thread's error is the suite's
                    owner.broken.append(error)
                    self._send(Answer(500, b""))

            def _send(self, given: Answer) -> None:
                if given.after:
                    owner._stop.wait(given.after)
                if given.status == CUT:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response_only(given.status)
                for name, value in {"Content-Length": str(len(given.body)), **given.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(given.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/events"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Memory:
    """What a receiver has stored, by insert id; it recognises repeats, and notices what must not be.

    Attributes:
        texts: of each stored event, as it first came.
        order: insert ids as they were first stored.
        bodies: of all requests, in the order in which they came.
        complaints: what must not have happened.
    """

    def __init__(self, user_of: Mapping[str, str]) -> None:
        self.texts: dict[str, bytes] = {}
        self.order: list[str] = []
        self.bodies: list[bytes] = []
        self.complaints: list[str] = []
        self._user_of = user_of
        self._seen: dict[str, bytes] = {}
        self._batches: dict[tuple[str, ...], bytes] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, events: Mapping[str, bytes], body: bytes) -> set[str]:
        """Notes a request as under way; returns its users."""
        users = {self._user_of[ident] for ident in events if ident in self._user_of}
        with self._lock:
            self.bodies.append(body)
            if users & self._busy:
                self.complaints.append("two requests with the same user were under way at once")
            self._busy |= users
            if self._batches.setdefault(tuple(events), body) != body:
                self.complaints.append("a repeat was not the same bytes")
            for ident, text in events.items():
                if self._seen.setdefault(ident, text) != text:
                    self.complaints.append(f"event {ident} was not the same when it came again")
        return users

    def end(self, users: set[str]) -> None:
        """Notes it as answered."""
        with self._lock:
            self._busy -= users

    def store(self, events: Mapping[str, bytes]) -> None:
        """Stores what it does not have yet."""
        with self._lock:
            for ident, text in events.items():
                if ident not in self.texts:
                    self.texts[ident] = text
                    self.order.append(ident)


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for something that happens by itself.

    Raises:
        AssertionError: it does not.
    """
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
