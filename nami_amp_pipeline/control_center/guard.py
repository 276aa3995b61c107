"""What stands before every page: the host, the size and the origin of a request; the headers of an answer.

A form on another site can post to this one with the visitor's cookie. Browsers say where a request comes from
(``Sec-Fetch-Site``, ``Origin``), and no page can make them lie, so no form needs a token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES: Final = 256 * 1024
"""The largest form; the largest of this site has a few kilobytes."""

_DIGITS: Final = 12

_LONGEST_PATH: Final = 4_000
"""Characters; a name of an app, or a number, that is longer is none."""

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

METRICS: Final = "/metrics"
"""For programs, which may reach this machine under any name; that page looks itself who asks."""

_SAFE: Final = ("GET", "HEAD")

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass
class Guard:
    """An ASGI application around another.

    Args:
        app: what is guarded.
        hosts: the names that the site answers to, in lower case, without port.
        is_secure: whether browsers come by https.
    """

    app: ASGIApp
    hosts: Collection[str]
    is_secure: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request, or passes it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if self.is_secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        await self.app(scope, _limited(receive), guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host_of(host) not in self.hosts and not (scope["path"] == METRICS and scope["method"] in _SAFE):
            return PlainTextResponse("This address is not one of the Control Center's.\n", 421)
        if len(scope["path"]) > _LONGEST_PATH:
            return PlainTextResponse("The address is too long.\n", 414)
        if scope["method"] in _SAFE:
            return None
        length = headers.get("content-length", "0")
        if not length.isdecimal() or not length.isascii():
            return PlainTextResponse("The length of the form is not a number.\n", 400)
        if len(length) > _DIGITS or int(length) > MOST_BYTES:
            return PlainTextResponse("The form is too large.\n", 413)
        if not _is_own(headers, host):
            return PlainTextResponse("Refused: the form was sent by another site, or by no browser.\n", 403)
        return None


def _is_own(headers: Headers, host: str) -> bool:
    """Whether a request that changes something was made by a page of this site."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is None:  # an older browser
        return origin is not None and _netloc(origin) == host.lower()
    # Where no referrer is sent, as here, the origin of a form is "null", of this site as of any other.
    return site == "same-origin" and (origin in (None, "null") or _netloc(origin) == host.lower())


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def host_of(host: str) -> str:
    """The name in a Host header, in lower case; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _limited(receive: Receive) -> Receive:
    """Reads no more than the largest form; what is beyond looks as if the browser had gone away."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return {"type": "http.disconnect"} if seen > MOST_BYTES else message

    return limited
