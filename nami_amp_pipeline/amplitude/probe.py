"""Checks whether an endpoint is reachable and accepts a key, with requests that cannot store anything."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import orjson

from nami_amp_pipeline.delivery.destination import Outcome, Probe
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request, Transport
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    from nami_amp_pipeline.amplitude.target import Amplitude

_NO_ANSWER = {
    "no_connection": "no server listens there, or the host name is unknown",
    "proxy": "the proxy does not let the request through",
    "timeout": "no answer in time",
    "tls": "TLS failed",
    "reset": "the connection broke",
    "truncated": "the answer was cut off, or is not HTTP",
    "out_of_step": "the host answered, but not with one HTTP answer per request",
    "bad_address": "the address is not valid",
}


def probe(amplitude: Amplitude, endpoint: str, api_key: Secret | None, transport: Transport) -> Probe:
    """Asks an endpoint for its headers, or whether it accepts a key.

    Amplitude looks at the key before it looks at the events, and refuses an event without ``event_type``: so a
    refusal of the event is the good answer.
    """
    headers = amplitude.headers(api_key) if api_key is not None else {"User-Agent": "nami-amp-pipeline"}
    request = Request(endpoint, b"", headers, method="HEAD")
    if api_key is not None:
        request = Request(endpoint, orjson.dumps({"api_key": api_key.reveal(), "events": [{}]}), headers)
    try:
        answer = transport.post(request)
    except NoAnswer as error:
        why = _NO_ANSWER.get(error.kind, error.kind) + (f": {error.detail}" if error.detail else "")
        return Probe(False, f"cannot reach {endpoint}: {why}")
    date = _seconds(answer.headers.get("date"))
    if api_key is None:
        return Probe(True, f"{endpoint} is reachable", date)
    ok, message = _classify(amplitude, endpoint, answer)
    return Probe(ok, amplitude.redact(message, api_key), date)


def _classify(amplitude: Amplitude, endpoint: str, answer: HttpAnswer) -> tuple[bool, str]:
    verdict = amplitude.judge(answer, [("",)], now=0.0)
    if verdict.outcome is Outcome.HALT:
        if verdict.reason.startswith("invalid_api_key"):
            return False, f"{endpoint} does not know the API key: check that it belongs to this project and this region"
        return False, f"{endpoint}: {verdict.reason}"
    if answer.status == 200 or (answer.status == 400 and verdict.outcome is not Outcome.AGAIN):
        return True, f"ok: {endpoint} accepts the API key"
    if answer.status == 429:
        return False, f"{endpoint} throttles requests right now (429), so the key was not checked: try again later"
    if answer.status == 403:
        return False, f"{endpoint} blocks requests from this machine (403): check firewall and region"
    return False, f"{endpoint} answered {answer.status}: not an answer of Amplitude's HTTP API, try again later"


def _seconds(date: str | None) -> float | None:
    try:
        moment = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
