"""The partitions, and how they are kept in step with the integrations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import dagster as dg
from sqlalchemy.exc import IntegrityError

from nami_amp_pipeline.state.integrations import Integration

APPS: Final = "nami_apps"
INTEGRATIONS: Final = "nami_integrations"
"""Names of dynamic partitions are shared by everything that one Dagster serves, hence the prefix."""

MOST_CHANGES: Final = 1_000
"""Partitions added or deleted at once, so that one evaluation of the sensor stays short."""

_ATTEMPTS: Final = 10

nami_apps = dg.DynamicPartitionsDefinition(name=APPS)
nami_integrations = dg.DynamicPartitionsDefinition(name=INTEGRATIONS)
app_integrations = dg.MultiPartitionsDefinition({"app": nami_apps, "integration": nami_integrations})
"""``<app_id>|<name>``. Names are mostly shared by all apps; a pair that does not exist is left alone by the assets."""


def wanted_partitions(integrations: Iterable[Integration]) -> dict[str, list[str]]:
    """The keys that there should be, by the name of the dynamic partitions."""
    everyone = list(integrations)
    return {
        APPS: sorted({one.app_id for one in everyone}),
        INTEGRATIONS: sorted({one.name for one in everyone}),
    }


def missing_partitions(instance: dg.DagsterInstance, integrations: Iterable[Integration]) -> dict[str, list[str]]:
    """The keys that should be there and are not, at most :data:`MOST_CHANGES` of each; names without any left out."""
    missing = {}
    for name, wanted in wanted_partitions(integrations).items():
        there = set(instance.get_dynamic_partitions(name))
        new = [key for key in wanted if key not in there][:MOST_CHANGES]
        if new:
            missing[name] = new
    return missing


def orphaned_partitions(
    instance: dg.DagsterInstance, integrations: Iterable[Integration], removed: Iterable[str]
) -> dict[str, list[str]]:
    """The keys of removed integrations that no other one has; names without any left out.

    A key of which nothing is known is left alone: another code location may have a store of its own and integrations
    in it, and the partitions belong to both.

    Args:
        instance: of Dagster.
        integrations: all there are.
        removed: ``<app_id>/<name>`` of those that were removed.
    """
    apps, names = ({parts[at] for parts in (key.split("/", 1) for key in removed)} for at in (0, 1))
    orphaned = {}
    for name, wanted in wanted_partitions(integrations).items():
        gone = ({APPS: apps, INTEGRATIONS: names}[name] - set(wanted)) & set(instance.get_dynamic_partitions(name))
        if gone:
            orphaned[name] = sorted(gone)
    return orphaned


def add_partitions(instance: dg.DagsterInstance, integrations: Sequence[Integration]) -> None:
    """Registers what is missing, so that the pages of a partition exist before its first materialization."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            for name, keys in missing_partitions(instance, integrations).items():
                instance.add_dynamic_partitions(name, keys)
        except IntegrityError:  # another process added one of them since Dagster looked
            if not left:
                raise
        else:
            return
