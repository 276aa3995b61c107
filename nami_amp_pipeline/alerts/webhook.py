"""Posts a message to an incoming webhook; Slack, Mattermost, Rocket.Chat and many others take the same."""

from __future__ import annotations

import requests

from nami_amp_pipeline.errors import Retriable

TIMEOUT_SECONDS = 10.0


class WebhookFailed(Retriable):
    """The webhook did not take a message; what it says names no address, which is a secret."""


def post(url: str, text: str) -> None:
    """Posts ``{"text": …}`` and follows no redirect.

    Raises:
        WebhookFailed: it was not taken, or nobody knows.
    """
    try:
        answer = requests.post(url, json={"text": text}, timeout=TIMEOUT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise WebhookFailed(f"the alert webhook cannot be reached: {type(error).__name__}") from None
    if answer.status_code // 100 != 2:
        raise WebhookFailed(f"the alert webhook answered with status {answer.status_code}")
