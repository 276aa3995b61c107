"""The input to add or change an integration, and how it is shown; see ``Operations``."""

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


def described(integration: Integration) -> dict[str, Any]:
    """All settings of an integration as a JSON object; keys only as set or not set."""
    return {
        "integration": integration.key,
        "state": state(integration),
        "error": integration.halted_reason or integration.last_error,
        "version": integration.version,
        "endpoint": integration.endpoint,
        "api_key": "set",
        "secret_key": "set" if integration.secret_key else "not set",
        "user_id": integration.user_id_kind,
        "anonymous": integration.anonymous,
        "selection": list(integration.patterns),
        "events": list(integration.events),
        "rename": dict(integration.rename),
        "sandbox": integration.sandbox,
        "exclude": list(integration.exclude),
        "hash": list(integration.hashed),
        "revenue": integration.revenue,
        "store_fees": dict(integration.store_fees),
        "start_from": to_text(integration.start_from) or "beginning",
        "created_at": to_text(integration.created_at),
    }


def recorded(record: ChangeRecord) -> dict[str, Any]:
    """A change as a JSON object."""
    return {
        "version": record.version,
        "at": to_text(record.at),
        "by": record.by,
        "what": {name: list(pair) for name, pair in record.what.items()},
    }


def state(integration: Integration) -> str:
    """Whether an integration is enabled, disabled or halted."""
    if not integration.enabled:
        return "disabled"
    return "halted" if integration.halted_reason else "enabled"


def region(integration: Integration) -> str:
    """``us`` or ``eu``, or the host of another endpoint."""
    regions = {url: name for name, url in contract.ENDPOINTS.items()}
    return regions.get(integration.endpoint) or urlsplit(integration.endpoint).netloc
