"""Warehouse rows of one user, written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from nami_amp_pipeline_tests.support.reference import Row

NOON = datetime(2026, 9, 1, 12, tzinfo=UTC)
ACCOUNT = [{"key": "external_id", "type": "uuid", "value": "account-1"}]


def row(ident: str, minute: float, event_type: str = "user.subscription.renewed", /, **payload: Any) -> Row:
    """A warehouse row of user `u`, created `minute` minutes after noon and loaded a second later."""
    created = NOON + timedelta(minutes=minute)
    return {
        "id": ident,
        "app_id": "app",
        "event_type": event_type,
        "user_id": "u",
        "created_date": created,
        "ingested_at": created + timedelta(seconds=1),
        "payload": json.dumps(payload),
    }


def renewal(number: int, at: datetime, external: str | None = None) -> dict[str, Any]:
    """A row of the events table: created and loaded at once, of a user of that External ID, or of none."""
    ids = [] if external is None else [{"key": "external_id", "type": "string", "value": external}]
    return {
        "id": f"e{number}", "app_id": "radio", "event_type": "user.subscription.renewed",
        "user_id": f"user-{external}", "created_date": at, "ingested_at": at,
        "payload": orjson.dumps({"external_ids": ids}).decode(),
    }  # fmt: skip
