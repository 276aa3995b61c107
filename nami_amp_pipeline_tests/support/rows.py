"""Warehouse rows of one user, written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

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
