"""One HTTP request to Amplitude, and what can happen to it on the way."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import requests
import urllib3
from requests.adapters import HTTPAdapter

MAX_ANSWER_BYTES = 4_000_000
"""An answer longer than this is no answer of Amplitude's."""


@dataclass(frozen=True)
class HttpAnswer:
    """A whole answer.

    Attributes:
        status: the HTTP status.
        body: not compressed.
        headers: names in lower case.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NoAnswer(Exception):
    """No whole answer came.

    Attributes:
        kind: ``refused``, ``timeout``, ``reset`` or ``truncated``.
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
        """Closes the connections."""


class HttpTransport:
    """Posts over HTTP with kept-alive connections, one session a thread.

    Args:
        timeout_seconds: for a whole request, its answer included.
        compress: whether bodies go gzipped.
    """

    def __init__(self, timeout_seconds: float, *, compress: bool = False) -> None:
        self._timeout = timeout_seconds
        self._compress = compress
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()

    def post(self, url: str, body: bytes) -> HttpAnswer:
        """See :class:`Transport`."""
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        if self._compress:
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        deadline = time.monotonic() + self._timeout
        try:
            with self._session().post(
                url,
                data=body,
                headers=headers,
                timeout=(min(10.0, self._timeout), self._timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                return HttpAnswer(
                    response.status_code,
                    _read(response.raw, deadline),
                    {name.lower(): value for name, value in response.headers.items()},
                )
        except requests.exceptions.RequestException as error:
            raise _no_answer(error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(error) from None

    def close(self) -> None:
        """Closes the connections of all threads."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False  # no .netrc; a proxy is not for loopback tests to find
            adapter = HTTPAdapter(max_retries=0, pool_connections=4, pool_maxsize=1)
            session.mount("http://", adapter)
            session.mount("https://", adapter)
            self._local.session = session
            with self._lock:
                self._sessions.append(session)
        return session


def _read(raw: urllib3.response.BaseHTTPResponse, deadline: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := raw.read(65_536, decode_content=True):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise NoAnswer("truncated", maybe_stored=True)
        if time.monotonic() > deadline:  # an answer that trickles
            raise NoAnswer("timeout", maybe_stored=True)
    return b"".join(chunks)


def _no_answer(error: Exception) -> NoAnswer:
    text = repr(error)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return NoAnswer("timeout", maybe_stored=False)
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError) or "Read timed out" in text:
        return NoAnswer("timeout", maybe_stored=True)
    if isinstance(error, requests.exceptions.SSLError):
        return NoAnswer("tls", maybe_stored=False)
    if "NewConnectionError" in text or "NameResolutionError" in text or isinstance(error, ConnectionRefusedError):
        return NoAnswer("refused", maybe_stored=False)
    if "IncompleteRead" in text or "ChunkedEncodingError" in text:
        return NoAnswer("truncated", maybe_stored=True)
    return NoAnswer("reset", maybe_stored=True)
