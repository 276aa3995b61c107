"""Checks whether an endpoint is reachable and accepts a key, with requests that cannot store anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from nami_amp_pipeline.delivery.destination import Outcome, Probe
from nami_amp_pipeline.delivery.probing import ask, reach
from nami_amp_pipeline.delivery.transport import HttpAnswer, Request, Transport
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    from nami_amp_pipeline.amplitude.target import Amplitude


def probe(amplitude: Amplitude, endpoint: str, api_key: Secret | None, transport: Transport) -> Probe:
    """Asks an endpoint for its headers, or whether it accepts a key.

    Amplitude looks at the key before it looks at the events, and refuses an event without ``event_type``: so a
    refusal of the event is the good answer.
    """
    if api_key is None:
        return reach(endpoint, transport)
    key = api_key

    def classify(answer: HttpAnswer) -> tuple[str, str]:
        kind, message = _classify(amplitude, endpoint, answer)
        return kind, amplitude.redact(message, key)

    body = orjson.dumps({"api_key": key.reveal(), "events": [{}]})
    return ask(Request(endpoint, body), transport, classify)


def _classify(amplitude: Amplitude, endpoint: str, answer: HttpAnswer) -> tuple[str, str]:
    """What is wrong in a word, and the answer in a few."""
    verdict = amplitude.judge(answer, [("",)], now=0.0)
    if verdict.outcome is Outcome.HALT:
        if verdict.reason.startswith("invalid_api_key"):
            return (
                "unknown_key",
                f"{endpoint} does not know the API key: check that it belongs to this project and this region",
            )
        return "other", f"{endpoint}: {verdict.reason}"
    if answer.status == 200 or (answer.status == 400 and verdict.outcome is not Outcome.AGAIN):
        return "", f"ok: {endpoint} accepts the API key"
    if answer.status == 429:
        return "other", f"{endpoint} throttles requests right now (429), so the key was not checked: try again later"
    if answer.status == 403:
        return "other", f"{endpoint} blocks requests from this machine (403): check firewall and region"
    return "other", f"{endpoint} answered {answer.status}: not an answer of Amplitude's HTTP API, try again later"
