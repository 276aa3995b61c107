"""The Export API: the stored events of some hours as a zip of gzipped NDJSON files, in Amplitude's names and spellings.

https://amplitude.com/docs/apis/analytics/export
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from .answers import Answer, json_answer
from .profiles import DEVICE_GROUP, LOCATION_GROUP, Profile, Profiles
from .settings import Options
from .store import Batch
from .validation import Event

_MAX_DAYS: Final = 365
_CLOCK_SKEW_MS: Final = 60_000
_NOT_EVENTS: Final = frozenset({"$identify", "$groupidentify"})
_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - exported times carry no zone
_NAMESPACE: Final = uuid.UUID("5a4a1c1e-6b0f-4f3b-9a43-2f6f8f1d7b10")
_RENAMED: Final = {
    "adid": "adid",
    "device_brand": "device_brand",
    "device_manufacturer": "device_manufacturer",
    "device_model": "device_model",
    "carrier": "device_carrier",
    "idfa": "idfa",
    "ip": "ip_address",
    "language": "language",
    "library": "library",
    "location_lat": "location_lat",
    "location_lng": "location_lng",
}


def credentials(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """The API key and secret key of a Basic ``Authorization`` header, or None where there are none.

    Args:
        headers: with lower-case names.
    """
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        key, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (key, secret) if colon else None


def export(project_id: int, batches: Iterable[Batch], query: str, now: float, options: Options) -> Answer:
    """Answers an export request.

    Args:
        project_id: names the folder and the files.
        batches: all of the project's, in the order of their receipt.
        query: the query string, with ``start`` and ``end`` hours (UTC, both inclusive, by upload time).
        now: seconds since the epoch.
        options: the delay, the largest size and the size of a file.
    """
    given = parse_qs(query)
    try:
        start, end = (_hour(given[name][0]) for name in ("start", "end"))
    except (KeyError, ValueError):
        return json_answer(400, {"error": "start and end must be hours such as 20260131T05"})
    if end < start or end - start > timedelta(days=_MAX_DAYS):
        return json_answer(400, {"error": f"start must not be after end, nor more than {_MAX_DAYS} days before it"})
    first = start.timestamp()
    after = min(end.timestamp() + 3600, _exportable_until(now, options))
    files: dict[str, list[bytes]] = {}
    size = 0
    for hour, line in _lines(project_id, batches, first, after, options):
        size += len(line)
        if size > options.export_max_bytes:
            return json_answer(
                400, {"error": "The file size of the exported data is too large. Shorten the time range."}
            )
        files.setdefault(hour, []).append(line)
    if not files:
        return json_answer(404, {"error": "Raw data files were not found."})
    return Answer(200, {"Content-Type": "application/zip"}, _zip(project_id, files, options.export_partition))


def _exportable_until(now: float, options: Options) -> float:
    """The moment before which an event must have been uploaded to be in an export at ``now``."""
    if options.export_delay_hours == 0:
        return float("inf")
    return (now - options.export_delay_hours * 3600) // 3600 * 3600


def _hour(text: str) -> datetime:
    if len(text) != len("20260131T05"):
        raise ValueError(text)
    return datetime.strptime(text, "%Y%m%dT%H").replace(tzinfo=UTC)


def _lines(
    project_id: int, batches: Iterable[Batch], first: float, after: float, options: Options
) -> Iterator[tuple[str, bytes]]:
    """File hour and line of each event in the range. The users are replayed: each has its properties as of then."""
    profiles = Profiles(options)
    for batch in batches:
        if batch.received_at >= after:
            break
        hour = datetime.fromtimestamp(batch.received_at, UTC)
        name = f"{hour:%Y-%m-%d}_{hour.hour}"
        for offset, event in enumerate(batch.events()):
            profile = profiles.apply(event, batch.received_at)
            if batch.received_at >= first and event["event_type"] not in _NOT_EVENTS:
                record = _record(project_id, batch, batch.first + offset, event, profile)
                yield name, orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _record(project_id: int, batch: Batch, number: int, event: Event, profile: Profile) -> dict[str, Any]:
    received_ms = int(batch.received_at * 1000)
    sent_ms = event.get("time")
    client_ms = received_ms if sent_ms is None else int(sent_ms)
    upload_ms = _client_upload_ms(batch.client_upload_time)
    skew = received_ms - upload_ms if upload_ms is not None else 0
    event_ms = client_ms + (skew if abs(skew) >= _CLOCK_SKEW_MS else 0)
    skipped = event.get("$skip_user_properties_sync")
    own = event.get("user_properties") or {}
    record: dict[str, Any] = {
        "$insert_id": event.get("insert_id"),
        "$schema": None,
        "amplitude_attribution_ids": None,
        "amplitude_event_type": None,
        "amplitude_id": profile.amplitude_id,
        "app": project_id,
        "client_event_time": _spelled(client_ms),
        "client_upload_time": _spelled(received_ms if upload_ms is None else upload_ms),
        "data": {},
        "device_family": event.get("device_model"),
        "device_id": event.get("device_id"),
        "device_type": event.get("device_model"),
        "event_id": event.get("event_id", number),
        "event_properties": event.get("event_properties") or {},
        "event_time": _spelled(event_ms),
        "event_type": event["event_type"],
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
        "user_id": event.get("user_id"),
        "user_properties": own if skipped else dict(profile.user_properties),
        "uuid": str(uuid.uuid5(_NAMESPACE, f"{project_id}/{number}")),
        "version_name": event.get("app_version") or event.get("version_name"),
    }
    record |= {exported: event.get(sent) for sent, exported in _RENAMED.items()}
    record |= {name: event.get(name) for name in (*DEVICE_GROUP[:3], *LOCATION_GROUP)}
    return dict(sorted(record.items()))


def _client_upload_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _spelled(milliseconds: int) -> str:
    """A time as exports have it, without a zone; one that no calendar has, as its end."""
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        moment = datetime.max if milliseconds > 0 else datetime.min  # noqa: DTZ901 - exported times carry no zone
    return moment.isoformat(sep=" ", timespec="microseconds")


def _zip(project_id: int, files: Mapping[str, list[bytes]], partition: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for hour, lines in files.items():
            for part, begin in enumerate(range(0, len(lines), partition)):
                content = gzip.compress(b"".join(lines[begin : begin + partition]), 6, mtime=0)
                entry = zipfile.ZipInfo(f"{project_id}/{project_id}_{hour}#{part}.json.gz", (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, content)
    return packed.getvalue()
