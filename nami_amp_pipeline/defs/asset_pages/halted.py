"""What Dagster says of an integration that is halted: why, since when, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.clock import to_datetime
from nami_amp_pipeline.operations.status import IntegrationStatus

DELIVERIES: Final = dg.AssetKey("amplitude_deliveries")

_UPDATE: Final = "'nami-amp integrations update APP/NAME"
_ADDRESS: Final = f"Give it the address of Amplitude's HTTP API with {_UPDATE} --endpoint us' (or eu)"
_REPAIRS: Final = {
    "invalid_api_key": f"Give it the key of the right project, or the endpoint of its region, with {_UPDATE} …'",
    "forbidden": "A firewall or the region refuses this sender: ask Amplitude's support",
    "redirect": _ADDRESS,
    "http_404": _ADDRESS,
}
_ANY_REPAIR: Final = f"Give it another key or endpoint with {_UPDATE} …'"


def how_to_resume(one: IntegrationStatus) -> str:
    """What to repair, and the commands after that."""
    kind = (one.error or "").partition(":")[0].partition(" ")[0]
    return (
        f"{_REPAIRS.get(kind, _ANY_REPAIR)}; see that 'nami-amp integrations test APP/NAME' succeeds; then "
        "'nami-amp integrations enable APP/NAME': it goes on where it stopped."
    ).replace("APP/NAME", one.integration)


def in_a_line(one: IntegrationStatus) -> str:
    """That an integration is halted, why, and how it goes on."""
    return f"{one.integration}: {one.error}. It is halted; no events are lost, they stay queued. {how_to_resume(one)}"


def with_halts(problems: Iterable[str], halted: Iterable[IntegrationStatus]) -> list[str]:
    """Problems of a run, those of halted integrations with how they go on."""
    told = {one.integration: in_a_line(one) for one in halted}
    return [told.get(line.partition(": ")[0], line) for line in problems]


def observations(halted: Iterable[IntegrationStatus]) -> Iterator[dg.AssetObservation]:
    """An event in the history of each of these partitions."""
    for one in halted:
        yield dg.AssetObservation(
            DELIVERIES, description=in_a_line(one), metadata=facts(one), partition=one.integration.replace("/", "|")
        )


def facts(one: IntegrationStatus) -> dict[str, Any]:
    """The same as metadata of a check or an event of the integration's partition."""
    told: dict[str, Any] = {"halted": one.error or "", "how_to_resume": how_to_resume(one)}
    if one.halted_at is not None:
        told["halted_since"] = dg.MetadataValue.timestamp(to_datetime(one.halted_at))
    return told
