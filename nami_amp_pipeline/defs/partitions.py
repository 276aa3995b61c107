"""The partitions, and how they are kept in step with the integrations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import dagster as dg
from sqlalchemy.exc import IntegrityError

from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.listed import Listed

APPS: Final = "nami_apps"
INTEGRATIONS: Final = "nami_app_integrations"
"""Names of dynamic partitions are shared by everything that one Dagster serves, hence the prefix."""

NAMES_BEFORE: Final = "nami_integrations"
"""What older versions crossed with the apps; nothing reads it any more."""

MOST_CHANGES: Final = 1_000
"""Partitions added or deleted at once, so that one evaluation of the sensor stays short."""

_ATTEMPTS: Final = 10


def apps_of(place: Place) -> dg.DynamicPartitionsDefinition:
    """The partitions by app of a pipeline."""
    return dg.DynamicPartitionsDefinition(name=place.name(APPS))


def integrations_of(place: Place) -> dg.DynamicPartitionsDefinition:
    """The same by integration."""
    return dg.DynamicPartitionsDefinition(name=place.name(INTEGRATIONS))


nami_apps = apps_of(DEFAULT)
app_integrations = integrations_of(DEFAULT)
"""``<app_id>|<name>``, one for each integration that exists. ADR 40 says why they have one dimension."""


def wanted_partitions(integrations: Iterable[Integration | Listed], place: Place = DEFAULT) -> dict[str, list[str]]:
    """The keys that there should be, by the name of the dynamic partitions."""
    everyone = list(integrations)
    return {
        place.name(APPS): sorted({integration.app_id for integration in everyone}),
        place.name(INTEGRATIONS): sorted({integration.partition_key for integration in everyone}),
    }


def missing_partitions(
    instance: dg.DagsterInstance, integrations: Iterable[Integration | Listed], place: Place = DEFAULT
) -> dict[str, list[str]]:
    """The keys that should be there and are not, at most :data:`MOST_CHANGES` of each; names without any left out."""
    missing = {}
    for name, wanted in wanted_partitions(integrations, place).items():
        there = set(instance.get_dynamic_partitions(name))
        new = [key for key in wanted if key not in there][:MOST_CHANGES]
        if new:
            missing[name] = new
    return missing


def orphaned_partitions(
    instance: dg.DagsterInstance,
    integrations: Iterable[Integration | Listed],
    removed: Iterable[str],
    place: Place = DEFAULT,
) -> dict[str, list[str]]:
    """The keys of removed integrations that no other one has; names without any left out.

    A key of which nothing is known is left alone: another code location may have a store of its own and integrations
    in it, and the partitions belong to both.

    Args:
        instance: of Dagster.
        integrations: all there are.
        removed: ``<app_id>/<name>`` of those that were removed.
        place: of the pipeline.
    """
    pairs = [key.split("/", 1) for key in removed]
    were = {
        place.name(APPS): {app_id for app_id, _ in pairs},
        place.name(INTEGRATIONS): {f"{app_id}|{name}" for app_id, name in pairs},
    }
    orphaned = {}
    for name, wanted in wanted_partitions(integrations, place).items():
        gone = (were[name] - set(wanted)) & set(instance.get_dynamic_partitions(name))
        if gone:
            orphaned[name] = sorted(gone)
    return orphaned


def left_behind(
    instance: dg.DagsterInstance, integrations: Iterable[Integration | Listed], removed: Iterable[str]
) -> dict[str, list[str]]:
    """What an older version added to Dagster for these integrations, and nothing reads any more."""
    names = {integration.name for integration in integrations} | {key.split("/", 1)[1] for key in removed}
    there = sorted(names & set(instance.get_dynamic_partitions(NAMES_BEFORE)))
    return {NAMES_BEFORE: there} if there else {}


def add_partitions(
    instance: dg.DagsterInstance, integrations: Sequence[Integration | Listed], place: Place = DEFAULT
) -> None:
    """Registers what is missing, so that the pages of a partition exist before its first materialization."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            for name, keys in missing_partitions(instance, integrations, place).items():
                instance.add_dynamic_partitions(name, keys)
        except IntegrityError:  # another process added one of them since Dagster looked
            if not left:
                raise
        else:
            return
