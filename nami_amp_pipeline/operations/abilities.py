"""What destinations say of themselves, and what only some can do beside taking events."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, Literal

from nami_amp_pipeline.destinations import DESTINATIONS, destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.state.integration_rows import Integration

Ability = Literal["identify", "reconcile"]

_LACKS: Final[dict[Ability, str]] = {
    "identify": "takes events only, so there is no identify: each event brings its user's properties",
    "reconcile": "does not tell which events it holds, so there is nothing to reconcile with",
}


def need_ability(integration: Integration, ability: Ability) -> None:
    """Checks that the destination of an integration can do something.

    Raises:
        Misconfigured: it cannot; the message says so in one line.
    """
    destination = destination_of(integration.destination)
    if ability not in destination.abilities:
        raise Misconfigured(f"{integration.key}: {destination.title} {_LACKS[ability]}")


def described_destinations() -> tuple[list[dict[str, Any]], list[str]]:
    """All destinations as JSON objects, and a line for each that cannot be used."""
    found, unusable = [], []
    for name in DESTINATIONS:
        try:
            destination = destination_of(name)
        except Misconfigured as error:
            unusable.append(str(error))
            continue
        limits = destination.limits(next(iter(destination.endpoints.values()), "https://host/"))
        found.append(
            {
                "destination": name,
                "title": destination.title,
                "endpoints": dict(destination.endpoints),
                "fields": [asdict(field) for field in destination.fields],
                "limits": {
                    "events": limits.events,
                    "bytes": limits.size,
                    "events_per_second": limits.events_per_second,
                    "recognises_repeats_seconds": int(limits.recognises_repeats.total_seconds()),
                },
                "answers": dict(destination.answers),
                "abilities": sorted(destination.abilities),
            }
        )
    return found, unusable
