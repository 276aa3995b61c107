"""What the delivery asks of whoever receives events, and what may become of a request. It knows no receiver by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.secrets import Secret

if TYPE_CHECKING:
    from nami_amp_pipeline.delivery.transport import Transport

REJECTED: Final = "rejected"
"""Why one of a request's events is refused: what it holds. Counts once two requests, one in the other, were refused."""

TOO_LARGE: Final = "too_large"
"""Why one of a request's events is refused: perhaps only the whole request is too large. Each is asked by itself."""

FORBIDDEN: Final = "forbidden"
"""Why one of a request's events is refused: perhaps it is the sender who is. Each is asked by itself, and several
single ones refused in a row stop the integration."""

_SHOWN_CHARACTERS = 2_000
_REASON_CHARACTERS = 300


class Outcome(Enum):
    """What happens next to a request's events.

    DELIVERED: the receiver has all of them.
    REFUSED_SOME: those in ``dead`` are dead letters, the identities in ``pauses`` wait, the others go again at once.
    REFUSED_ONE_OF: one of them is refused, unknown which: bisect. The reason is one of the three above.
    AGAIN: the same again after ``delay``.
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
        outcome: what happens next.
        reason: in a word, for receipts and people; of a dead letter when a bisection ends.
        maybe_stored: whether the events may have been stored all the same.
        dead: index in the request to reason.
        said: index in the request to what the answer says of this event alone, for those that it says anything of.
        pauses: identity (``u:`` user id, ``d:`` device id) to (reason, seconds).
        paused: indexes of the request that wait with them.
        delay: seconds to wait; None leaves it to the back-off.
        whole_project: whether all of the integration waits, not this request alone.
        warning: what a person should know although the events are delivered.
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
    """What an endpoint takes.

    Attributes:
        events: of one request at most.
        size: bytes of one request at most, before compression.
        events_per_second: of one user or device, as an average over half a minute.
        recognises_repeats: for how long an event that is sent again is stored once.
    """

    events: int
    size: int
    events_per_second: int
    recognises_repeats: timedelta


@dataclass(frozen=True)
class Frame:
    """What stands around the events of a request body; the events are separated by commas."""

    head: bytes
    tail: bytes


@dataclass(frozen=True)
class Probe:
    """What a look at an endpoint found; no event was stored by it.

    Attributes:
        ok: whether it can be reached and, where a key was given, takes the key.
        message: in a few words, without the key.
        date: what the other side's clock says, in seconds since the epoch, to the second; None if it did not say.
    """

    ok: bool
    message: str
    date: float | None = None


class Destination(Protocol):
    """Whoever receives events.

    Attributes:
        name: as the store knows it.
        endpoints: addresses by short name.
        reserved_ids: ids that it refuses, in lower case.
    """

    name: str
    endpoints: Mapping[str, str]
    reserved_ids: Collection[str]

    def limits(self, endpoint: str) -> EndpointLimits:
        """What an endpoint takes."""

    def headers(self, api_key: Secret) -> Mapping[str, str]:
        """The headers of each request."""

    def frame(self, api_key: Secret) -> Frame:
        """What stands around the events."""

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        """What an answer means for the events of a request.

        Args:
            answer: what came, or why nothing did.
            identities: of each event of the request, the identities that may be throttled; empty where no answer
                came, or none that can name events (:meth:`names_events`).
            now: seconds since the epoch.
        """

    def names_events(self, answer: HttpAnswer) -> bool:
        """Whether an answer may name events or users of the request."""

    def redact(self, text: str, api_key: Secret) -> str:
        """A whole text of the receiver's without the key that it may repeat."""

    def probe(self, endpoint: str, api_key: Secret | None, transport: Transport) -> Probe:
        """Whether an endpoint can be reached and, where one is given, takes a key."""

    def repair(self, reason: str) -> str:
        """What to do about an integration that halted for this reason, as a sentence without a full stop."""


@dataclass(frozen=True)
class Target:
    """Where the requests of one integration go.

    Attributes:
        destination: whoever receives them.
        endpoint: the URL.
        api_key: the integration's.
    """

    destination: Destination
    endpoint: str
    api_key: Secret

    @cached_property
    def frame(self) -> Frame:
        """What stands around the events of a body."""
        return self.destination.frame(self.api_key)

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """Of each request."""
        return self.destination.headers(self.api_key)

    @cached_property
    def limits(self) -> EndpointLimits:
        """Of the endpoint."""
        return self.destination.limits(self.endpoint)

    def shown(self, answer: HttpAnswer | NoAnswer) -> str | None:
        """An answer for the records: without the key that the receiver may repeat, then cut; None for a 200."""
        if isinstance(answer, NoAnswer):
            return answer.kind
        if answer.status == 200:
            return None
        return self.destination.redact(answer.body.decode(errors="replace"), self.api_key)[:_SHOWN_CHARACTERS]

    def said(self, verdict: Verdict) -> dict[int, str]:
        """What an answer says of single events, as :meth:`shown` has it."""
        return {
            index: self.destination.redact(text, self.api_key)[:_SHOWN_CHARACTERS]
            for index, text in verdict.said.items()
        }

    def reason(self, verdict: Verdict) -> str:
        """A verdict's reason for the records and for people."""
        return self.destination.redact(verdict.reason, self.api_key)[:_REASON_CHARACTERS]
