"""The input to add or change an integration, and how it is shown; see ``Operations``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.destinations import destination_of, own_fields
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import integration_history
from nami_amp_pipeline.state import integration_rules as rules
from nami_amp_pipeline.state.integration_changes import UNCHANGED, IntegrationChange, Unchanged
from nami_amp_pipeline.state.integration_history import ChangeRecord
from nami_amp_pipeline.state.integrations import Integration, NewIntegration, get
from nami_amp_pipeline.state.own_fields import check_given, mistakes, with_defaults
from nami_amp_pipeline.state.store import Store

__all__ = [
    "UNCHANGED",
    "ChangeRecord",
    "Integration",
    "IntegrationChange",
    "KeyEnds",
    "NewIntegration",
    "Unchanged",
    "check_fields_in_clear",
    "described",
    "is_secret_field",
    "key_ends",
    "keys_of",
    "mistakes_of_fields",
    "own_fields_of",
    "recorded",
    "region",
    "rules",
    "settled",
    "state",
]


_SHORTEST_KEY: Final = 16
"""Of a shorter key the last characters would be too much of it."""


@dataclass(frozen=True)
class KeyEnds:
    """The last four characters of an integration's keys; empty where a key is too short for that.

    Attributes:
        api_key: of the API key.
        api_key_set: when it was set, in µs since the epoch.
        secret_key: of the secret key; None if there is none.
        secret_key_set: when it was set.
    """

    api_key: str
    api_key_set: int
    secret_key: str | None
    secret_key_set: int | None


def key_ends(store: Store, cipher: Cipher, key: str) -> KeyEnds:
    """The last characters of an integration's keys.

    Raises:
        Misconfigured: there is none of that name.
    """
    integration = get(store, key)
    changed: dict[str, int] = {}
    for record in integration_history.history(store, key):
        changed |= dict.fromkeys(("api_key", "secret_key") if "added" in record.what else record.what, record.at)
    return KeyEnds(
        _end(cipher, integration.api_key),
        changed.get("api_key", integration.created_at),
        _end(cipher, integration.secret_key) if integration.secret_key else None,
        changed.get("secret_key", integration.created_at) if integration.secret_key else None,
    )


def _end(cipher: Cipher, token: str) -> str:
    try:
        text = cipher.decrypt(token).reveal()
    except Misconfigured:  # the page on which it can be replaced has to open
        return ""
    return text[-4:] if len(text) >= _SHORTEST_KEY else ""


def settled(
    destination: str, *, endpoint: str | None, api_key: Secret | None, secret_key: Secret | None
) -> tuple[str, Secret, Secret | None]:
    """Endpoint and keys of a new integration: what is not given has its default.

    Raises:
        Misconfigured: the destination is unknown, or needs what was not given.
    """
    given: dict[str, object] = {"endpoint": endpoint, "api_key": api_key, "secret_key": secret_key}
    target = destination_of(destination)
    own = own_fields(target)
    for field in (field for field in target.fields if field.name not in own):
        if given[field.name] is None and field.default is not None:
            given[field.name] = Secret(field.default) if field.is_secret else field.default
        if given[field.name] is None and field.is_required:
            option = field.name.replace("_", "-")
            ways = f"--{option}-env, --{option}-file or --{option}-stdin" if field.is_secret else f"--{option}"
            raise Misconfigured(f"give the {field.label} by {ways}")
    endpoint, api_key = given["endpoint"], given["api_key"]  # type: ignore[assignment]
    if endpoint is None or api_key is None:
        raise Misconfigured("an integration needs an endpoint and a key")
    return endpoint, api_key, secret_key


def keys_of(integration: Integration) -> dict[str, str]:
    """The keys that its destination has, by what they are called there, each as set or not set."""
    labels = {"api_key": "API key", "secret_key": "secret key"}
    with suppress(Misconfigured):
        fields = destination_of(integration.destination).fields
        labels = {field.name: field.label for field in fields if field.is_secret}
    stored = {"api_key": integration.api_key, "secret_key": integration.secret_key}
    return {
        label[:1].upper() + label[1:]: "set" if stored[name] else "not set"
        for name, label in labels.items()
        if name in stored
    }


def mistakes_of_fields(
    destination: str, fields: Mapping[str, str], secret_fields: Mapping[str, Secret | None]
) -> dict[str, str]:
    """What is wrong with the values of a destination's own fields; see ``state.own_fields.mistakes``."""
    return mistakes(destination_of(destination), fields, secret_fields)


def check_fields_in_clear(destination: str, fields: Mapping[str, str]) -> None:
    """Checks the names of fields that everybody sees.

    Raises:
        Misconfigured: the destination has no such field of its own, or it is a secret.
    """
    check_given(destination_of(destination), fields, ())


def is_secret_field(integration: Integration, name: str) -> bool:
    """Whether a field of the destination's own is a secret.

    Raises:
        Misconfigured: there is no such field, and none is stored.
    """
    if name in integration.fields or name in integration.secret_fields:
        return name in integration.secret_fields
    declared = own_fields(destination_of(integration.destination)).get(name)
    if declared is None:
        check_fields_in_clear(integration.destination, {name: ""})
    return declared is not None and declared.is_secret


def own_fields_of(integration: Integration) -> dict[str, str]:
    """The fields that its destination has of its own, by what they are called there; secrets as set or not set."""
    try:
        target = destination_of(integration.destination)
    except Misconfigured:
        return dict(integration.fields) | dict.fromkeys(integration.secret_fields, "set")
    values = with_defaults(target, integration.fields)
    return {
        field.label[:1].upper() + field.label[1:]: ("set" if name in integration.secret_fields else "not set")
        if field.is_secret
        else values.get(name, "not set")
        for name, field in own_fields(target).items()
    }


def _own(integration: Integration) -> tuple[dict[str, str], dict[str, str]]:
    """The values of the fields, and of the secrets only which are set."""
    fields, secrets = dict(integration.fields), dict.fromkeys(integration.secret_fields, "set")
    with suppress(Misconfigured):
        target = destination_of(integration.destination)
        fields = with_defaults(target, integration.fields)
        secrets = {
            name: "set" if name in integration.secret_fields else "not set"
            for name, field in own_fields(target).items()
            if field.is_secret
        }
    return fields, secrets


def described(integration: Integration) -> dict[str, Any]:
    """All settings of an integration as a JSON object; keys and secrets only as set or not set."""
    fields, secret_fields = _own(integration)
    return {
        "integration": integration.key,
        "state": state(integration),
        "error": integration.halted_reason or integration.last_error,
        "version": integration.version,
        "destination": integration.destination,
        "endpoint": integration.endpoint,
        "api_key": "set",
        "secret_key": "set" if integration.secret_key else "not set",
        "fields": fields,
        "secret_fields": secret_fields,
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
        "managed_by": integration.managed_by,
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
