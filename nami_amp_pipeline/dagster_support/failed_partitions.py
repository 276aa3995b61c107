"""Which partitions count as failed on Dagster's pages, and how a run of no partition in particular makes one count.

Dagster counts a partition as failed if its newest event is not a materialization but the plan of one, by a run that
failed. A run for a partition plans by itself; one that works for all of them has to say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import dagster as dg
from dagster._core.event_api import EventRecordsFilter
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent

# No public name has the plan of a materialization, nor the newest event of each partition.

_AT_ONCE: Final = 500

T = TypeVar("T")

Asset = dg.AssetKey | str
"""The key of an asset, or its name if it has no prefix."""


@dataclass(frozen=True)
class Failed:
    """Why a partition counts as failed.

    Attributes:
        run_id: of the run that failed.
        job: of that run.
        said: what :func:`count_as_failed` was given; Dagster's own words for runs of a partition.
    """

    run_id: str
    job: str
    said: str


def count_as_failed(
    instance: dg.DagsterInstance, asset: Asset, said: Mapping[str, str], run: Failed, step: str
) -> None:
    """Makes partitions count as failed once a run has failed, until they are materialized.

    Args:
        instance: of Dagster.
        asset: whose partitions.
        said: by partition, a line for people, which the run's log shows.
        run: which run, and its job.
        step: of that run.
    """
    for partition, line in said.items():
        plan = AssetMaterializationPlannedData(_key(asset), partition)
        event = DagsterEvent.build_asset_materialization_planned_event(run.job, step, plan)
        instance.report_dagster_event(event._replace(message=line), run.run_id)


def failed_partitions(instance: dg.DagsterInstance, asset: Asset) -> dict[str, Failed]:
    """The partitions of an asset that count as failed."""
    key, storage = _key(asset), instance.event_log_storage
    planned = storage.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    if not planned:
        return {}
    done = storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, partitions=set(planned)
    )
    return _failed(instance, key, [number for name, number in planned.items() if name and number > done.get(name, 0)])


def last_failures(instance: dg.DagsterInstance, asset: Asset, partitions: Iterable[str]) -> dict[str, Failed]:
    """By which run these partitions counted as failed last, also where they were materialized since."""
    some = set(partitions)
    if not some:
        return {}
    key = _key(asset)
    planned = instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, partitions=some
    )
    return _failed(instance, key, list(planned.values()))


def _key(asset: Asset) -> dg.AssetKey:
    return asset if isinstance(asset, dg.AssetKey) else dg.AssetKey(asset)


def _failed(instance: dg.DagsterInstance, asset: dg.AssetKey, storage_ids: Sequence[int]) -> dict[str, Failed]:
    found: dict[str, Failed] = {}
    for some in _parts(storage_ids):
        filters = EventRecordsFilter(
            dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, asset_key=asset, storage_ids=list(some)
        )
        for record in instance.event_log_storage.get_event_records(filters, limit=len(some)):
            event = record.event_log_entry.dagster_event
            if event is not None and record.partition_key is not None:
                found[record.partition_key] = Failed(record.run_id, event.job_name, event.message or "")
    run_ids = list({failed.run_id for failed in found.values()})
    of_failed_runs: set[str] = set()
    for part in _parts(run_ids):
        filters_of_runs = dg.RunsFilter(run_ids=list(part), statuses=[dg.DagsterRunStatus.FAILURE])
        of_failed_runs |= {run.run_id for run in instance.get_runs(filters_of_runs)}
    return {partition: failed for partition, failed in found.items() if failed.run_id in of_failed_runs}


def runs_that_partitions_failed_in(instance: dg.DagsterInstance, asset: dg.AssetKey) -> set[str]:
    """The runs whose removal would make a failed partition look as if nothing were wrong with it."""
    return {failed.run_id for failed in failed_partitions(instance, asset).values()}


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
