"""Changes of an integration in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nami_amp_pipeline.operations.integrations import ChangeRecord

_LABELS: Final[Mapping[str, str]] = {
    "endpoint": "Endpoint",
    "api_key": "API Key",
    "secret_key": "Secret Key",
    "fields": "Fields of the destination",
    "user_id": "User ID",
    "anonymous": "Before login",
    "events": "Events",
    "rename": "Names in Amplitude",
    "sandbox": "Sandbox purchases",
    "exclude": "Fields that never leave",
    "hash": "Fields that leave as hashes",
    "revenue": "Revenue",
    "store_fees": "Store fees",
    "start_from": "Start",
    "enabled": "Enable Integration",
}


@dataclass(frozen=True)
class Said:
    """A change in words.

    Attributes:
        what: the field, or what was done.
        before: the value before; empty where there was none.
        after: the value after.
    """

    what: str
    before: str = ""
    after: str = ""


def in_words(record: ChangeRecord) -> list[Said]:
    """What changed, field by field."""
    found = []
    for field, (before, after) in record.what.items():
        if field in ("added", "removed"):
            found.append(Said("Integration added" if field == "added" else "Integration removed"))
        elif field in ("api_key", "secret_key"):
            found.append(Said(f"{_LABELS[field]} {'replaced' if after == 'changed' else after}"))
        elif field == "secret_fields":
            words = {"changed": "replaced"}
            found += [Said(f"Secret field {name} {words.get(word, word)}") for name, word in after.items()]
        else:
            found.append(Said(_LABELS.get(field, field.replace("_", " ")), _text(before), _text(after)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text}" for name, text in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
