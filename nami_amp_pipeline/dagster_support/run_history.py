"""Dagster's own history: runs leave it after some time, those that hold a partition's newest materialization do not.

Dagster deletes runs only when told to, and deletes the materializations of a run with it: a partition whose only run is
deleted would look as if it had never been materialized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.runs import SqlRunStorage

# What has no public name in Dagster: where each newest materialization is, and the rows that delete_run leaves behind.

MOST_RUNS: Final = 2_000
"""Runs removed at once, so that a history that was never cleared does not keep one run busy for hours."""

ENDED: Final = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
REPOSITORY_TAG: Final = ".dagster/repository"
"""Which code location a run is of. A Dagster may serve others too, whose runs are not ours to remove."""

_AT_ONCE = 500

_EVENTS = sa.table("event_logs", sa.column("id"), sa.column("run_id"))
_CHECKS = sa.table("asset_check_executions", *map(sa.column, ("id", "run_id", "asset_key", "check_name", "partition")))
_RUNS = sa.table("runs", sa.column("run_id"))
_RUN_TAGS = sa.table("run_tags", sa.column("run_id"))

T = TypeVar("T")


@dataclass
class Cleared:
    """What went out of the history.

    Attributes:
        runs: removed, or to be removed.
        kept: runs that are old enough, but hold what is newest of a partition.
    """

    runs: int = 0
    kept: int = 0


def clear_history(
    instance: dg.DagsterInstance,
    repository: str,
    assets: Iterable[dg.AssetKey],
    days: float,
    *,
    now: datetime | None = None,
    dry_run: bool = False,
) -> Cleared:
    """Removes the runs of a code location that ended and are older than some days, oldest first.

    Kept are those that hold the newest materialization, or the newest result of a check, of a partition.

    Args:
        instance: of Dagster.
        repository: the label of the code location, as :data:`REPOSITORY_TAG` has it.
        assets: that the code location materializes.
        days: how old.
        now: what time it is; the machine's by default.
        dry_run: only counts.
    """
    before = (now or datetime.now(UTC)) - timedelta(days=days)
    filters = dg.RunsFilter(statuses=ENDED, tags={REPOSITORY_TAG: repository}, created_before=before)
    old = instance.get_run_ids(filters)[::-1]
    if not old:
        return Cleared()
    newest = _newest(instance, assets)
    gone = [run_id for run_id in old if run_id not in newest]
    cleared = Cleared(len(gone[:MOST_RUNS]), len(old) - len(gone))
    if not dry_run:
        for run_ids in _parts(gone[:MOST_RUNS]):
            _delete_checks(instance, run_ids)
            for run_id in run_ids:
                _delete(instance, run_id)
    return cleared


def _newest(instance: dg.DagsterInstance, assets: Iterable[dg.AssetKey]) -> set[str]:
    """The runs that hold what is newest of any partition."""
    storage = instance.event_log_storage
    runs: set[str] = set()
    if not isinstance(storage, SqlEventLogStorage):
        raise dg.DagsterInvariantViolationError("Dagster's history is in no SQL database")
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    # Before the connection is taken: SQLite's is lent to one at a time, and asking for it again waits for ever.
    ids = [one for asset in assets for one in storage.get_latest_storage_id_by_partition(asset, kind).values()]
    with storage.index_connection() as connection:
        for some in _parts(ids):
            materialized = sa.select(_EVENTS.c.run_id).distinct().where(_EVENTS.c.id.in_(some))
            runs.update(connection.execute(materialized).scalars())
        newest = sa.select(sa.func.max(_CHECKS.c.id)).group_by(
            _CHECKS.c.asset_key, _CHECKS.c.check_name, _CHECKS.c.partition
        )
        runs.update(connection.execute(sa.select(_CHECKS.c.run_id).where(_CHECKS.c.id.in_(newest))).scalars())
    return runs


def _delete_checks(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Removes the results of checks, which stay behind when a run is deleted."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        connection.execute(sa.delete(_CHECKS).where(_CHECKS.c.run_id.in_(run_ids)))


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    """Removes all that is of a run; the run itself last, so that what was cut short is found again."""
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    events, runs = instance.event_log_storage, instance.run_storage
    events.delete_events(run_id)
    if isinstance(events, SqliteEventLogStorage):  # a file for each run, which would stay, empty
        shard = Path(events.path_for_shard(run_id))
        for file in shard.parent.glob(f"{shard.name}*"):
            file.unlink(missing_ok=True)
    if not isinstance(runs, SqlRunStorage):
        runs.delete_run(run_id)
        return
    with runs.connect() as connection:
        # Together: a run without its tags would not be found again. SQLite is not told to follow the foreign key.
        connection.execute(sa.delete(_RUNS).where(_RUNS.c.run_id == run_id))
        connection.execute(sa.delete(_RUN_TAGS).where(_RUN_TAGS.c.run_id == run_id))


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
