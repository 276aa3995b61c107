"""What a person gives to add or change an integration, and how one is shown; see ``Operations``."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.state.integration_changes import UNCHANGED, IntegrationChange, Unchanged
from nami_amp_pipeline.state.integration_history import ChangeRecord
from nami_amp_pipeline.state.integrations import Integration, NewIntegration

__all__ = [
    "UNCHANGED",
    "ChangeRecord",
    "Integration",
    "IntegrationChange",
    "NewIntegration",
    "Unchanged",
    "described",
    "recorded",
    "region",
    "state",
]


def described(one: Integration) -> dict[str, Any]:
    """All settings of an integration as a JSON object; of the keys only whether they are set."""
    return {
        "integration": one.key,
        "state": state(one),
        "error": one.halted_reason or one.last_error,
        "version": one.version,
        "endpoint": one.endpoint,
        "api_key": "set",
        "secret_key": "set" if one.secret_key else "not set",
        "user_id": one.user_id_kind,
        "anonymous": one.anonymous,
        "selection": list(one.patterns),
        "events": list(one.events),
        "rename": dict(one.rename),
        "sandbox": one.sandbox,
        "exclude": list(one.exclude),
        "hash": list(one.hashed),
        "revenue": one.revenue,
        "store_fees": dict(one.store_fees),
        "start_from": to_text(one.start_from) or "beginning",
        "created_at": to_text(one.created_at),
    }


def recorded(record: ChangeRecord) -> dict[str, Any]:
    """A change as a JSON object."""
    return {
        "version": record.version,
        "at": to_text(record.at),
        "by": record.by,
        "what": {name: list(pair) for name, pair in record.what.items()},
    }


def state(one: Integration) -> str:
    """Whether an integration is enabled, disabled or halted."""
    if not one.enabled:
        return "disabled"
    return "halted" if one.halted_reason else "enabled"


def region(one: Integration) -> str:
    """``us`` or ``eu``, or the host of another endpoint."""
    regions = {url: name for name, url in contract.ENDPOINTS.items()}
    return regions.get(one.endpoint) or urlsplit(one.endpoint).netloc
