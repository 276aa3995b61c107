"""The interface of a destination, and the outcomes of a request. It knows no destination by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol, Self

from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer, Request
from nami_amp_pipeline.redaction import Redactor
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    import pyarrow as pa

    from nami_amp_pipeline.delivery.transport import Transport

REJECTED: Final = "rejected"
"""An event of the request is refused for its content. This counts after two nested requests were refused."""

TOO_LARGE: Final = "too_large"
"""An event of the request is refused, perhaps only because the whole request is too large. Each is posted alone."""

FORBIDDEN: Final = "forbidden"
"""An event of the request is refused, or perhaps the sender. Each is posted alone; several refusals in a row halt the
integration."""

_SHOWN_CHARACTERS = 2_000
_REASON_CHARACTERS = 300


class Outcome(Enum):
    """The next step for a request's events.

    DELIVERED: the destination has all of them, but for those in ``dead``, which it rejected, and those in ``paused``,
        which are held and sent again.
    REFUSED_SOME: events in ``dead`` are dead letters, events of identities in ``pauses`` are held, the others are sent
        again at once.
    REFUSED_ONE_OF: at least one event is refused, but no answer says which: bisect. The reason is one of the three
        above.
    AGAIN: the same request again after ``delay``.
    HALT: the integration stops; no event is lost.
    """

    DELIVERED = "delivered"
    REFUSED_SOME = "refused_some"
    REFUSED_ONE_OF = "refused_one_of"
    AGAIN = "again"
    HALT = "halt"


@dataclass(frozen=True)
class Verdict:
    """What an answer means.

    Attributes:
        outcome: the next step.
        reason: in a word, for receipts and people; a dead letter gets it when a bisection ends.
        maybe_stored: whether the events may have been stored anyway.
        dead: index in the request to reason.
        said: index in the request to what the answer says of this event alone, for those that it says anything of.
        pauses: identity (``u:`` user id, ``d:`` device id) to (reason, seconds).
        paused: indexes of the events that are held with them.
        delay: seconds to wait; None for the usual back-off.
        whole_project: whether the whole integration pauses, not only this request.
        warning: a note for people although the events are delivered.
    """

    outcome: Outcome
    reason: str = ""
    maybe_stored: bool = False
    dead: Mapping[int, str] = field(default_factory=dict)
    said: Mapping[int, str] = field(default_factory=dict)
    pauses: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    paused: frozenset[int] = frozenset()
    delay: float | None = None
    whole_project: bool = False
    warning: str = ""


@dataclass(frozen=True)
class EndpointLimits:
    """The limits of an endpoint.

    Attributes:
        events: most events of a request.
        size: most bytes of a request, before compression.
        events_per_second: most events of a user or device, as an average over half a minute.
        recognises_repeats: how long an event that is sent again is recognised.
    """

    events: int
    size: int
    events_per_second: int
    recognises_repeats: timedelta


@dataclass(frozen=True)
class Frame:
    """The text around the events of a request body; commas separate the events."""

    head: bytes
    tail: bytes


@dataclass(frozen=True)
class Probe:
    """The result of a look at an endpoint, which stores no event.

    Attributes:
        ok: whether it is reachable and accepts the key, if a key was given.
        message: the result in a few words, without the key.
        date: the other side's clock, in seconds since the epoch, to the second; None if unknown.
        kind: what is wrong, in a word: ``unknown_key``, ``no_answer``, or ``other``; empty if nothing is.
    """

    ok: bool
    message: str
    date: float | None = None
    kind: str = ""


Encoder = Callable[["pa.RecordBatch"], "pa.Array"]
"""Makes the bodies of events: of ``id``, ``event_type``, ``user_id``, ``identity``, ``created_date`` and ``body``, the
JSON text of each as it would be posted to Amplitude, a JSON text for each, in the same order. It is pure: the same
columns give the same texts, in any process."""


@dataclass(frozen=True)
class Field:
    """What people give to set an integration up.

    Attributes:
        name: ``endpoint``, ``api_key``, ``secret_key``, or a name of the destination's own: small letters, digits, _.
        label: what it is called, in a few words.
        help: what it is for, and what it looks like, as a sentence.
        is_secret: whether it is encrypted, and shown to nobody.
        is_required: whether an integration cannot do without it.
        default: what it is if it is not given; a secret of the destination's own has none.
        choices: what it may be; empty where it may be any text of one line. Of a field of its own that is no secret.
        pattern: a regular expression that all of it has to match; empty where any text will do. Of a field of its own.
    """

    name: str
    label: str
    help: str
    is_secret: bool
    is_required: bool = True
    default: str | None = None
    choices: Sequence[str] = ()
    pattern: str = ""


class Destination(Protocol):
    """A service that receives events.

    Attributes:
        name: in the store.
        title: for people, as in "the answer of ...".
        fields: what people give to set it up: address, keys, and fields of its own.
        endpoints: addresses by short name; without any, each address is as good as another.
        reserved_ids: ids that it refuses, in lower case.
        answers: what an answer means, in a word, by status (``429``) or kind of status (``4xx``), for people.
        takes_gzip: whether a body may be compressed, if the settings say so.
        abilities: what it has beside taking events: ``identify`` (takes users' properties alone, and events that leave
            a profile as it is), ``reconcile`` (tells which events it holds).
    """

    name: str
    title: str
    fields: Sequence[Field]
    endpoints: Mapping[str, str]
    reserved_ids: Collection[str]
    answers: Mapping[str, str]
    takes_gzip: bool
    abilities: Collection[str]

    def with_fields(self, values: Mapping[str, str], secrets: Mapping[str, Secret]) -> Self:
        """Itself, as one integration has set its own fields; called only where it declares some.

        Args:
            values: of the fields that are no secrets, by name; what was not given has its default, or is left out.
            secrets: of the others. There are none for ``bodies``, whose result is kept in files.
        """

    @property
    def bodies(self) -> Encoder | None:
        """What makes the bodies of events; None where they are posted as they are for Amplitude."""

    def limits(self, endpoint: str) -> EndpointLimits:
        """The limits of an endpoint."""

    def endpoint_for_many(self, endpoint: str) -> str:
        """The endpoint of the same project for very many events at once; the same one if there is no other."""

    def headers(self, api_key: Secret, body: bytes, now: float) -> Mapping[str, str]:
        """The headers of a request.

        Args:
            api_key: the integration's.
            body: as it is posted, before it is compressed.
            now: seconds since the epoch.
        """

    def frame(self, api_key: Secret) -> Frame:
        """The text around the events."""

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        """What an answer means for the events of a request.

        Args:
            answer: the answer, or why there is none.
            identities: for each event of the request, the identities that may be throttled; empty unless the answer can
                name events (:meth:`names_events`).
            now: seconds since the epoch.
        """

    def names_events(self, answer: HttpAnswer) -> bool:
        """Whether an answer may name events or users of the request."""

    def redact(self, text: str, api_key: Secret) -> str:
        """A text of the destination without the key that it may repeat."""

    def probe(self, endpoint: str, api_key: Secret | None, transport: Transport) -> Probe:
        """Whether an endpoint is reachable and accepts a key, if given."""

    def fingerprints(self, bodies: pa.ChunkedArray) -> pa.Table:
        """What receipts keep of events, so that they can be compared with what the destination holds.

        Args:
            bodies: the JSON of each event as it is posted, behind a comma; null for events that are not posted.

        Returns:
            Rows in the same order. The metadata of the schema say how they were computed.
        """

    def repair(self, reason: str) -> str:
        """The advice for an integration that halted for this reason, as a sentence without a full stop."""


@dataclass(frozen=True)
class Target:
    """Where the requests of one integration go.

    Attributes:
        destination: the destination.
        endpoint: the URL.
        api_key: the integration's.
        secrets: those of the destination's own fields.
    """

    destination: Destination
    endpoint: str
    api_key: Secret
    secrets: Sequence[Secret] = ()

    @cached_property
    def frame(self) -> Frame:
        """The text around the events of a body."""
        return self.destination.frame(self.api_key)

    def request(self, body: bytes, now: float, send_until: float = math.inf) -> Request:
        """A body as a request.

        Args:
            body: frame and events.
            now: seconds since the epoch.
            send_until: the monotonic time after which nothing of it may be sent.
        """
        destination = self.destination
        headers = destination.headers(self.api_key, body, now)
        return Request(self.endpoint, body, headers, send_until, may_compress=destination.takes_gzip)

    @cached_property
    def limits(self) -> EndpointLimits:
        """Of the endpoint."""
        return self.destination.limits(self.endpoint)

    def shown(self, answer: HttpAnswer | NoAnswer) -> str | None:
        """An answer for the records: without the key that it may repeat, then cut; None for a 200."""
        if isinstance(answer, NoAnswer):
            return answer.kind
        if answer.status == 200:
            return None
        return self.clean(answer.body.decode(errors="replace"))[:_SHOWN_CHARACTERS]

    def said(self, verdict: Verdict) -> dict[int, str]:
        """What an answer says of single events, as :meth:`shown` has it."""
        return {index: self.clean(text)[:_SHOWN_CHARACTERS] for index, text in verdict.said.items()}

    def reason(self, verdict: Verdict) -> str:
        """A verdict's reason for the records and for people."""
        if verdict.reason == Outcome.DELIVERED.value:  # nearly all are, and cleaning takes as long as recording
            return verdict.reason
        return self.clean(verdict.reason)[:_REASON_CHARACTERS]

    def clean(self, text: str) -> str:
        """A text without the key, and without the secrets of the destination's own fields."""
        return self._redactor.clean(self.destination.redact(text, self.api_key))

    @cached_property
    def _redactor(self) -> Redactor:
        return Redactor(self.secrets)
