"""Writes the integrations that there are as a file, with the places of their keys instead of the keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.destinations import destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.apps import App
from nami_amp_pipeline.operations.as_code.document import IntegrationEntry
from nami_amp_pipeline.state.integrations import Integration

_HEAD: Final = """\
# The integrations of nami-amp-pipeline, as code.
# Keys are not in here: put each into the environment variable that is named for it, or write 'keep: true' in its place.
"""


def exported(integrations: Sequence[Integration], apps: Sequence[App], sharing: Collection[str] = ()) -> dict[str, Any]:
    """The file of integrations, as plain values. What has its default is left out.

    Args:
        integrations: the integrations.
        apps: the apps; those on the free plan are in the file even without an integration.
        sharing: keys of the integrations that have the API key of another.
    """
    taken: set[str] = set()
    found: dict[str, dict[str, Any]] = {app.app_id: {"plan": "free"} for app in apps if app.plan == "free"}
    for integration in sorted(integrations, key=lambda integration: integration.key):
        app = found.setdefault(integration.app_id, {})
        app.setdefault("integrations", {})[integration.name] = _entry(integration, taken, integration.key in sharing)
    return {"version": 1, "apps": dict(sorted(found.items()))}


def as_yaml(document: dict[str, Any]) -> str:
    """The text of the file."""
    import yaml

    return _HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _entry(integration: Integration, taken: set[str], is_shared: bool) -> dict[str, Any]:
    try:
        endpoints = destination_of(integration.destination).endpoints
    except Misconfigured:  # its package is gone; what stands in the store is exported all the same
        endpoints = {}
    regions = {url: region for region, url in endpoints.items()}
    values: dict[str, Any] = {
        "enabled": integration.enabled,
        "allow_custom_endpoint": bool(regions) and integration.endpoint not in regions,
        "allow_shared_key": is_shared,
        "destination": integration.destination,
        "endpoint": regions.get(integration.endpoint, integration.endpoint),
        "api_key": {"env": _variable(integration, "API_KEY", taken)},
        "secret_key": {"env": _variable(integration, "SECRET_KEY", taken)} if integration.secret_key else None,
        "fields": dict(integration.fields),
        "secret_fields": {
            name: {"env": _variable(integration, name.upper(), taken)} for name in integration.secret_fields
        },
        "user_id": integration.user_id_kind,
        "anonymous": integration.anonymous,
        "events": list(integration.patterns),
        "sandbox": integration.sandbox,
        "exclude": list(integration.exclude),
        "hash": list(integration.hashed),
        "start_from": to_text(integration.start_from) or "beginning",
        "revenue": integration.revenue,
        "store_fees": dict(integration.store_fees),
        "rename": dict(integration.rename),
    }
    defaults = {field.alias or name: field.default for name, field in IntegrationEntry.model_fields.items()}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _variable(integration: Integration, kind: str, taken: set[str]) -> str:
    """The name of an environment variable for a key, which no other key has."""
    words = re.sub(r"[^A-Z0-9]+", "_", integration.key.upper()).strip("_")
    name = f"{words or 'APP'}_{kind}"
    name = name if name[0].isalpha() else f"APP_{name}"
    number, free = 2, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    taken.add(free)
    return free
