"""What is new in a materialization: two numbers, of requests, outboxes or segments, which the frames take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.asset_pages.metadata import Metadata
from nami_amp_pipeline.stages.facts import FROM, TO

_AT_ONCE: Final = 500


def with_cursors(instance: dg.DagsterInstance, asset: dg.AssetKey, made: Mapping[str, Metadata]) -> dict[str, Metadata]:
    """The same metadata, beginning where the materialization before it ended: so that nobody misses a killed run.

    Args:
        instance: of Dagster.
        asset: whose partitions.
        made: metadata by partition key; without numbers where there is nothing to count by.
    """
    known = last_cursors(instance, asset, made)
    found = {}
    for partition, facts in made.items():
        before = known.get(partition, 0)
        begin = facts.get(FROM, 0) if before is None else before
        found[partition] = {**facts, FROM: begin, TO: max(facts.get(TO, 0), begin)}
    return found


def nothing_new(instance: dg.DagsterInstance, asset: dg.AssetKey, made: Mapping[str, Metadata]) -> dict[str, Metadata]:
    """The same for materializations of what is not new, such as a backfill: from where the one before ended, to there.

    Args:
        instance: of Dagster.
        asset: whose partitions.
        made: metadata by partition key.
    """
    known = last_cursors(instance, asset, made)
    return {
        partition: {**facts, **({} if known.get(partition) is None else {FROM: known[partition], TO: known[partition]})}
        for partition, facts in made.items()
    }


def last_cursors(instance: dg.DagsterInstance, asset: dg.AssetKey, partitions: Iterable[str]) -> dict[str, int | None]:
    """Where the newest materialization of each partition ended; None if it does not say so, as older versions' do."""
    storage, kind = instance.event_log_storage, dg.DagsterEventType.ASSET_MATERIALIZATION
    some = set(partitions)
    newest = storage.get_latest_storage_id_by_partition(asset, kind, partitions=some) if some else {}
    numbers = list(newest.values())
    found: dict[str, int | None] = {}
    for start in range(0, len(numbers), _AT_ONCE):
        filters = dg.AssetRecordsFilter(asset_key=asset, storage_ids=numbers[start : start + _AT_ONCE])
        for record in instance.fetch_materializations(filters, limit=_AT_ONCE).records:
            materialization = record.asset_materialization
            if materialization is not None and materialization.partition is not None:
                value = materialization.metadata.get(TO)
                found[materialization.partition] = value.value if isinstance(value, dg.IntMetadataValue) else None
    return found
