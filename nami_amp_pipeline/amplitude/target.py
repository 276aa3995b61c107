"""Amplitude as a destination: its addresses, its limits, and the frame of a request.

Sources: https://amplitude.com/docs/apis/analytics/http-v2 and https://amplitude.com/docs/apis/analytics/batch-event-upload.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self

import orjson

from nami_amp_pipeline import contract
from nami_amp_pipeline.amplitude import answers
from nami_amp_pipeline.delivery.destination import Encoder, EndpointLimits, Field, Frame, Probe, Verdict
from nami_amp_pipeline.delivery.transport import JSON_HEADERS, HttpAnswer, NoAnswer
from nami_amp_pipeline.redaction import Redactor
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    import pyarrow as pa

    from nami_amp_pipeline.delivery.transport import Transport

V2_EVENTS_PER_SECOND: Final = 30
BATCH_EVENTS_PER_SECOND: Final = 1_000

_V2_PATH: Final = "/2/httpapi"
_BATCH_PATH: Final = "/batch"

_UPDATE: Final = "'nami-amp integrations update APP/NAME"
_ADDRESS: Final = f"Give it the address of Amplitude's HTTP API with {_UPDATE} --endpoint us' (or eu)"
_REPAIRS: Final = {
    "invalid_api_key": (
        f"Give it the key of the right project with {_UPDATE} --api-key-env VAR', or the endpoint of its region with "
        f"{_UPDATE} --endpoint eu' (or us)"
    ),
    "forbidden": "A firewall or the region blocks requests from this machine: contact Amplitude's support",
    "redirect": _ADDRESS,
    "http_404": _ADDRESS,
}
ANSWERS: Final[Mapping[str, str]] = {
    "200": "accepted",
    "3xx": "halt",
    "4xx": "halt",
    "400": "refused",
    "403": "refused",
    "408": "again",
    "413": "too_large",
    "425": "again",
    "429": "again",
    "5xx": "again",
}
"""For people; :mod:`nami_amp_pipeline.amplitude.answers` knows more."""

_ANY_REPAIR: Final = f"Give it another key with {_UPDATE} --api-key-env VAR', or another endpoint with --endpoint"


class Amplitude:
    """See :class:`~nami_amp_pipeline.delivery.destination.Destination`."""

    name: str = "amplitude"
    title: str = "Amplitude"
    fields: Sequence[Field] = (
        Field("endpoint", "endpoint", "Where the Amplitude project is: us, eu, or a URL.", is_secret=False),
        Field("api_key", "API key", "The API key of the project.", is_secret=True),
        Field("secret_key", "secret key", "Only reconciliation needs it.", is_secret=True, is_required=False),
    )
    endpoints: Mapping[str, str] = contract.ENDPOINTS
    reserved_ids: Collection[str] = contract.RESERVED_IDS
    answers: Mapping[str, str] = ANSWERS
    takes_gzip: bool = True
    abilities: Collection[str] = ("identify", "reconcile")
    bodies: Encoder | None = None

    def with_fields(self, values: Mapping[str, str], secrets: Mapping[str, Secret]) -> Self:
        """It has no fields of its own."""
        del values, secrets
        return self

    def limits(self, endpoint: str) -> EndpointLimits:
        """The Batch Event Upload API accepts more than the HTTP V2 API."""
        is_batch = endpoint.endswith("/batch")
        return EndpointLimits(
            contract.MAX_REQUEST_EVENTS,
            contract.MAX_BATCH_REQUEST_BYTES if is_batch else contract.MAX_REQUEST_BYTES,
            BATCH_EVENTS_PER_SECOND if is_batch else V2_EVENTS_PER_SECOND,
            contract.DEDUPLICATION_WINDOW,
        )

    def endpoint_for_many(self, endpoint: str) -> str:
        """The Batch Event Upload API at the same host."""
        return endpoint.removesuffix(_V2_PATH) + _BATCH_PATH if endpoint.endswith(_V2_PATH) else endpoint

    def headers(self, api_key: Secret, body: bytes, now: float) -> Mapping[str, str]:
        """Only the headers for JSON: the key is in the body."""
        del api_key, body, now
        return JSON_HEADERS

    def frame(self, api_key: Secret) -> Frame:
        """The key before the events; ``min_id_length`` behind them, so that short ids are not lost."""
        return Frame(
            b'{"api_key":' + orjson.dumps(api_key.reveal()) + b',"events":[',
            b'],"options":{"min_id_length":1}}',
        )

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        """See :mod:`nami_amp_pipeline.amplitude.answers`."""
        return answers.judge(answer, identities, now=now)

    def names_events(self, answer: HttpAnswer) -> bool:
        """A 400 names events, a 429 users and devices."""
        return answer.status in (400, 429)

    def redact(self, text: str, api_key: Secret) -> str:
        """A text without the key, as it is or as JSON spells it, and without what a database cannot hold."""
        return _redactor(api_key.reveal()).clean(text).replace("\x00", "")

    def probe(self, endpoint: str, api_key: Secret | None, transport: Transport) -> Probe:
        """See :func:`nami_amp_pipeline.amplitude.probe.probe`."""
        from nami_amp_pipeline.amplitude.probe import probe

        return probe(self, endpoint, api_key, transport)

    def fingerprints(self, bodies: pa.ChunkedArray) -> pa.Table:
        """See :mod:`nami_amp_pipeline.amplitude.fingerprints`."""
        from nami_amp_pipeline.amplitude.fingerprints import fingerprints

        return fingerprints(bodies)

    def repair(self, reason: str) -> str:
        """By the first word of the reason."""
        return _REPAIRS.get(reason.partition(":")[0].partition(" ")[0], _ANY_REPAIR)


@lru_cache(64)
def _redactor(key: str) -> Redactor:
    return Redactor([key])


AMPLITUDE: Final = Amplitude()
