"""Asks an endpoint one question, and makes a few words of the answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

from nami_amp_pipeline.delivery.destination import Probe
from nami_amp_pipeline.delivery.transport import JSON_HEADERS, HttpAnswer, NoAnswer, Request, Transport

_NO_ANSWER: Final = {
    "no_connection": "no server listens there, or the host name is unknown",
    "proxy": "the proxy does not let the request through",
    "timeout": "no answer in time",
    "tls": "TLS failed",
    "reset": "the connection broke",
    "truncated": "the answer was cut off, or is not HTTP",
    "out_of_step": "the host answered, but not with one HTTP answer per request",
    "bad_address": "the address is not valid",
}


def reach(endpoint: str, transport: Transport) -> Probe:
    """Whether an endpoint is reachable."""
    return ask(
        Request(endpoint, b"", {"User-Agent": JSON_HEADERS["User-Agent"]}, method="HEAD"),
        transport,
        lambda _: ("", f"{endpoint} is reachable"),
    )


def ask(request: Request, transport: Transport, classify: Callable[[HttpAnswer], tuple[str, str]]) -> Probe:
    """Posts a request that stores nothing.

    Args:
        request: to post.
        transport: which posts it.
        classify: what is wrong by an answer, in a word, and the answer in a few words without the key.
    """
    try:
        answer = transport.post(request)
    except NoAnswer as error:
        why = _NO_ANSWER.get(error.kind, error.kind) + (f": {error.detail}" if error.detail else "")
        return Probe(False, f"cannot reach {request.url}: {why}", kind="no_answer")
    kind, message = classify(answer)
    return Probe(not kind, message, _seconds(answer.headers.get("date")), kind)


def _seconds(date: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
