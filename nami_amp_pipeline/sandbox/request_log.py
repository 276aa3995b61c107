"""The newest requests with their answers, to find those that carried an event."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from .answers import Answer
from .settings import key_hint
from .uploads import Upload
from .validation import Columns, stored_id

_ANSWER_CHARACTERS: Final = 20_000
_REQUESTS: Final = 5_000


@dataclass(frozen=True)
class LoggedRequest:
    """One request to an upload endpoint.

    Attributes:
        number: counted from 1 since the start.
        received_at: seconds since the epoch.
        path: the endpoint.
        api_key: what of its key may be shown; empty where it had none.
        events: how many it carried.
        size: bytes of the body, decompressed.
        status: the HTTP status of the answer, or what became of the connection.
        answer: the beginning of the answer's body, without the key.
        delay_s: how long the answer was held back on purpose.
        users: each event's user id.
        devices: each event's device id.
        insert_ids: each event's insert id.
    """

    number: int
    received_at: float
    path: str
    api_key: str
    events: int
    size: int
    status: str
    answer: str
    delay_s: float
    users: Sequence[str | None]
    devices: Sequence[str | None]
    insert_ids: Sequence[str | None]

    def indexes(self, wanted: dict[str, str]) -> list[int]:
        """Indexes of the events that have one of these ids.

        Args:
            wanted: ``insert_id``, ``user_id`` and ``device_id``, as far as they are looked for.
        """
        columns = {"insert_id": self.insert_ids, "user_id": self.users, "device_id": self.devices}
        found: set[int] = set()
        for name, text in wanted.items():
            if text in columns[name]:
                found.update(index for index, value in enumerate(columns[name]) if value == text)
        return sorted(found)

    def blamed(self, index: int) -> list[str]:
        """Where the answer names an event: such as ``events_with_invalid_fields.time`` or ``throttled_events``."""
        try:
            content = orjson.loads(self.answer)
        except orjson.JSONDecodeError:
            return []
        named = []
        for name, value in content.items() if isinstance(content, dict) else ():
            if isinstance(value, list) and index in value:
                named.append(name)
            elif isinstance(value, dict):
                named += [f"{name}.{inner}" for inner, indexes in value.items() if _holds(indexes, index)]
        return named


class RequestLog:
    """The newest requests, bounded by their number and by the events that they carried."""

    def __init__(self, keep_events: int) -> None:
        """Starts with none.

        Args:
            keep_events: events whose ids are kept, at most; the newest request is kept in any case.
        """
        self._keep_events = keep_events
        self._requests: deque[LoggedRequest] = deque()
        self._events = 0
        self._number = 0

    def note(self, upload: Upload | None, columns: Columns | None, answer: Answer, path: str, now: float) -> None:
        """Adds a request.

        Args:
            upload: None where it could not be read.
            columns: of its events; None where they are not known to be good.
            answer: what it got.
            path: the endpoint.
            now: seconds since the epoch.
        """
        api_key = upload.api_key if upload is not None else None
        events: list[Any] = (upload.events if upload is not None else None) or []
        users, devices, insert_ids = (
            (columns.users, columns.devices, columns.insert_ids)
            if columns is not None
            else ([_text(event, name) for event in events] for name in ("user_id", "device_id", "insert_id"))
        )
        text = answer.body.decode("utf-8", "replace")
        if api_key:
            for spelled in (orjson.dumps(api_key).decode()[1:-1], api_key):
                text = text.replace(spelled, key_hint(api_key))
        self._number += 1
        logged = LoggedRequest(
            self._number,
            now,
            path,
            key_hint(api_key) if api_key else "",
            len(events),
            len(upload.body) if upload is not None else 0,
            answer.transport or str(answer.status),
            text[:_ANSWER_CHARACTERS],
            answer.delay_s,
            users,
            devices,
            insert_ids,
        )
        self._requests.append(logged)
        self._events += logged.events
        while len(self._requests) > 1 and (self._events > self._keep_events or len(self._requests) > _REQUESTS):
            self._events -= self._requests.popleft().events

    def newest(self) -> Iterator[LoggedRequest]:
        """The requests, newest first."""
        return reversed(list(self._requests))


def _holds(indexes: object, index: int) -> bool:
    return isinstance(indexes, list) and index in indexes


def _text(event: object, name: str) -> str | None:
    value = event.get(name) if isinstance(event, dict) else None
    if not isinstance(value, str):
        return None
    return value if name == "insert_id" else stored_id(value)
