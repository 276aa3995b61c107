"""What an endpoint says of the single events of a batch.

``{"results": [...]}``, by the event's place in the batch or by ``index``: a word, or an object with ``status``
(``accepted``, ``rejected`` or ``retry``) and perhaps ``reason``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from nami_amp_pipeline.delivery.destination import REJECTED, Outcome, Verdict

RETRY_SECONDS: Final = 30.0
"""How long the events of a user wait of whom one is to be sent again, if the answer does not say."""

BAD_RESULTS: Final = "bad_results"
"""An answer about single events that cannot be read. Nobody knows what became of them, so they are sent again."""

_RETRY: Final = "retry"
_PAUSED: Final = "throttled"
_STATUSES: Final = ("accepted", REJECTED, _RETRY)
_REASON_CHARACTERS: Final = 100


@dataclass(frozen=True)
class Result:
    """What is said of an event: a status of the three, a reason, and all of it as JSON."""

    status: str
    reason: str
    said: str


def has_results(body: bytes) -> bool:
    """Whether an answer may name events; to look closer is the judge's."""
    return b'"results"' in body


def read(body: bytes, events: int) -> Mapping[int, Result] | None:
    """What is said of single events, by their place in the batch; None if the answer says nothing of any.

    Raises:
        ValueError: it does, but cannot be read.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(parsed, dict) or "results" not in parsed:
        return None
    results = parsed["results"]
    if not isinstance(results, list):
        raise ValueError("results must be a list")
    found: dict[int, Result] = {}
    for place, entry in enumerate(results):
        index, result = _of(place, entry)
        if index in found or not 0 <= index < events:
            raise ValueError(f"results name event {index} of {events}, or name it twice")
        found[index] = result
    return found


def _of(place: int, entry: Any) -> tuple[int, Result]:
    given: dict[str, Any] = entry if isinstance(entry, dict) else {"status": entry}
    status, index = given.get("status"), given.get("index", place)
    if status not in _STATUSES:
        raise ValueError(f"status must be one of {', '.join(_STATUSES)}")
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError("index must be a whole number")
    reason = given.get("reason")
    text = " ".join(reason.split())[:_REASON_CHARACTERS] if isinstance(reason, str) else ""
    return index, Result(status, text, orjson.dumps(given).decode())


def unreadable(error: ValueError) -> Verdict:
    """What results mean that cannot be read; the reason says what is wrong with them."""
    return Verdict(Outcome.AGAIN, f"{BAD_RESULTS}: {error}", maybe_stored=True)


def judge(
    results: Mapping[int, Result], identities: Sequence[tuple[str, ...]], *, rest_is_stored: bool, delay: float | None
) -> Verdict:
    """What the results mean.

    Args:
        results: by place in the batch.
        identities: of each event.
        rest_is_stored: whether events of which nothing is said are accepted; otherwise they are sent again at once.
        delay: seconds to wait, as the answer says.
    """
    dead = {index: REJECTED for index, result in results.items() if result.status == REJECTED}
    again = {index for index, result in results.items() if result.status == _RETRY}
    if len(again) == len(identities):
        return Verdict(Outcome.AGAIN, _PAUSED, delay=RETRY_SECONDS if delay is None else delay, whole_project=True)
    said = {index: results[index].said for index in dead}
    wait = RETRY_SECONDS if delay is None else delay
    pauses = {identities[index][0]: (_PAUSED, wait) for index in sorted(again)}
    stored = set(range(len(identities))) - results.keys() if rest_is_stored else set()
    stored |= {index for index, result in results.items() if result.status == "accepted"}
    # Whoever shares the identity waits too, or its order would break.
    paused = frozenset(
        index for index, own in enumerate(identities) if own[0] in pauses and index not in dead and index not in stored
    )
    if rest_is_stored:
        return Verdict(Outcome.DELIVERED, "delivered", dead=dead, said=said, pauses=pauses, paused=paused)
    if not dead and not paused:
        return Verdict(Outcome.REFUSED_ONE_OF, REJECTED)
    return Verdict(
        Outcome.REFUSED_SOME, REJECTED if dead else _PAUSED, dead=dead, said=said, pauses=pauses, paused=paused
    )
