"""Asks an endpoint whether it takes an API key, with a request that cannot store anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from nami_amp_pipeline.amplitude.answers import Outcome, judge
from nami_amp_pipeline.amplitude.transport import HttpAnswer, HttpTransport, NoAnswer
from nami_amp_pipeline.redaction import Redactor

if TYPE_CHECKING:
    from nami_amp_pipeline.secrets import Secret
    from nami_amp_pipeline.settings import Settings

_NO_ANSWER = {
    "refused": "nothing listens there, or the name is unknown",
    "timeout": "no answer in time",
    "tls": "no secure connection: the certificate is not accepted",
    "reset": "the connection broke",
    "truncated": "the answer broke off",
}


@dataclass(frozen=True)
class Tested:
    """What an endpoint said of a key.

    Attributes:
        integration: ``<app_id>/<name>``.
        ok: whether it takes the key.
        result: what it said in a few words, without the key.
    """

    integration: str
    ok: bool
    result: str


def check_connection(endpoint: str, api_key: Secret, settings: Settings) -> tuple[bool, str]:
    """Whether an endpoint takes a key, and what it said in a few words.

    Amplitude looks at the key before it looks at the events, and refuses an event without ``event_type``: so a
    refusal of the event is the good answer.
    """
    body = orjson.dumps({"api_key": api_key.reveal(), "events": [{}]})
    transport = HttpTransport(settings.http_timeout_seconds)
    try:
        answer = transport.post(endpoint, body)
    except NoAnswer as error:
        return False, f"cannot reach {endpoint}: {_NO_ANSWER.get(error.kind, error.kind)}"
    finally:
        transport.close()
    ok, said = _classify(endpoint, answer)
    return ok, Redactor([api_key]).clean(said)  # servers repeat it


def _classify(endpoint: str, answer: HttpAnswer) -> tuple[bool, str]:
    verdict = judge(answer, [("",)])
    if verdict.outcome is Outcome.HALT:
        if verdict.reason.startswith("invalid_api_key"):
            return False, f"{endpoint} does not know the API key: is it of this project, and of this region?"
        return False, f"{endpoint}: {verdict.reason}"
    if answer.status == 200 or (answer.status == 400 and verdict.outcome is not Outcome.AGAIN):
        return True, f"ok: {endpoint} takes the API key"
    if answer.status == 429:
        return False, f"{endpoint} is throttled right now (429), so it did not say whether it takes the key: try again"
    if answer.status == 403:
        return False, f"{endpoint} refuses this sender (403): a firewall, or the region"
    return False, f"{endpoint} answered {answer.status}: not an answer of Amplitude's HTTP API, try again later"
