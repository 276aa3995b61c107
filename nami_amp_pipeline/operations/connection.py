"""Checks whether an endpoint accepts a key, with a request that cannot store anything."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nami_amp_pipeline.delivery.transport import HttpTransport
from nami_amp_pipeline.redaction import Redactor

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.destination import Destination, Probe
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.settings import Settings

ASK_SECONDS: Final = 10.0
"""How long a person who looks at a page waits for an endpoint."""


@dataclass(frozen=True)
class Tested:
    """The result of testing a key.

    Attributes:
        integration: ``<app_id>/<name>``.
        ok: whether the endpoint accepts the key.
        result: its answer in a few words, without the key.
    """

    integration: str
    ok: bool
    result: str


@dataclass(frozen=True)
class KeyTrial:
    """The result of trying a key that no integration has yet.

    Attributes:
        kind: empty if the endpoint accepts it; else ``unknown_key``, ``no_answer`` or ``other``.
        message: its answer in a few words, without the key.
        milliseconds: how long the answer took.
        elsewhere: the name of the destination's endpoint that does accept it, where this one does not know it.
    """

    kind: str
    message: str
    milliseconds: int
    elsewhere: str | None = None


def check_connection(
    endpoint: str, api_key: Secret, settings: Settings, destination: Destination, own: Collection[Secret] = ()
) -> tuple[bool, str]:
    """Whether an endpoint accepts a key, and its answer in a few words; see :func:`try_key`."""
    found = _probe(endpoint, api_key, settings.http_timeout_seconds, destination, own)
    return found.ok, found.message


def try_key(
    endpoint: str, api_key: Secret, settings: Settings, destination: Destination, own: Collection[Secret] = ()
) -> KeyTrial:
    """Whether an endpoint accepts a key; if it does not know the key, the destination's other endpoints are asked.

    Args:
        endpoint: the URL, which the caller has checked.
        api_key: the key.
        settings: of this process.
        destination: whose endpoint it is, with the values of its own fields.
        own: the secrets among these, which no message may hold.
    """
    started = time.monotonic()
    seconds = min(ASK_SECONDS, settings.http_timeout_seconds)
    found = _probe(endpoint, api_key, seconds, destination, own)
    took = int((time.monotonic() - started) * 1_000)
    elsewhere = None
    if found.kind == "unknown_key":
        others = destination.endpoints
        known = endpoint in others.values()  # a key that was meant for another server is none of Amplitude's business
        elsewhere = next(
            (
                name
                for name, url in others.items()
                if known and url != endpoint and _probe(url, api_key, seconds, destination, own).ok
            ),
            None,
        )
    return KeyTrial(found.kind, found.message, took, elsewhere)


def _probe(endpoint: str, api_key: Secret, seconds: float, destination: Destination, own: Collection[Secret]) -> Probe:
    transport = HttpTransport(seconds)
    try:
        found = destination.probe(endpoint, api_key, transport)
    finally:
        transport.close()
    return replace(found, message=Redactor(own).clean(found.message)) if own else found
