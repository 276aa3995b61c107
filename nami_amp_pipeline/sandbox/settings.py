"""What a sandbox is set up with: the projects it knows and how strict it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, Literal

V2_PATH: Final = "/2/httpapi"
BATCH_PATH: Final = "/batch"
EXPORT_PATH: Final = "/api/2/export"

MAX_BYTES: Final = {V2_PATH: 1_000_000, BATCH_PATH: 20_000_000}
"""Largest request body by path, counted after decompression."""

MAX_EVENTS: Final = 2_000
MAX_TEXT: Final = 1_024
"""Characters after which Amplitude cuts a string (https://amplitude.com/docs/faq/limits)."""

Region = Literal["us", "eu"]

DEDUPLICATION_SECONDS: Final = 7 * 24 * 3600


@dataclass(frozen=True)
class Project:
    """A project that the sandbox knows.

    Attributes:
        id: the number that names the project's folder and files in an export; 0 makes one of the key.
        name: shown on the page.
        secret_key: needed for the Export API; None lets any secret in.
        region: where its keys are right, for requests to one of Amplitude's own hosts; None for anywhere.
    """

    id: int = 0
    name: str = ""
    secret_key: str | None = field(default=None, repr=False)
    region: Region | None = None


@dataclass(frozen=True)
class Options:
    """How the sandbox behaves where Amplitude's documentation leaves room, and what it leaves out.

    Attributes:
        index_mode: what the index lists of a 400 name: the first event per field (the HTTP V2 page), all of them (the
            Batch page), or none.
        short_id: refuse a request with a too short id (as observed) or strip the id (as documented).
        empty_events: the status for an empty ``events`` array.
        dup_counts_in_events_ingested: whether ``events_ingested`` counts the events that were dropped as repeats.
        mixed_properties: operations and plain keys in one ``user_properties``: refuse, or apply the plain keys last.
        dedup: ``device`` keys a repeat by device (or user, where there is no device) and ``insert_id``; ``insert_id``
            by that id alone.
        throttle: whether users and devices are throttled and have a daily quota.
        v2_events_per_second: per user and per device on ``/2/httpapi``, as an average over 30 s.
        batch_events_per_second: the same on ``/batch``.
        daily_quota: events per user and per device in a rolling 24 hours, in steps of an hour.
        property_updates_per_hour: profile updates per user, after which updates are dropped silently.
        latency_ms: how long every answer of the upload and export endpoints takes.
        keep_events: the newest events whose JSON is kept; older ones still count and are still recognised as repeats,
            but an export of their hours is a 504.
        keep_request_events: the events of the newest requests, whose ids are kept to find their requests.
        export_delay_hours: hours after the end of an hour before it can be exported.
        export_max_bytes: size of the exported JSON over which an export is refused.
        export_partition: events per exported file.
        export_identify: whether ``$identify`` calls are exported, which is not documented.
        blind: count the events and answer 200 without looking at them, to measure a client alone.
    """

    index_mode: Literal["first", "all", "none"] = "all"
    short_id: Literal["reject", "strip"] = "reject"
    empty_events: Literal[400, 200] = 400
    dup_counts_in_events_ingested: bool = True
    mixed_properties: Literal["reject", "merge"] = "reject"
    dedup: Literal["device", "insert_id"] = "device"
    throttle: bool = True
    v2_events_per_second: int = 30
    batch_events_per_second: int = 1_000
    daily_quota: int = 500_000
    property_updates_per_hour: int = 1_800
    latency_ms: float = 0.0
    keep_events: int = 1_000_000
    keep_request_events: int = 200_000
    export_delay_hours: float = 2
    export_max_bytes: int = 4_000_000_000
    export_partition: int = 50_000
    export_identify: bool = False
    blind: bool = False


def key_digest(api_key: str) -> str:
    """The SHA-256 of an API key as hex text: what the sandbox keeps instead of the key."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).hexdigest()


def key_hint(api_key: str) -> str:
    """What of an API key may be shown: its last four characters, or nothing of a short key."""
    return "…" + (api_key[-4:] if len(api_key) >= 8 else "")
