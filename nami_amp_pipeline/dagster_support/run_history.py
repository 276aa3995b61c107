"""Removes this pipeline's old runs from Dagster's history, except runs with the newest materializations.

Dagster deletes runs only when told to, and deletes the materializations of a run with it: a partition whose only run is
deleted would look as if it had never been materialized. A Dagster may serve other projects too: a run is ours if it
belongs to one of our jobs, or materialized only our assets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.runs import SqlRunStorage

from nami_amp_pipeline.dagster_support.failed_partitions import runs_that_partitions_failed_in

# What has no public name in Dagster: the rows and files that its public delete_run leaves behind, and where the newest
# result of each check is.

MOST_RUNS: Final = 2_000
"""Runs removed at once, so that a large history does not keep one run busy for hours."""

ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]

_ASSET_JOBS: Final = "__ASSET_JOB"
"""Dagster's name for the job of asset runs, sometimes with a number behind it."""

_AT_ONCE = 500

_CHECKS = sa.table("asset_check_executions", *map(sa.column, ("id", "run_id", "asset_key", "check_name", "partition")))
_RUN_TAGS = sa.table("run_tags", sa.column("run_id"))

T = TypeVar("T")


@dataclass(frozen=True)
class Ours:
    """Our part of a history.

    Attributes:
        tag: that every run of our jobs has; its value is the name of the job.
        jobs: names of our jobs.
        assets: that we make.
    """

    tag: str
    jobs: Set[str]
    assets: Set[dg.AssetKey]

    def has(self, run: dg.DagsterRun) -> bool:
        """Whether a run is ours, whatever its code location is called."""
        if run.job_name in self.jobs:
            return run.tags.get(self.tag) == run.job_name
        keys = set(run.asset_selection or ()) | {check.asset_key for check in run.asset_check_selection or ()}
        return run.job_name.startswith(_ASSET_JOBS) and bool(keys) and keys <= self.assets


@dataclass
class Cleared:
    """The removed part of the history.

    Attributes:
        runs: removed, or to be removed.
        kept: runs that are old enough, but hold the newest materialization of a partition.
    """

    runs: int = 0
    kept: int = 0


def clear_history(
    instance: dg.DagsterInstance,
    ours: Ours,
    days: float,
    *,
    now: datetime | None = None,
    dry_run: bool = False,
) -> Cleared:
    """Removes our runs that ended and are older than some days, oldest first.

    Kept are those that hold the newest materialization, or the newest result of a check, of a partition, or why it
    counts as failed.

    Args:
        instance: of Dagster.
        ours: which runs and assets are ours.
        days: how old.
        now: what time it is; the machine's by default.
        dry_run: only counts.
    """
    before = (now or datetime.now(UTC)) - timedelta(days=days)
    old = [run.run_id for run in _old_runs(instance, before) if ours.has(run)]
    if not old:
        return Cleared()
    newest = _newest(instance, ours.assets)
    gone = [run_id for run_id in old if run_id not in newest]
    cleared = Cleared(len(gone[:MOST_RUNS]), len(old) - len(gone))
    if not dry_run:
        for run_ids in _parts(gone[:MOST_RUNS]):
            _delete_checks(instance, run_ids)
            for run_id in run_ids:
                _delete(instance, run_id)
    return cleared


def _old_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[dg.DagsterRun]:
    """All runs that ended and began before a time, the oldest first, some at a time."""
    filters = dg.RunsFilter(statuses=ENDED, created_before=before)
    cursor: str | None = None
    while runs := instance.get_runs(filters, cursor=cursor, limit=_AT_ONCE, ascending=True):
        yield from runs
        cursor = runs[-1].run_id


def _newest(instance: dg.DagsterInstance, assets: Set[dg.AssetKey]) -> set[str]:
    """The runs with the newest materialization of any partition of these assets."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise dg.DagsterInvariantViolationError("Dagster's history is in no SQL database")
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    runs: set[str] = set()
    for asset in assets:
        ids = list(storage.get_latest_storage_id_by_partition(asset, kind).values())
        last = instance.get_latest_materialization_event(asset)  # of no partition, perhaps
        runs |= {last.run_id} if last is not None else set()
        runs |= runs_that_partitions_failed_in(instance, asset)
        for some in _parts(ids):
            filters = dg.AssetRecordsFilter(asset_key=asset, storage_ids=list(some))
            runs |= {record.run_id for record in instance.fetch_materializations(filters, limit=len(some)).records}
    keys = [asset.to_string() for asset in assets]
    with storage.index_connection() as connection:
        newest = (
            sa.select(sa.func.max(_CHECKS.c.id))
            .where(_CHECKS.c.asset_key.in_(keys))
            .group_by(_CHECKS.c.asset_key, _CHECKS.c.check_name, _CHECKS.c.partition)
        )
        runs |= set(connection.execute(sa.select(_CHECKS.c.run_id).where(_CHECKS.c.id.in_(newest))).scalars())
    return runs


def _delete_checks(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Removes the results of checks, which stay behind when a run is deleted."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        connection.execute(sa.delete(_CHECKS).where(_CHECKS.c.run_id.in_(run_ids)))


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    """Removes everything of a run; the run itself last, so that an interrupted removal is found again."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    events, runs = instance.event_log_storage, instance.run_storage
    events.delete_events(run_id)
    if isinstance(runs, SqlRunStorage):
        with runs.connect() as connection:  # SQLite is not told to follow the foreign key
            connection.execute(sa.delete(_RUN_TAGS).where(_RUN_TAGS.c.run_id == run_id))
    instance.delete_run(run_id)
    if isinstance(events, SqliteEventLogStorage):  # a file for each run, which would stay, empty
        shard = Path(events.path_for_shard(run_id))
        for file in shard.parent.glob(f"{shard.name}*"):
            file.unlink(missing_ok=True)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
