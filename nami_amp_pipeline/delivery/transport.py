"""An HTTP request and its possible outcomes; this module knows no destination."""

from __future__ import annotations

import gzip
import http.client
import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import requests
import urllib3

from nami_amp_pipeline.delivery.exchange import Exchange, NoAnswer, exchanging
from nami_amp_pipeline.delivery.http_session import Proxies, guarded_session, prepared

MAX_ANSWER_BYTES = 4_000_000
"""A longer answer does not come from an API like this."""

GZIP_LEVEL = 5
"""Takes a seventh of the bytes; 1 takes a sixth at half of the time, 6 little less at more of it."""

JSON_HEADERS: Mapping[str, str] = {
    "Content-Type": "application/json",
    "Accept": "*/*",
    "User-Agent": "nami-amp-pipeline",
}


@dataclass(frozen=True)
class Request:
    """A request to be posted.

    Attributes:
        url: where to.
        body: byte for byte, before compression.
        headers: all that are sent, but for those of the framing.
        send_until: the monotonic time after which no byte of it may leave this process, in seconds.
        method: ``POST``, or ``HEAD`` to check that the server is reachable.
        may_compress: whether the server reads a compressed body.
    """

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: JSON_HEADERS)
    send_until: float = math.inf
    method: str = "POST"
    may_compress: bool = True


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


class Transport(Protocol):
    """Posts requests."""

    def post(self, request: Request) -> HttpAnswer:
        """Posts a request and waits for the whole answer; follows no redirect and sends nothing twice.

        Raises:
            NoAnswer: no answer, an incomplete answer, or bytes that cannot be this request's answer.
        """

    def close(self) -> None:
        """Closes the connections."""


class HttpTransport:
    """Posts with `requests`, one session a thread, through the proxy and with the certificates of the environment.

    Args:
        timeout_seconds: timeout of a whole request, including its answer; it also ends slow answers.
        compress: whether bodies are gzipped.
    """

    def __init__(self, timeout_seconds: float, *, compress: bool = False) -> None:
        self._timeout = timeout_seconds
        self._compress = compress
        self._proxies = Proxies()
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._under_way: set[Exchange] = set()
        self._lock = threading.Lock()

    def post(self, request: Request) -> HttpAnswer:
        """See :class:`Transport`."""
        if self._compress and request.may_compress and request.body:
            headers = {**request.headers, "Content-Encoding": "gzip"}
            request = replace(request, body=gzip.compress(request.body, compresslevel=GZIP_LEVEL), headers=headers)
        exchange = Exchange(time.monotonic() + self._timeout, request.send_until)
        with self._lock:
            self._under_way.add(exchange)
        try:
            with exchanging(exchange):
                return self._exchange(exchange, request)
        finally:
            with self._lock:
                self._under_way.discard(exchange)

    def _exchange(self, exchange: Exchange, request: Request) -> HttpAnswer:
        response: requests.Response | None = None
        try:
            adapter = self._session().get_adapter(request.url)
            going = prepared(request.url, request.headers, request.body, request.method)
            response = adapter.send(going, stream=True, timeout=self._timeout)
            content = _read(response.raw, request.method)
            if request.method == "HEAD":
                exchange.abort()  # some servers send a body all the same
            else:
                exchange.finish()
            return HttpAnswer(response.status_code, content, {k.lower(): v for k, v in response.headers.items()})
        except NoAnswer:
            exchange.abort()
            raise
        except (OSError, ValueError, requests.RequestException, urllib3.exceptions.HTTPError,
                http.client.HTTPException) as error:  # fmt: skip
            exchange.abort()
            logging.getLogger("nami_amp_pipeline").debug("no answer: %s", type(error).__name__)
            raise exchange.no_answer() from None
        except BaseException:
            exchange.abort()
            raise
        finally:
            if response is not None:
                response.close()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = guarded_session(self._proxies)
            with self._lock:
                self._sessions.append(session)
        return session

    def close(self) -> None:
        """Closes the connections of all threads; requests under way are broken off."""
        with self._lock:
            for session in self._sessions:
                session.close()
            for exchange in self._under_way:
                exchange.break_off()
            self._sessions.clear()
        self._local = threading.local()


def _read(raw: urllib3.BaseHTTPResponse, method: str) -> bytes:
    """The whole body.

    Raises:
        http.client.IncompleteRead: it was cut off, is too long, or has no declared end.
    """
    content = b""
    while part := raw.read(MAX_ANSWER_BYTES + 1 - len(content), decode_content=True):
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise http.client.IncompleteRead(b"")
    said = "content-length" in raw.headers or "transfer-encoding" in raw.headers
    if not content and not said and method != "HEAD" and raw.status not in (204, 304):
        raise http.client.IncompleteRead(b"")  # an empty body without a declared end may be half of an answer
    return content


__all__ = ["HttpAnswer", "HttpTransport", "NoAnswer", "Request", "Transport"]
