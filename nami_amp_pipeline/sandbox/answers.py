"""The answers of the sandbox: the shapes that Amplitude documents, and what becomes of the connection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import orjson

Transport = Literal["reset_before_response", "closed", "truncated_body", "stall", "trickle"]
"""What happens to the connection instead of an orderly answer.

``reset_before_response``: a TCP reset and no answer. ``closed``: an orderly close and no answer. ``truncated_body``:
the headers and half the body, then a close. ``stall``: nothing for ``delay_s``, then a close. ``trickle``: the whole
answer, its body byte by byte over ``delay_s``.
"""

JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What a request gets back.

    Attributes:
        status: the HTTP status; what it would have been where ``transport`` keeps it from the client.
        headers: without ``Content-Length`` and ``Connection``.
        body: the whole body, also where ``transport`` cuts it.
        transport: None for an orderly answer.
        delay_s: seconds that pass before the answer; for ``stall`` and ``trickle`` see `Transport`.
        accepted: events that this request added to the project, whatever the answer says.
        interim: statuses of the interim answers (1xx) that come before.
        file: the body instead of ``body``, where it may be large; whoever reads it closes the answer.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    transport: Transport | None = None
    delay_s: float = 0.0
    accepted: int = 0
    interim: tuple[int, ...] = ()
    file: IO[bytes] | None = field(default=None, compare=False)

    def length(self) -> int:
        """Bytes of the whole body."""
        if self.file is None:
            return len(self.body)
        here = self.file.tell()
        end = self.file.seek(0, os.SEEK_END)
        self.file.seek(here)
        return end

    def read(self) -> bytes:
        """The whole body, wherever it is; afterwards the answer is closed."""
        if self.file is None:
            return self.body
        with self.file:
            return self.file.read()

    def close(self) -> None:
        """Lets go of the file."""
        if self.file is not None:
            self.file.close()


def json_answer(status: int, content: Any, *, reason: str = "") -> Answer:
    """An answer with a JSON body.

    Args:
        status: the HTTP status.
        content: what orjson can write.
        reason: for whoever debugs, in an ``X-Sandbox-Reason`` header; must hold no text of the sender's.
    """
    headers = {**JSON_HEADERS, "X-Sandbox-Reason": reason} if reason else JSON_HEADERS
    return Answer(status, headers, orjson.dumps(content))


def refusal(status: int, error: str, reason: str = "", **more: Any) -> Answer:
    """Amplitude's error body: ``code``, ``error`` and what else belongs to it."""
    return json_answer(status, {"code": status, "error": error, **more}, reason=reason)


def accepted_answer(ingested: int, payload_bytes: int, uploaded_ms: int, accepted: int) -> Answer:
    """Amplitude's 200.

    Args:
        ingested: the ``events_ingested`` to report.
        payload_bytes: size of the decompressed body.
        uploaded_ms: ``server_upload_time``, milliseconds since the epoch.
        accepted: events that were new.
    """
    body = orjson.dumps(
        {
            "code": 200,
            "events_ingested": ingested,
            "payload_size_bytes": payload_bytes,
            "server_upload_time": uploaded_ms,
        }
    )
    return Answer(200, JSON_HEADERS, body, accepted=accepted)


def throttled_answer(
    threshold: int,
    users: Mapping[str, int],
    devices: Mapping[str, int],
    quota_users: Mapping[str, int],
    quota_devices: Mapping[str, int],
    indexes: Sequence[int],
) -> Answer:
    """Amplitude's 429 for some users and devices.

    Args:
        threshold: events per second allowed.
        users: throttled user id to its events per second.
        devices: the same for devices.
        quota_users: user id over its daily quota to its events of the day.
        quota_devices: the same for devices.
        indexes: every event of those users and devices.
    """
    content: dict[str, Any] = {
        "code": 429,
        "error": "Too many requests for some devices and users",
        "eps_threshold": threshold,
        "throttled_devices": devices,
        "throttled_users": users,
    }
    if quota_users or quota_devices:
        content["exceeded_daily_quota_users"] = quota_users
        content["exceeded_daily_quota_devices"] = quota_devices
    content["throttled_events"] = list(indexes)
    return json_answer(429, content)
