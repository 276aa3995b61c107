"""Any endpoint that takes signed batches of JSON, and answers for a batch or for each event of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from nami_amp_pipeline import contract
from nami_amp_pipeline.delivery.destination import REJECTED, EndpointLimits, Field, Verdict
from nami_amp_pipeline.delivery.json_destination import ACCEPTED, ENDPOINT, JsonDestination
from nami_amp_pipeline.delivery.retry_after import retry_after
from nami_amp_pipeline.delivery.transport import JSON_HEADERS, HttpAnswer, NoAnswer
from nami_amp_pipeline.http_endpoint import answers
from nami_amp_pipeline.http_endpoint.signature import ID, signed
from nami_amp_pipeline.secrets import Secret

IDEMPOTENCY_KEY: Final = "Idempotency-Key"

_HEADER_NAME: Final = (
    r"(?i)(?!(?:content-.*|webhook-.*|accept.*|proxy-.*|idempotency-key|user-agent|host|connection|transfer-encoding|te|trailer"
    r"|upgrade|expect|date|via)$)[a-z0-9!#$%&'*+.^_`|~-]{1,100}"
)


class HttpEndpoint(JsonDestination):
    """See :class:`~nami_amp_pipeline.delivery.destination.Destination`."""

    name = "http"
    title = "the HTTP endpoint"
    fields: Sequence[Field] = (
        ENDPOINT,
        Field(
            "api_key",
            "signing secret",
            "Batches are signed with it (HMAC-SHA256); the receiver has it too.",
            is_secret=True,
        ),
        Field(
            "auth_value",
            "authorization",
            "The value of a header that the endpoint, or a gateway before it, wants, such as Bearer and a token.",
            is_secret=True,
            is_required=False,
            pattern=r"[ -~]+",
        ),
        Field(
            "auth_header",
            "authorization header",
            "The name of that header, such as X-Api-Key; not one that is set already.",
            is_secret=False,
            is_required=False,
            default="Authorization",
            pattern=_HEADER_NAME,
        ),
    )
    most = EndpointLimits(contract.MAX_REQUEST_EVENTS, contract.MAX_REQUEST_BYTES, 100_000, timedelta(days=7))

    def headers(self, api_key: Secret, body: bytes, now: float) -> Mapping[str, str]:
        """Those of JSON, with the batch's id and signature, and the authorization if there is one."""
        own = signed(api_key, body, now)
        value = self.secrets.get("auth_value")
        more = {} if value is None else {self.values["auth_header"]: value.reveal()}
        return {**JSON_HEADERS, **own, IDEMPOTENCY_KEY: own[ID], **more}

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        """By what it says of single events, if it does; otherwise by its status."""
        kind = self.kind_of(answer.status) if isinstance(answer, HttpAnswer) else ""
        if isinstance(answer, NoAnswer) or kind not in (ACCEPTED, REJECTED) or not identities:
            return super().judge(answer, identities, now=now)
        try:
            results = answers.read(answer.body, len(identities))
        except ValueError as error:
            return answers.unreadable(error)
        if results is None:
            return super().judge(answer, identities, now=now)
        return answers.judge(
            results, identities, rest_is_stored=kind == ACCEPTED, delay=retry_after(answer.headers, now)
        )

    def names_events(self, answer: HttpAnswer) -> bool:
        """What has results."""
        return answers.has_results(answer.body)


HTTP: Final = HttpEndpoint()
