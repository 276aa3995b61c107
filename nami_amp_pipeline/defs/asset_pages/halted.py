"""What Dagster says of an integration that is halted: why, since when, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.clock import to_datetime
from nami_amp_pipeline.operations.status import IntegrationStatus
from nami_amp_pipeline.stages.destinations import DESTINATIONS

DELIVERIES: Final = dg.AssetKey("amplitude_deliveries")


def how_to_resume(one: IntegrationStatus) -> str:
    """What to repair, and the commands after that."""
    return (
        f"{DESTINATIONS[one.destination].repair(one.error or '')}; see that 'nami-amp integrations test APP/NAME' "
        "succeeds; then "
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
