"""The answers of the fault rules: what a sender sees when Amplitude or the network fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from .answers import Answer, Transport, json_answer, refusal, throttled_answer
from .export import too_large as export_too_large
from .faults import Fault
from .settings import BATCH_PATH, Options
from .throttle import Verdict
from .uploads import too_large
from .validation import Columns, Findings

_HTML: Final = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n</body>\r\n</html>\r\n"
)
_TRANSPORTS: Final[dict[str, Transport]] = {
    "reset_before_response": "reset_before_response",
    "closed_without_answer": "closed",
    "truncated_body": "truncated_body",
    "stall": "stall",
    "trickle": "trickle",
}


def failure(fault: Fault, api_key: str | None) -> Answer:
    """The answer of a rule that comes in before anything is checked."""
    kind = fault.kind
    if kind in ("500", "502", "503", "504"):
        return _server_error(int(kind))
    if kind == "html_400":
        return _html(400, "400 Bad Request")
    if kind == "html_502":
        return _html(502, "502 Bad Gateway")
    if kind == "403":
        return refusal(403, "Forbidden")
    if kind == "413":
        return too_large("a rule says so")
    if kind == "project_429":
        answer = refusal(429, "Too many requests")
        if fault.retry_after is None:
            return answer
        return Answer(429, {**answer.headers, "Retry-After": str(fault.retry_after)}, answer.body)
    if kind == "redirect":
        return Answer(302, {"Location": fault.location})
    if kind == "export_too_large":
        return export_too_large()
    if kind == "invalid_key":
        return refusal(400, f"Invalid API key: {api_key or ''}")
    return Answer(503, transport=_TRANSPORTS[kind])


def refusal_of_events(fault: Fault, indexes: list[int], columns: Columns, path: str, options: Options) -> Answer:
    """The answer of a rule that is about certain events."""
    if fault.kind == "poison":
        named = {"first": indexes[:1], "all": indexes, "none": []}[fault.indexes]
        lists: dict[str, Any] = {"events_with_invalid_fields": {fault.field_name: named}} if named else {}
        return refusal(400, "Invalid field values on some events", **lists)
    limit = options.batch_events_per_second if path == BATCH_PATH else options.v2_events_per_second
    users = {user for index in indexes if (user := columns.users[index]) is not None}
    devices = {device for index in indexes if (device := columns.devices[index]) is not None}
    if fault.kind == "silence_device":
        hit = [index for index, device in enumerate(columns.devices) if device in devices] or indexes
        return refusal(
            400,
            "Events silenced for device_id",
            eps_threshold=limit,
            exceeded_daily_quota_devices={},
            silenced_devices=sorted(devices),
            silenced_events=hit,
            throttled_devices={},
            throttled_events=[],
        )
    rate = limit + 1 if fault.kind == "throttle_user" else options.daily_quota + 1
    if users and fault.device_id is None:
        devices = set()
    else:
        users = set()
    verdict = Verdict(limit)
    if fault.kind == "throttle_user":
        verdict.users, verdict.devices = dict.fromkeys(sorted(users), rate), dict.fromkeys(sorted(devices), rate)
    else:
        verdict.quota_users = dict.fromkeys(sorted(users), rate)
        verdict.quota_devices = dict.fromkeys(sorted(devices), rate)
    return throttled(verdict, columns)


def throttled(verdict: Verdict, columns: Columns) -> Answer:
    """The 429 that a verdict makes of a request."""
    return throttled_answer(
        verdict.threshold,
        verdict.users,
        verdict.devices,
        verdict.quota_users,
        verdict.quota_devices,
        verdict.indexes(columns.users, columns.devices),
    )


def _server_error(status: int) -> Answer:
    names = {500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout"}
    return refusal(status, names[status])


def _html(status: int, title: str) -> Answer:
    return Answer(status, {"Content-Type": "text/html"}, _HTML.format(title).encode())


def refusal_of_findings(findings: Findings, options: Options) -> Answer:
    """The 400 for events that are not good."""
    if findings.not_objects:
        return refusal(400, "Invalid event JSON")
    lists = {
        "events_with_missing_fields": findings.missing,
        "events_with_invalid_fields": findings.invalid,
        "events_with_invalid_id_lengths": findings.id_lengths,
    }
    if findings.missing:
        error = "Request missing required field"
    elif findings.invalid or not findings.id_lengths:
        error = "Invalid field values on some events"
    else:
        error = "Invalid id length for user_id or device_id"
    if options.index_mode == "none":
        return refusal(400, error)
    first_only = options.index_mode == "first"
    named = {
        name: {blamed: indexes[:1] if first_only else indexes for blamed, indexes in by_field.items()}
        for name, by_field in lists.items()
        if by_field
    }
    reason = "" if named else "an id that Amplitude reserves"
    return json_answer(400, {"code": 400, "error": error, **named}, reason=reason)


def spoiled(answer: Answer, fault: Fault) -> Answer:
    """A 200 that does not reach the client as such; the events are taken."""
    kind = fault.kind
    if kind == "interim_answers":
        return replace(answer, interim=(102, 103))
    if kind in ("stored_then_500", "stored_then_502", "stored_then_504"):
        failure = _server_error(int(kind.removeprefix("stored_then_")))
        return Answer(failure.status, failure.headers, failure.body, accepted=answer.accepted)
    if kind == "empty_body":
        return Answer(fault.status, accepted=answer.accepted)
    delay = fault.seconds if kind in ("stall", "trickle") else 0.0
    return replace(answer, transport=_TRANSPORTS[kind], delay_s=delay)
