"""What an answer of Amplitude's means for the events of its request.

Sources: https://amplitude.com/docs/apis/analytics/http-v2 and
https://amplitude.com/docs/apis/analytics/batch-event-upload; Amplitude's own SDKs for what those leave open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from nami_amp_pipeline.delivery.destination import FORBIDDEN, REJECTED, TOO_LARGE, Outcome, Verdict
from nami_amp_pipeline.delivery.retry_after import retry_after
from nami_amp_pipeline.delivery.transport import HttpAnswer, NoAnswer

USER_PAUSE_SECONDS = 30.0
QUOTA_PAUSE_SECONDS = 3600.0
PROJECT_PAUSE_SECONDS = 60.0
NONE_INGESTED = "Amplitude answered 200 and said that it ingested none of the events (events_ingested 0)"
_LISTS = ("events_with_missing_fields", "events_with_invalid_fields", "events_with_invalid_id_lengths")


def judge(answer: HttpAnswer | NoAnswer, identities: Sequence[tuple[str, ...]], *, now: float = 0.0) -> Verdict:
    """What an answer means for the events of a request.

    Args:
        answer: the answer, or why there is none.
        identities: of each event of the request, the identities that Amplitude may throttle.
        now: seconds since the epoch, for a ``Retry-After`` that is a date.
    """
    if isinstance(answer, NoAnswer):
        return Verdict(Outcome.AGAIN, answer.kind, maybe_stored=answer.maybe_stored)
    body, is_json = _parse(answer.body)
    status = answer.status
    delay = retry_after(answer.headers, now)
    if status == 200:
        if (is_json and body.get("code", 200) == 200) or not answer.body.strip():
            return Verdict(Outcome.DELIVERED, "delivered", warning=_none_ingested(body))
        return _again("not_json" if not is_json else "not_accepted", delay, maybe_stored=True)
    if 300 <= status < 400:
        return Verdict(Outcome.HALT, f"redirect ({status}): the endpoint is not Amplitude's HTTP API")
    if status in (408, 425) or status >= 500:
        return _again(f"http_{status}", delay, maybe_stored=status not in (425, 503))
    if status == 429:
        return _throttled(body, identities, delay)
    if status == 413:
        return Verdict(Outcome.REFUSED_ONE_OF, TOO_LARGE)
    if status == 400:
        return _bad_request(answer, body, is_json, identities, delay)
    if status == 403:
        return Verdict(Outcome.REFUSED_ONE_OF, FORBIDDEN)
    if 400 < status < 500:
        return Verdict(Outcome.HALT, f"http_{status}: the endpoint or the API key is not accepted")
    return _again(f"http_{status}", delay, maybe_stored=True)


def _none_ingested(body: Mapping[str, Any]) -> str:
    """A warning where Amplitude took a request and stored nothing; repeats may count as ingested or not."""
    number = body.get("events_ingested")
    return NONE_INGESTED if number == 0 and not isinstance(number, bool) else ""


def _again(reason: str, delay: float | None, *, maybe_stored: bool) -> Verdict:
    """Retry the same request; a ``Retry-After`` applies to the whole project."""
    return Verdict(Outcome.AGAIN, reason, maybe_stored=maybe_stored, delay=delay, whole_project=delay is not None)


def _bad_request(
    answer: HttpAnswer,
    body: Mapping[str, Any],
    is_json: bool,
    identities: Sequence[tuple[str, ...]],
    delay: float | None,
) -> Verdict:
    if not is_json and answer.body.strip():
        # A load balancer's own page: nothing that Amplitude said about an event.
        return _again("not_json", delay, maybe_stored=True)
    error = str(body.get("error", ""))
    folded = error.lower()
    missing = body.get("missing_field")
    if folded.startswith("invalid api key") or missing == "api_key":
        return Verdict(Outcome.HALT, "invalid_api_key: Amplitude does not know the API key at this endpoint")
    if missing or folded.startswith(("invalid request path", "missing request body")):
        return Verdict(Outcome.HALT, f"bad_request: {error}")
    named: set[int] = set()
    for key in _LISTS:
        named |= _indexes(body.get(key))
    silenced = _indexes(body.get("silenced_events"))
    events = len(identities)
    dead = {index: REJECTED if named else "silenced" for index in sorted(named | silenced) if 0 <= index < events}
    throttled = _throttled(body, identities, delay) if _has_throttled(body) else Verdict(Outcome.REFUSED_SOME)
    if not dead and not throttled.paused:
        if events == 1 and (named or silenced):  # the lists are of another request, but there is one event only
            said = _said_of(min(named | silenced), body)
            dead = {0: REJECTED if named else "silenced"}
            return Verdict(Outcome.REFUSED_SOME, REJECTED, dead=dead, said={0: said})
        return Verdict(Outcome.REFUSED_ONE_OF, REJECTED)
    return Verdict(
        Outcome.REFUSED_SOME,
        REJECTED if named else "silenced" if silenced else "throttled",
        dead=dead,
        said={index: _said_of(index, body) for index in dead},
        pauses=throttled.pauses,
        paused=throttled.paused - dead.keys(),
    )


def _said_of(index: int, body: Mapping[str, Any]) -> str:
    """What an answer says of one event, as JSON: each list by what it names of that event instead of by indexes."""
    said: dict[str, Any] = {key: body[key] for key in ("code", "error") if key in body}
    for key in _LISTS:
        lists = body.get(key)
        if isinstance(lists, Mapping):
            fields = sorted(str(field) for field, indexes in lists.items() if index in _indexes(indexes))
            said |= {key: fields} if fields else {}
        elif index in _indexes(lists):
            said[key] = []
    if index in _indexes(body.get("silenced_events")):
        said |= {"silenced_devices": body.get("silenced_devices", [])}
    return orjson.dumps(said).decode()


_THROTTLE_KEYS = (
    "throttled_users",
    "throttled_devices",
    "throttled_events",
    "exceeded_daily_quota_users",
    "exceeded_daily_quota_devices",
)


def _has_throttled(body: Mapping[str, Any]) -> bool:
    return any(body.get(key) for key in _THROTTLE_KEYS)


def _throttled(body: Mapping[str, Any], identities: Sequence[tuple[str, ...]], delay: float | None) -> Verdict:
    if not _has_throttled(body):
        wait = PROJECT_PAUSE_SECONDS if delay is None else delay
        return Verdict(Outcome.AGAIN, "project_throttled", delay=wait, whole_project=True)
    quota = _names(body, "exceeded_daily_quota_users", "u:") | _names(body, "exceeded_daily_quota_devices", "d:")
    listed = _indexes(body.get("throttled_events"))
    rate = _names(body, "throttled_users", "u:") | _names(body, "throttled_devices", "d:")
    named = quota | rate
    pauses: dict[str, tuple[str, float]] = {}
    for index, own in enumerate(identities):
        if index not in listed and not named & set(own):
            continue
        # Listed without being named: over whichever limit the answer is about; the longer wait only if no other is.
        over_quota = bool(quota & set(own)) or (bool(quota) and not rate)
        pause = (
            ("over_daily_quota", max(QUOTA_PAUSE_SECONDS, delay or 0.0))
            if over_quota
            else ("throttled", USER_PAUSE_SECONDS if delay is None else delay)
        )
        if own[0] not in pauses or pauses[own[0]][1] < pause[1]:
            pauses[own[0]] = pause
    # The lane's own identity of an event is its first: whoever shares it waits too, or its order would break.
    paused = frozenset(index for index, own in enumerate(identities) if own[0] in pauses)
    if not paused:
        return Verdict(Outcome.AGAIN, "throttled", delay=USER_PAUSE_SECONDS if delay is None else delay)
    return Verdict(Outcome.REFUSED_SOME, "throttled", pauses=pauses, paused=paused)


def _names(body: Mapping[str, Any], key: str, prefix: str) -> set[str]:
    names = body.get(key)
    return {prefix + str(name) for name in names} if isinstance(names, dict | list) else set()


def _indexes(value: object) -> set[int]:
    """The indexes in a list, or in the lists of a map from field to list."""
    if isinstance(value, Mapping):
        return set().union(*(_indexes(part) for part in value.values())) if value else set()
    if isinstance(value, list):
        return {index for index in value if isinstance(index, int) and not isinstance(index, bool)}
    return set()


def _parse(body: bytes) -> tuple[Mapping[str, Any], bool]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}, False
    return (parsed, True) if isinstance(parsed, dict) else ({}, False)
