"""A destination that takes JSON: subclass it, and say what is different.

By itself it posts ``{"events": [...]}``, each event as it would be posted to Amplitude, with the key as a bearer token;
an answer means what the table ``answers`` says of its status.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

import pyarrow as pa

from nami_amp_pipeline.clock import system_clock
from nami_amp_pipeline.delivery.destination import (
    REJECTED,
    TOO_LARGE,
    Encoder,
    EndpointLimits,
    Field,
    Frame,
    Outcome,
    Probe,
    Verdict,
)
from nami_amp_pipeline.delivery.probing import ask, reach
from nami_amp_pipeline.delivery.retry_after import retry_after
from nami_amp_pipeline.delivery.transport import JSON_HEADERS, HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.destinations import own_fields
from nami_amp_pipeline.redaction import Redactor
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.transport import Transport

ACCEPTED: Final = "accepted"
AGAIN: Final = "again"
HALT: Final = "halt"

_NOT_ABOUT_EVENTS: Final = (401, 402, 403, 404, 405, 406, 407, 410, 411, 414, 415, 421, 426, 428, 431, 451)

ANSWERS: Final[Mapping[str, str]] = {
    "2xx": ACCEPTED,
    "3xx": HALT,
    "4xx": REJECTED,
    **dict.fromkeys(map(str, _NOT_ABOUT_EVENTS), HALT),
    "408": AGAIN,
    "413": TOO_LARGE,
    "425": AGAIN,
    "429": AGAIN,
    "5xx": AGAIN,
}
"""What an answer means, by status or kind of status; the status counts where both are there."""

PAUSE_SECONDS: Final = 30.0
"""How long an integration waits after a 429 that does not say how long."""

NOT_STORED: Final = (425, 429)
"""Answers after which nothing of the request is stored, for certain."""

ENDPOINT: Final = Field(
    "endpoint", "endpoint", "The address that batches are posted to; plain http for loopback addresses only.", False
)
KEY: Final = Field("api_key", "key", "The key that the endpoint knows the sender by.", is_secret=True)

_UPDATE: Final = "'nami-amp integrations update APP/NAME"


class JsonDestination:
    """See the module's docstring, and :class:`~nami_amp_pipeline.delivery.destination.Destination` for each part.

    Attributes:
        most: what a request may have at most.
        values: of its own fields, as the integration has set them.
        secrets: of its own fields that are secrets. ``bodies`` sees none: what it makes is kept in files.
    """

    name: str
    title: str
    fields: Sequence[Field] = (ENDPOINT, KEY)
    endpoints: Mapping[str, str] = {}
    reserved_ids: Collection[str] = ()
    answers: Mapping[str, str] = ANSWERS
    takes_gzip: bool = False
    abilities: Collection[str] = ()
    bodies: Encoder | None = None
    most: EndpointLimits = EndpointLimits(2_000, 1_000_000, 1_000, timedelta(days=7))
    values: Mapping[str, str] = {}
    secrets: Mapping[str, Secret] = {}

    def with_fields(self, values: Mapping[str, str], secrets: Mapping[str, Secret]) -> Self:
        """A copy that has them as ``values`` and ``secrets``."""
        mine = copy.copy(self)
        mine.values, mine.secrets = values, secrets
        return mine

    def limits(self, endpoint: str) -> EndpointLimits:
        """The same for each endpoint."""
        del endpoint
        return self.most

    def endpoint_for_many(self, endpoint: str) -> str:
        """The same one."""
        return endpoint

    def headers(self, api_key: Secret, body: bytes, now: float) -> Mapping[str, str]:
        """Those of JSON, with the key as a bearer token."""
        del body, now
        return {**JSON_HEADERS, "Authorization": f"Bearer {api_key.reveal()}"}

    def frame(self, api_key: Secret) -> Frame:
        """An object with a list."""
        del api_key
        return Frame(b'{"events":[', b"]}")

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        """By the table of answers."""
        del identities
        if isinstance(answer, NoAnswer):
            return Verdict(Outcome.AGAIN, answer.kind, maybe_stored=answer.maybe_stored)
        kind, status = self.kind_of(answer.status), answer.status
        if kind == ACCEPTED:
            return Verdict(Outcome.DELIVERED, "delivered")
        if kind in (REJECTED, TOO_LARGE):
            return Verdict(Outcome.REFUSED_ONE_OF, kind)
        if kind == HALT:
            what = (
                "the address is not the one to post to"
                if status // 100 == 3
                else "the address or the key is not accepted"
            )
            return Verdict(Outcome.HALT, f"http_{status}: {what}")
        wait = retry_after(answer.headers, now)
        if status == 429 and wait is None:
            wait = PAUSE_SECONDS
        return Verdict(
            Outcome.AGAIN,
            "project_throttled" if status == 429 else f"http_{status}",
            maybe_stored=status not in NOT_STORED,
            delay=wait,
            whole_project=wait is not None,
        )

    def kind_of(self, status: int) -> str:
        """What an answer of a status means, in a word; what the table does not have is asked for again."""
        return self.answers.get(str(status)) or self.answers.get(f"{status // 100}xx") or AGAIN

    def names_events(self, answer: HttpAnswer) -> bool:
        """None does."""
        del answer
        return False

    def redact(self, text: str, api_key: Secret) -> str:
        """Without the key, in whatever form, and without what a database cannot hold."""
        return _redactor(api_key.reveal()).clean(text).replace("\x00", "")

    def probe(self, endpoint: str, api_key: Secret | None, transport: Transport) -> Probe:
        """A HEAD, or with a key a batch of no event."""
        if api_key is None:
            return reach(endpoint, transport)
        key, frame = api_key, self.frame(api_key)
        body = frame.head + frame.tail
        request = Request(endpoint, body, self.headers(key, body, system_clock()), may_compress=False)

        def classify(answer: HttpAnswer) -> tuple[str, str]:
            kind, message = self._classify(endpoint, answer)
            return kind, self.redact(message, key)

        return ask(request, transport, classify)

    def _classify(self, endpoint: str, answer: HttpAnswer) -> tuple[str, str]:
        """What is wrong in a word, and the answer in a few; who rejects a batch for having no event took the key."""
        kind, status = self.kind_of(answer.status), answer.status
        if kind == ACCEPTED:
            return "", f"ok: {endpoint} accepts the key"
        if kind == REJECTED:
            return "", f"ok: {endpoint} accepts the key, and rejects a batch without events ({status})"
        if status in (401, 403):
            return "unknown_key", f"{endpoint} does not accept the key ({status})"
        if kind == HALT:
            return "other", f"{endpoint} answered {status}: it is not the address to post to"
        return "other", f"{endpoint} answered {status}, so the key was not checked: try again later"

    def fingerprints(self, bodies: pa.ChunkedArray) -> pa.Table:
        """None."""
        return pa.table({"_": pa.nulls(len(bodies))}).select([])

    def repair(self, reason: str) -> str:
        """Key, address, or a secret of its own."""
        del reason
        own = "".join(
            f", another {field.label} with --secret-field-env {field.name}=VAR"
            for field in own_fields(self).values()
            if field.is_secret
        )
        return f"Give it another key with {_UPDATE} --api-key-env VAR'{own}, or another address with --endpoint"


@lru_cache(64)
def _redactor(key: str) -> Redactor:
    return Redactor([key])
