"""What a micro-batch says of partitions in trouble, and whether any of it is news: only that makes a run fail.

A trouble that was told once goes on to show where it belongs: its partition counts as failed, its checks do not pass,
and each run observes it. What is everybody's, such as a warehouse that cannot be read, is told by each run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import groupby

import dagster as dg

from nami_amp_pipeline.dagster_support.failed_partitions import (
    Failed,
    count_as_failed,
    last_failures,
)
from nami_amp_pipeline.defs.asset_pages.standing_page import in_a_line, is_stuck, partition_of
from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.standing import Standing
from nami_amp_pipeline.stages.table import DELIVER


@dataclass(frozen=True)
class Trouble:
    """Why the work of a partition is not at its end.

    Attributes:
        asset: whose partition.
        partition: which.
        kind: by which the same trouble is known again.
        line: for people; begins with the partition.
    """

    asset: str
    partition: str
    kind: str
    line: str

    @property
    def mark(self) -> str:
        """What the history keeps of it begins with this."""
        return f"{self.partition}: [{self.kind}] "

    @property
    def said(self) -> str:
        """What the history keeps of it."""
        return self.mark + self.line.removeprefix(f"{self.partition}: ")


@dataclass
class News:
    """The troubles of a run.

    Attributes:
        shared: lines of what is nobody's alone.
        new: troubles that no run has failed for yet.
        known: the others, each with the run that failed for it.
    """

    shared: list[str] = field(default_factory=list)
    new: list[Trouble] = field(default_factory=list)
    known: list[tuple[Trouble, Failed]] = field(default_factory=list)

    @property
    def all(self) -> list[Trouble]:
        """All troubles of partitions, the new ones first."""
        return [*self.new, *(trouble for trouble, _ in self.known)]

    @property
    def lines(self) -> list[str]:
        """What a run fails for; nothing if it does not."""
        return [*self.shared, *(trouble.line for trouble in self.new)]


def news_of(instance: dg.DagsterInstance, tick: MicroBatch, found: Sequence[Standing], place: Place = DEFAULT) -> News:
    """The troubles of a micro-batch.

    Args:
        instance: of Dagster.
        tick: the micro-batch, after its last stage.
        found: how its integrations stand.
        place: of the pipeline.
    """
    news, own = News(), _of_integrations(tick, found)
    for asset, partition, error in tick.noted():
        if partition is None:
            news.shared.append(f"{asset}: {error}")
        else:
            said = str(error).partition(": ")[2] or str(error)
            own.append(Trouble(asset, partition, type(error).__name__, f"{partition}: {asset}: {said}"))
    own = sorted(
        {(trouble.asset, trouble.partition): trouble for trouble in own}.values(),
        key=lambda trouble: (trouble.asset, trouble.partition),
    )
    for asset, group in groupby(own, key=lambda trouble: trouble.asset):
        some = list(group)
        told = last_failures(instance, place.key(asset), [trouble.partition for trouble in some])
        for trouble in some:
            before = told.get(trouble.partition)
            if before is not None and before.said.startswith(trouble.mark):
                news.known.append((trouble, before))
            else:
                news.new.append(trouble)
    return news


def _of_integrations(tick: MicroBatch, found: Sequence[Standing]) -> list[Trouble]:
    own = []
    for now in found:
        partition = partition_of(now)
        error = tick.error_of(partition)
        if not error or now.state == "off":
            continue
        if is_stuck(now):
            kind = f"{now.state} {now.code}" if now.state == "halted" else now.state
            own.append(Trouble(DELIVER.asset, partition, kind, in_a_line(now)))
        else:
            own.append(Trouble(DELIVER.asset, partition, "error", f"{partition}: {error}"))
    return own


def tell(
    instance: dg.DagsterInstance,
    news: News,
    run: Failed,
    step: str,
    moved: Mapping[str, Set[str]],
    *,
    fails: bool,
    place: Place = DEFAULT,
) -> None:
    """Makes the partitions in trouble count as failed.

    Args:
        instance: of Dagster.
        news: the troubles of the run.
        run: this run.
        step: its last.
        moved: what it materialized, by asset.
        fails: whether it will fail.
        place: of the pipeline.
    """
    if fails:
        for asset, group in groupby(news.all, key=lambda trouble: trouble.asset):
            said = {trouble.partition: trouble.said for trouble in group}
            count_as_failed(instance, place.key(asset), said, run, step)
        return
    for trouble, before in news.known:
        if trouble.partition in moved.get(trouble.asset, ()):  # which made it count as materialized
            count_as_failed(instance, place.key(trouble.asset), {trouble.partition: trouble.said}, before, step)


def recovered(failed: Iterable[str], found: Sequence[Standing]) -> list[str]:
    """Of partitions that count as failed, those whose events do not wait for anything unusual any more.

    Rejected events keep none of them: they are at their end (ADR 40).

    Args:
        failed: partitions that a stage had its turn with, without trouble.
        found: how integrations stand, where they are the partitions.
    """
    return sorted(set(failed) - {partition_of(standing) for standing in found if is_stuck(standing)})
