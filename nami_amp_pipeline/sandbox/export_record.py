"""One exported event: Amplitude's names and spellings for what an upload called otherwise.

https://amplitude.com/docs/apis/analytics/export
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from .batches import Batch
from .profiles import DEVICE_GROUP, LOCATION_GROUP, Profile, apply_properties, cut_texts
from .validation import Event, stored_id

_CLOCK_SKEW_MS: Final = 60_000
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - exported times carry no zone
_NAMESPACE: Final = uuid.UUID("5a4a1c1e-6b0f-4f3b-9a43-2f6f8f1d7b10")
_FIELDS: Final = (
    "$insert_id", "$schema", "adid", "amplitude_attribution_ids", "amplitude_event_type", "amplitude_id", "app",
    "city", "client_event_time", "client_upload_time", "country", "data", "device_brand", "device_carrier",
    "device_family", "device_id", "device_manufacturer", "device_model", "device_type", "dma", "event_id",
    "event_properties", "event_time", "event_type", "group_properties", "groups", "idfa", "ip_address",
    "is_attribution_event", "language", "library", "location_lat", "location_lng", "os_name", "os_version",
    "paying", "platform", "processed_time", "region", "sample_rate", "server_received_time", "server_upload_time",
    "session_id", "start_version", "user_id", "user_properties", "uuid", "version_name",
)  # fmt: skip
_RENAMED: Final = {
    "device_brand": "device_brand",
    "device_manufacturer": "device_manufacturer",
    "device_model": "device_model",
    "carrier": "device_carrier",
    "ip": "ip_address",
    "language": "language",
    "library": "library",
    "location_lat": "location_lat",
    "location_lng": "location_lng",
}


def record(project_id: int, batch: Batch, number: int, copy: int, event: Event, profile: Profile) -> dict[str, Any]:
    """A line of an export.

    Args:
        project_id: number of the project.
        batch: what the event came in.
        number: of the event in its project.
        copy: which copy of the event it is, from 0; each has a ``uuid`` of its own.
        event: as it is held.
        profile: the user's, after this event.
    """
    received_ms = int(batch.received_at * 1000)
    sent_ms = event.get("time")
    client_ms = received_ms if sent_ms is None else int(sent_ms)
    upload_ms = _client_upload_ms(batch.client_upload_time)
    skew = received_ms - upload_ms if upload_ms is not None else 0
    event_ms = client_ms + (skew if abs(skew) >= _CLOCK_SKEW_MS else 0)
    user_id = stored_id(event.get("user_id"))
    found: dict[str, Any] = {
        "$insert_id": event.get("insert_id"),
        "$schema": None,
        # These two are used for attribution, and never kept.
        "adid": None,
        "idfa": None,
        "amplitude_attribution_ids": None,
        "amplitude_event_type": None,
        "amplitude_id": profile.amplitude_id,
        "app": project_id,
        "client_event_time": _spelled(client_ms),
        "client_upload_time": _spelled(received_ms if upload_ms is None else upload_ms),
        "data": {},
        "device_family": event.get("device_model"),
        "device_id": stored_id(event.get("device_id")) or derived_device_id(user_id or ""),
        "device_type": event.get("device_model"),
        "event_id": event.get("event_id", number),
        "event_properties": cut_texts(event.get("event_properties") or {}),
        "event_time": _spelled(event_ms),
        "event_type": cut_texts(event["event_type"]),
        "group_properties": event.get("group_properties") or {},
        "groups": event.get("groups") or {},
        "is_attribution_event": False,
        "paying": None,
        "processed_time": _spelled(received_ms),
        "sample_rate": None,
        "server_received_time": _spelled(received_ms),
        "server_upload_time": _spelled(received_ms),
        "session_id": event.get("session_id", -1),
        "start_version": None,
        "user_id": user_id,
        "user_properties": _user_properties(event, profile),
        "uuid": str(uuid.uuid5(_NAMESPACE, f"{project_id}/{number}" + (f"/{copy}" if copy else ""))),
        "version_name": event.get("app_version") or event.get("version_name"),
    }
    found |= {exported: event.get(sent) for sent, exported in _RENAMED.items()}
    found |= {name: event.get(name) for name in (*DEVICE_GROUP[:3], *LOCATION_GROUP)}
    return {name: found[name] for name in _FIELDS}


def derived_device_id(user_id: str) -> str:
    """The device id that an event without any gets: a hash of its user id, the same for all events of the user."""
    return str(uuid.UUID(bytes=hashlib.sha256(user_id.encode("utf-8", "surrogatepass")).digest()[:16]))


def _user_properties(event: Event, profile: Profile) -> dict[str, Any]:
    if not event.get("$skip_user_properties_sync"):
        return dict(profile.user_properties)
    own: dict[str, Any] = {}
    apply_properties(own, event.get("user_properties") or {})
    return own


def _client_upload_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@lru_cache(4_096)
def _spelled(milliseconds: int) -> str:
    """A time as exports have it, without a zone; one that no calendar has, as its end."""
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        moment = datetime.max if milliseconds > 0 else datetime.min  # noqa: DTZ901 - exported times carry no zone
    return moment.isoformat(sep=" ", timespec="microseconds")
