"""The conformance suite of destinations, which ships: all that we ship pass it, and those that judge wrongly do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nami_amp_pipeline.amplitude.target import AMPLITUDE
from nami_amp_pipeline.delivery.destination import REJECTED, Outcome, Verdict
from nami_amp_pipeline.delivery.json_destination import ANSWERS
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer
from nami_amp_pipeline.http_endpoint.target import HTTP, HttpEndpoint
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.testing import DestinationSuite
from nami_amp_pipeline.testing.receiver import Answer


@pytest.mark.slow
class TestAmplitude(DestinationSuite):
    destination = AMPLITUDE

    def rejecting(self, ids: Sequence[str], bad: Sequence[int]) -> tuple[Answer, Sequence[int]]:
        return Answer(400, orjson.dumps({"code": 400, "events_with_invalid_fields": {"time": list(bad)}})), ()

    def rejecting_key(self) -> Answer:
        return Answer(400, b'{"code": 400, "error": "Invalid API key: none"}')


@pytest.mark.slow
class TestHttpPerBatch(DestinationSuite):
    destination = HTTP


class TestHttpPerEvent(DestinationSuite):
    """Each event has its result; what is good is stored although others are not."""

    destination = HTTP

    def accepting(self, ids: Sequence[str]) -> Answer:
        return Answer(200, orjson.dumps({"results": ["accepted" for _ in ids]}))

    def rejecting(self, ids: Sequence[str], bad: Sequence[int]) -> tuple[Answer, Sequence[int]]:
        results = [
            {"status": "rejected", "reason": "no good"} if place in bad else "accepted" for place in range(len(ids))
        ]
        return Answer(207, orjson.dumps({"results": results})), [p for p in range(len(ids)) if p not in bad]


class Renamed(HttpEndpoint):
    """Sends a form of its own."""

    name = "renamed"

    def bodies(self, events: pa.RecordBatch) -> pa.Array:
        made = [
            orjson.dumps({"key": ident, "what": kind, "whole": orjson.loads(body)}).decode()
            for ident, kind, body in zip(
                *(events[name].to_pylist() for name in ("id", "event_type", "body")), strict=True
            )
        ]
        return pa.array(made, pa.string())


@pytest.mark.slow
class TestOwnBodies(DestinationSuite):
    destination = Renamed()

    def id_of(self, event: Any) -> str:
        assert event["whole"]["insert_id"] == event["key"]
        return str(event["key"])


class Optimist(HttpEndpoint):
    """Believes that a server in trouble has stored everything."""

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        if isinstance(answer, HttpAnswer) and answer.status >= 500:
            return Verdict(Outcome.DELIVERED, "delivered")
        return super().judge(answer, identities, now=now)


class Pessimist(HttpEndpoint):
    """Believes that a connection that broke stored nothing for certain, and gives its events up."""

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        if isinstance(answer, NoAnswer):
            return Verdict(Outcome.REFUSED_ONE_OF, REJECTED)
        return super().judge(answer, identities, now=now)


class Deaf(HttpEndpoint):
    """Does not hear that events are refused."""

    answers = {**ANSWERS, "4xx": "accepted"}  # noqa: RUF012


class Stubborn(HttpEndpoint):
    """Takes an unknown key for refused events."""

    answers = {**ANSWERS, "401": "rejected"}  # noqa: RUF012


class Shifted(HttpEndpoint):
    """Takes the first result for the second event's."""

    def judge(self, answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float) -> Verdict:
        verdict = super().judge(answer, identities, now=now)
        return replace(verdict, dead={(index + 1) % len(identities): why for index, why in verdict.dead.items()})


class Chatty(HttpEndpoint):
    """Keeps what the receiver says as it is."""

    def redact(self, text: str, api_key: Secret) -> str:
        return text


class Moody(HttpEndpoint):
    """Makes other bodies each time."""

    _numbers = count()

    def bodies(self, events: pa.RecordBatch) -> pa.Array:
        return pc.binary_join_element_wise(f'{{"n":{next(self._numbers)},"whole":', events["body"], "}", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "tells"),
    [
        # Of troubles in any order, what it believes may be stored by luck already.
        (Optimist, "test_a_receiver_that_is_down_loses_nothing"),
        (Pessimist, "test_troubles_change_nothing"),
        (Deaf, "test_rejected_events_are_dead_letters"),
        (Stubborn, "test_a_rejected_key_halts_and_loses_nothing"),
        (Shifted, "test_rejected_events_are_dead_letters"),
        (Chatty, "test_no_secret_is_in_what_is_kept"),
        (Moody, "test_the_same_events_give_the_same_bytes"),
    ],
)
def test_a_destination_that_is_wrong_does_not_pass(mutant: type[HttpEndpoint], tells: str) -> None:
    per_event = tells == "test_rejected_events_are_dead_letters" and mutant is Shifted

    class Suite(TestHttpPerEvent if per_event else TestHttpPerBatch):  # type: ignore[misc]
        destination = mutant()

    suite = Suite()
    suite.setup_method()
    try:
        with pytest.raises(AssertionError):
            getattr(suite, tells)()
    finally:
        suite.teardown_method()
