"""One HTTP request to Amplitude, and what can happen to it on the way."""

from __future__ import annotations

import gzip
import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import certifi

MAX_ANSWER_BYTES = 4_000_000
"""An answer longer than this is no answer of Amplitude's."""

GZIP_LEVEL = 5
"""Takes a seventh of the bytes; 1 takes a sixth at half of the time, 6 little less at more of it."""

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 5.0
"""A connection that was idle for longer is not used again: the other side may be about to close it."""


@dataclass(frozen=True)
class HttpAnswer:
    """A whole answer.

    Attributes:
        status: the HTTP status.
        body: as it came.
        headers: names in lower case.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NoAnswer(Exception):  # an outcome like an answer, that happens to be raised
    """No whole answer came.

    Attributes:
        kind: ``refused``, ``tls``, ``timeout``, ``reset``, ``truncated``, ``late``, ``bad_address`` or ``failed``.
        maybe_stored: whether the request may have reached Amplitude.
    """

    def __init__(self, kind: str, *, maybe_stored: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.maybe_stored = maybe_stored


class Transport(Protocol):
    """Posts a JSON body."""

    def post(self, url: str, body: bytes) -> HttpAnswer:
        """Posts ``body`` and waits for the whole answer; follows no redirect.

        Raises:
            NoAnswer: none came, or half of one.
        """

    def close(self) -> None:
        """Closes the connections that nobody uses."""


class HttpTransport:
    """Posts over HTTP/1.1 with kept-alive connections, one a thread. It knows of no proxy and follows no redirect.

    Args:
        timeout_seconds: for a whole request, its answer included; what trickles in is cut off too.
        compress: whether bodies go gzipped.
    """

    def __init__(self, timeout_seconds: float, *, compress: bool = False) -> None:
        self._timeout = timeout_seconds
        self._compress = compress
        self._local = threading.local()
        self._open: set[_Connection] = set()
        self._lock = threading.Lock()

    def post(self, url: str, body: bytes) -> HttpAnswer:
        """See :class:`Transport`."""
        headers = {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "nami-amp-pipeline"}
        if self._compress:
            body = gzip.compress(body, compresslevel=GZIP_LEVEL)
            headers["Content-Encoding"] = "gzip"
        deadline = time.monotonic() + self._timeout
        connection = self._connect(url, deadline)
        try:
            answer = connection.exchange(body, headers, deadline)
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            raise _no_answer(error) from None
        except BaseException:
            self._drop(connection)
            raise
        if connection.finished:
            self._drop(connection)
        return answer

    def close(self) -> None:
        """Closes the connections of all threads."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _connect(self, url: str, deadline: float) -> _Connection:
        known: _Connection | None = getattr(self._local, "connection", None)
        if known is not None:
            if known.url == url and known.is_usable():
                return known
            self._drop(known)
        try:
            connection = _Connection(url, min(CONNECT_SECONDS, deadline - time.monotonic()))
        except ssl.SSLError:
            raise NoAnswer("tls", maybe_stored=False) from None
        except TimeoutError:
            raise NoAnswer("timeout", maybe_stored=False) from None
        except OSError:
            raise NoAnswer("refused", maybe_stored=False) from None
        except (ValueError, http.client.HTTPException):  # UnicodeError and InvalidURL among them
            raise NoAnswer("bad_address", maybe_stored=False) from None
        self._local.connection = connection
        with self._lock:
            self._open.add(connection)
        return connection

    def _drop(self, connection: _Connection) -> None:
        connection.close()
        self._local.connection = None
        with self._lock:
            self._open.discard(connection)


class _Connection:
    """A connection to one address; its socket obeys the deadline of the request at hand."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self.finished = False
        parts = urlsplit(url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if any(character <= " " or character > "~" for character in self._target):
            raise ValueError("the path holds characters that a request line cannot")
        self._http: http.client.HTTPConnection
        if parts.scheme == "https":
            self._http = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=max(0.001, timeout), context=_tls()
            )
        else:
            self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=max(0.001, timeout))
        self._http.auto_open = 0
        self._http.connect()
        self._socket: socket.socket = self._http.sock
        self._guard = _Deadlined(self._socket)
        self._http.sock = self._guard
        self._used_at = time.monotonic()

    def exchange(self, body: bytes, headers: Mapping[str, str], deadline: float) -> HttpAnswer:
        """Posts, and reads the whole answer."""
        self._guard.deadline = deadline
        self._http.request("POST", self._target, body, dict(headers))
        with self._http.getresponse() as response:
            if self._guard.ended:  # http.client takes that for the end of the headers, and there could be a 200 above
                raise http.client.IncompleteRead(b"")
            read = response.read(MAX_ANSWER_BYTES + 1)
            # Nothing, of which nobody said that it is all, may be half of an answer too.
            silent = not read and response.length is None and not response.chunked
            if len(read) > MAX_ANSWER_BYTES or response.length or silent:
                raise http.client.IncompleteRead(b"")
            self.finished = response.will_close
            self._used_at = time.monotonic()
            return HttpAnswer(response.status, read, {name.lower(): value for name, value in response.headers.items()})

    def is_usable(self) -> bool:
        """Whether the other side still seems to be there: nothing has come that nobody asked for, such as an end."""
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Closes it."""
        self._http.close()
        self._socket.close()


class _Deadlined:
    """A socket whose every operation ends by a deadline, however little comes at a time."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self.deadline = time.monotonic()
        self.ended = False

    def left(self) -> float:
        """Seconds to the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        return left

    def sendall(self, data: Any) -> None:
        """Sends all; the timeout of a socket is for the whole call here."""
        self._inner.settimeout(self.left())
        self._inner.sendall(data)

    def makefile(self, _mode: str, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        """What the answer is read from."""
        return io.BufferedReader(_Reader(self, self._inner))

    def close(self) -> None:
        """Nothing: http.client closes what is not kept before it has read the answer; its connection closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, guard: _Deadlined, inner: socket.socket) -> None:
        self._guard = guard
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._inner.settimeout(self._guard.left())
        size = self._inner.recv_into(buffer)
        self._guard.ended = size == 0
        return size


def _tls() -> ssl.SSLContext:
    with _tls_lock:
        if not _tls_context:
            _tls_context.append(ssl.create_default_context(cafile=certifi.where()))
        return _tls_context[0]


_tls_lock = threading.Lock()
_tls_context: list[ssl.SSLContext] = []  # made once: reading the certificates takes 20 ms


def _no_answer(error: Exception) -> NoAnswer:
    if isinstance(error, TimeoutError):
        return NoAnswer("timeout", maybe_stored=True)
    if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
        return NoAnswer("truncated", maybe_stored=True)
    return NoAnswer("reset", maybe_stored=True)
