"""The description of a stage: all that the program needs to run it, show it and clean up after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.facts import Facts
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease

Subject = str | Integration
"""What a stage works on: an app, by its id, or an integration."""

Stop = Callable[[], bool]
"""Whether the process was asked to end: once true, nothing new starts."""

Run = Callable[[Context, Sequence[Any], Mapping[Any, Lease], Window | None, Stop], Mapping[Any, Any]]
"""Does the work for some subjects, given the leases by app id or integration id; returns results by the same id.

Subjects without a lease are left to the process that holds it; subjects without new data have no result. A result's
``error`` says why its subject's work is unfinished.
"""

WithWork = Callable[[Context], Set[Any]]
"""Which apps or integrations there may be something to do for, by the id of their lease."""

DescribeRun = Callable[[Context, Sequence[Any], Mapping[str, Any]], dict[str, Facts]]
"""Describes the work, from the subjects and the results; all mappings are by partition key."""

References = Callable[[Sequence[str]], sa.Select[tuple[str]]]
"""Of some file names, those that a row of the store still needs."""


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline. ``stages/table.py`` has them all.

    Attributes:
        asset: the asset that it makes.
        per: whether a partition is an app or an integration.
        upstream: assets that it reads.
        run: does the work.
        describe: the facts that the page of a partition shows.
        summary: what it does, in a sentence.
        description: what the asset's page says, in Markdown.
        op: its step in the job ``micro_batch``; None if it has none.
        kinds: technologies that the page shows.
        schema: of the files that it writes.
        lineage: columns, each with the upstream (asset, column) pairs that it is computed from.
        with_work: asked before leases are taken, so that thousands of subjects without news cost next to nothing; None
            where only the work itself can tell.
        files: kinds of files that it writes to the data folder, with the rows that refer to them; unreferenced files
            are removed later.
        finishes_events: whether events reach their end state here, so that the page shows the integration's status.
        is_stoppable: whether a stopping run waits for it, because it ends by itself; other stages are interrupted,
            because uncommitted work is done again.
        renews_leases: whether it renews its leases itself; otherwise they are renewed while it works.
    """

    asset: str
    per: Literal["app", "integration"]
    upstream: tuple[str, ...]
    run: Run
    describe: DescribeRun
    summary: str
    description: str
    op: str | None = None
    kinds: frozenset[str] = frozenset()
    schema: pa.Schema | None = None
    lineage: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    with_work: WithWork | None = None
    files: Mapping[str, References] = field(default_factory=dict)
    finishes_events: bool = False
    is_stoppable: bool = False
    renews_leases: bool = False


def partition_key(subject: Subject) -> str:
    """The partition of an app or integration."""
    return subject if isinstance(subject, str) else subject.partition_key


def called(subject: Subject) -> str:
    """The name that people use for an app or integration: ``<app_id>`` or ``<app_id>/<name>``."""
    return subject if isinstance(subject, str) else subject.key
