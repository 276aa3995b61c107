"""A step of the pipeline as a component may override it: what is done, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from nami_amp_pipeline.defs.resources import PipelineSession


@dataclass(frozen=True)
class Step:
    """The work of a stage in a run: of an asset for its partitions, or of the job for everything with work.

    Attributes:
        asset: the name of the asset that it makes, without a prefix, such as ``amplitude_deliveries``.
        work: does it once it is iterated; gives what the step yields to Dagster.
    """

    asset: str
    work: Callable[[], Iterator[Any]]


Execute = Callable[["dg.OpExecutionContext | dg.AssetExecutionContext", PipelineSession, Step], Iterator[Any]]
"""Does a step, given the context of Dagster and the way to the pipeline."""


def at_once(
    _context: dg.OpExecutionContext | dg.AssetExecutionContext, _pipeline: PipelineSession, step: Step
) -> Iterator[Any]:
    """Does a step and nothing else."""
    return step.work()
