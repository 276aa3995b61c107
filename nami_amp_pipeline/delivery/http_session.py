"""Sessions of `requests` whose connections are guarded; proxy and certificates are those of the environment.

``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE`` mean what
they mean to `requests`. ``.netrc`` is never read, no cookie is kept, no redirect followed, nothing sent twice.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection

from nami_amp_pipeline.delivery.exchange import Exchange, current, is_exchanging
from nami_amp_pipeline.delivery.guarded_socket import GuardedSocket

for _name in ("urllib3.connection", "urllib3.connectionpool", "urllib3.util.retry"):
    # They log addresses, and the address of a webhook is a secret.
    logging.getLogger(_name).addFilter(lambda _record: not is_exchanging())

CONNECT_SECONDS = 10.0
_MOST_INTERIM = 100
_LONGEST_LINE = 65_536


# -- what the environment says ---------------------------------------------------------------------------------------


def proxy_of(url: str) -> str | None:
    """The proxy for an address, with its password if it has one; None without a proxy."""
    return select_proxy(url, get_environ_proxies(url, no_proxy=None))


def without_password(address: str) -> str:
    """A proxy's address as it may be shown."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{parts.hostname or '?'}{port}"


def ca_bundle() -> str:
    """The file (or folder) with the certificates that are trusted."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()


@lru_cache(maxsize=8)  # reading the certificates takes 20 ms
def _context_of(path: str, _changed: float) -> ssl.SSLContext:
    is_folder = Path(path).is_dir()
    return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)


def tls_context() -> ssl.SSLContext:
    """The TLS context with the trusted certificates.

    Raises:
        OSError: the bundle cannot be read or has no certificates.
    """
    path = ca_bundle()
    with _context_lock:
        return _context_of(path, Path(path).stat().st_mtime)


_context_lock = threading.Lock()


# -- connections -----------------------------------------------------------------------------------------------------


class _Answer(http.client.HTTPResponse):
    """Reads past interim answers (1xx), and takes only an answer that is this request's."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._guard: GuardedSocket = sock

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(_MOST_INTERIM):
            try:
                version, status, reason = super()._read_status()  # type: ignore[misc]
            except http.client.RemoteDisconnected:
                current().note("reset")
                raise
            if not 100 <= status < 200:
                return version, status, reason
            if status == 101:  # no other protocol was requested
                raise current().out_of_step()
            while self.fp.readline(_LONGEST_LINE + 1).strip(b"\r\n"):
                pass
            if self._guard.broke_off:
                raise http.client.IncompleteRead(b"")
        raise current().out_of_step()

    def begin(self) -> None:
        super().begin()
        guard, exchange = self._guard, current()
        if guard.broke_off:  # http.client takes that for the end of the headers, and there could be a 200 above
            raise http.client.IncompleteRead(b"")
        lengths = {text.strip() for text in self.msg.get_all("content-length", [])}
        coded = self.msg.get_all("transfer-encoding", [])
        if len(lengths) + bool(coded) > 1 or not all(text.isascii() and text.isdigit() for text in lengths):
            raise exchange.out_of_step()  # where it ends is not certain
        if (guard.early or not exchange.complete) and (guard.answers or self.status < 400):
            raise exchange.out_of_step()  # a request that is not there yet can be refused, but not accepted


class _Guarded:
    """What the connections for http and https have in common."""

    auto_open = 0  # a connection is made before a request, and never in the middle of it

    def _new_conn(self) -> socket.socket:
        exchange, self_ = current(), cast("HTTPConnection", self)
        try:
            made = _connected(exchange, self_._dns_host, self_.port)
        except TimeoutError:
            exchange.note("timeout")
            raise
        except OSError as error:
            exchange.note("no_connection", error.strerror)
            raise
        sys.audit("http.client.connect", self, self_.host, self_.port)
        return made

    def _tunnel(self) -> None:
        """Asks the proxy for a tunnel to the host; its answer obeys the deadline too."""
        exchange, self_ = current(), cast("HTTPConnection", self)
        plain = self_.sock
        guard = GuardedSocket(plain, for_proxy=True)
        self_.sock = cast("socket.socket", guard)
        try:
            super()._tunnel()  # type: ignore[misc]
        except (OSError, http.client.HTTPException, ValueError) as error:
            refusal = str(error) if str(error).startswith("Tunnel connection failed") else None
            exchange.note("proxy", refusal and refusal.removeprefix("Tunnel connection failed: ")[:80])
            guard.kill()
            raise
        if guard.broke_off:
            exchange.note("proxy")
            raise OSError("the proxy's answer was cut off")
        if guard.buffer:
            raise exchange.out_of_step()
        self_.sock = plain
        plain.settimeout(exchange.left())

    def connect(self) -> None:
        """Connects, if the request may still be sent."""
        exchange, self_ = current(), cast("HTTPConnection", self)
        exchange.check_may_send()
        try:
            super().connect()  # type: ignore[misc]
        except ssl.SSLError as error:
            exchange.note("tls", getattr(error, "verify_message", None) or error.reason)
            raise
        except TimeoutError:
            exchange.note("timeout")
            raise
        except OSError:
            exchange.note("reset")
            raise
        self_.sock = cast("socket.socket", GuardedSocket(self_.sock))

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Sends a request."""
        exchange, self_ = current(), cast("HTTPConnection", self)
        if self_.is_closed:
            self_.connect()
        exchange.socket = cast("GuardedSocket", self_.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]
        exchange.complete = True

    @property
    def is_connected(self) -> bool:
        """Whether it can carry another request."""
        sock = cast("GuardedSocket | None", cast("HTTPConnection", self).sock)
        return sock is not None and sock.is_usable()


def _connected(exchange: Exchange, host: str, port: int | None) -> socket.socket:
    """A connection to the first address of a host that answers."""
    trouble: OSError = OSError("the host has no address")
    host = host.strip("[]")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(min(CONNECT_SECONDS, exchange.left()))
            made.connect(address)
            made.settimeout(exchange.left())
        except OSError as error:
            made.close()
            trouble = error
        else:
            return made
    raise trouble


class _HttpConnection(_Guarded, HTTPConnection):
    response_class = _Answer


class _HttpsConnection(_Guarded, HTTPSConnection):
    response_class = _Answer


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


_POOLS = {"http": _HttpPool, "https": _HttpsPool}


# -- sessions --------------------------------------------------------------------------------------------------------


_Route = tuple[PoolManager, "dict[str, Any] | None", "dict[str, str]"]
"""The pool of connections, its arguments, and the proxies by scheme."""


class Proxies:
    """What the environment says about proxies, read once for each address: it takes half as long as a request."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, str], str | None]] = {}

    def of(self, url: str) -> tuple[dict[str, str], str | None]:
        """The proxies by scheme, and the one for this address, if any."""
        if url not in self._known:
            proxies = get_environ_proxies(url, no_proxy=None)
            self._known[url] = proxies, select_proxy(url, proxies)
        return self._known[url]


class _Adapter(HTTPAdapter):
    """Few, guarded connections, without retries."""

    def __init__(self, proxies: Proxies) -> None:
        super().__init__(pool_connections=4, pool_maxsize=1, max_retries=Retry(0, read=False, redirect=False))
        self._proxies = proxies
        self._routes: dict[str, _Route] = {}

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the pool has its context, which holds the certificates already."""

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        url = str(request.url)
        pool, options, _ = self._route(url)
        return pool.connection_from_url(url, pool_kwargs=options)

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return super().request_url(request, self._route(str(request.url))[2])

    def _route(self, url: str) -> _Route:
        """The route to an address."""
        if url not in self._routes:
            self._routes[url] = self._find_route(url)
        return self._routes[url]

    def _find_route(self, url: str) -> _Route:
        proxies, proxy = self._proxies.of(url)
        try:
            options = {"ssl_context": tls_context()} if url.startswith("https:") else None
        except OSError:
            current().note("tls", f"the certificates of {ca_bundle()} cannot be read")
            raise
        if proxy is None:
            return self.poolmanager, options, proxies
        if proxy.lower().startswith("socks"):
            current().note("proxy")
            raise ValueError("SOCKS proxies are not supported")
        more = {"proxy_ssl_context": tls_context()} if proxy.startswith("https:") else {}
        return self.proxy_manager_for(proxy if "://" in proxy else f"http://{proxy}", **more), options, proxies


def guarded_session(proxies: Proxies) -> requests.Session:
    """A session for one thread, within :func:`~nami_amp_pipeline.delivery.exchange.exchanging` only.

    Args:
        proxies: shared by the sessions of several threads.
    """
    session = requests.Session()
    session.trust_env = False  # it would read .netrc
    adapter = _Adapter(proxies)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def prepared(url: str, headers: Mapping[str, str], body: bytes, method: str = "POST") -> requests.PreparedRequest:
    """A request as it goes.

    Raises:
        ValueError: the address is not valid.
    """
    request = _prepared(url, method).copy()
    request.headers.update(headers)
    if body or method == "POST":
        request.body = body
        request.headers["Content-Length"] = str(len(body))
    return request


@lru_cache(maxsize=256)
def _prepared(url: str, method: str) -> requests.PreparedRequest:
    if any(character <= " " or character > "~" for character in url):
        raise ValueError("the address contains characters that are not allowed in a request line")
    return requests.Request(method, url).prepare()
