"""Posts a message to an incoming webhook; Slack, Mattermost, Rocket.Chat and many others take the same."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import orjson

from nami_amp_pipeline.delivery.transport import HttpTransport, NoAnswer, Request
from nami_amp_pipeline.errors import NamiAmpError

TIMEOUT_SECONDS = 10.0


class WebhookFailed(NamiAmpError):
    """The webhook did not take a message; what it says names no address, which is a secret."""


def post(url: str, text: str) -> None:
    """Posts ``{"text": …}``, over https or to this machine; follows no redirect and reads no ``.netrc``.

    Raises:
        WebhookFailed: it was not taken, or nobody knows.
    """
    if not _is_protected(url):
        raise WebhookFailed("the alert webhook is not used: its address must begin with https://")
    transport = HttpTransport(TIMEOUT_SECONDS)
    try:
        answer = transport.post(Request(url, orjson.dumps({"text": text})))
    except NoAnswer as error:
        raise WebhookFailed(f"the alert webhook cannot be reached: {error.kind}") from None
    finally:
        transport.close()
    if answer.status // 100 != 2:
        raise WebhookFailed(f"the alert webhook answered with status {answer.status}")


def _is_protected(url: str) -> bool:
    """Whether nobody on the way can read what is posted there."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme == "https":
        return True
    if parts.scheme != "http":
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
