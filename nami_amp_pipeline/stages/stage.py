"""What a stage is: everything that the rest of the program needs to know of it to run, show and clean up after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
"""Whether the process was asked to end: once true, nothing new is begun."""

Run = Callable[[Context, Sequence[Any], Mapping[Any, Lease], Window | None, Stop], Mapping[Any, Any]]
"""Does the work for some subjects, given the leases by app id or integration id; returns what was done by the same id.

Subjects without a lease are left to the process that has it; those without news are left out of what is returned. A
result with an ``error`` says why its subject's work is not at its end.
"""

DescribeRun = Callable[[Context, Sequence[Any], Mapping[str, Any]], dict[str, Facts]]
"""Describes what was done, from the subjects and the results, both of the returned mappings by partition key."""

References = Callable[[Sequence[str]], sa.Select[tuple[str]]]
"""Those of some file names that a row of the store still needs."""


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
        op: its step in the job ``micro_batch``; None if it is no part of that.
        kinds: technologies that the page shows.
        schema: of the files that it writes.
        lineage: columns, each with the upstream (asset, column) pairs that it is made of.
        files: kinds of files in the data folder that it writes, with what refers to them; others are removed in time.
        finishes_events: whether events come to their end here, so that the page shows how the integration stands.
        is_stoppable: whether a run that is told to end waits for it, as it ends by itself; others are broken off, as
            what they have not committed is done again.
        renews_leases: whether it prolongs its leases itself; those of others are prolonged for as long as they work.
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
    files: Mapping[str, References] = field(default_factory=dict)
    finishes_events: bool = False
    is_stoppable: bool = False
    renews_leases: bool = False


def partition_key(subject: Subject) -> str:
    """The partition of an app or integration."""
    return subject if isinstance(subject, str) else subject.partition_key


def called(subject: Subject) -> str:
    """What people call an app or integration: ``<app_id>`` or ``<app_id>/<name>``."""
    return subject if isinstance(subject, str) else subject.key
