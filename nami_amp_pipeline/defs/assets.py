"""One asset for each stage, for people who run one app or integration by hand, and for several partitions at once.

Each does what the job ``micro_batch`` does, for its own partitions: what is new since the last time, under a lease, so
that a partition which a micro-batch works on at the moment is left to that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.dagster_support.shutdown import graceful, prompt
from nami_amp_pipeline.defs.asset_pages.columns import definition_metadata
from nami_amp_pipeline.defs.asset_pages.metadata import ROW_COUNT, Metadata, metadata_of
from nami_amp_pipeline.defs.jobs import in_one_line, incomplete
from nami_amp_pipeline.defs.partitions import app_integrations, nami_apps
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.stage import Stage, Subject, called, partition_key
from nami_amp_pipeline.stages.table import STAGES
from nami_amp_pipeline.state.integrations import Integration, all_integrations, apps_with_integrations

CODE_VERSION: Final = "1"
"""Raised when the same rows would give other bytes."""


def build_asset(stage: Stage) -> dg.AssetsDefinition:
    """The asset of a stage."""
    options: dict[str, Any] = {
        "name": stage.asset,
        "deps": [_dependency(stage, asset) for asset in stage.upstream],
        "partitions_def": nami_apps if stage.per == "app" else app_integrations,
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "output_required": False,
        "group_name": "nami_to_amplitude",
        "owners": ["team:data-platform"],
        "kinds": set(stage.kinds),
        "tags": {"domain": "subscriptions", "grain": "event"},
        "code_version": CODE_VERSION,
        "description": stage.description,
        "metadata": definition_metadata(stage),
    }

    def materialize(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> Iterator[dg.MaterializeResult[None]]:
        yield from _materialize(context, pipeline, stage)

    with ignore_beta_warnings():  # backfill_policy
        decorate: Callable[..., dg.AssetsDefinition] = dg.asset(**options)
        return decorate(materialize)


def _dependency(stage: Stage, upstream: str) -> dg.AssetDep:
    """An integration is no app, and Dagster would take keys of one for keys of the other: it depends on all apps."""
    is_per = {one.asset: one.per for one in STAGES}.get(upstream)
    return dg.AssetDep(upstream, partition_mapping=None if is_per == stage.per else dg.AllPartitionMapping())


def _materialize(
    context: dg.AssetExecutionContext, pipeline: PipelineSession, stage: Stage
) -> Iterator[dg.MaterializeResult[None]]:
    failures: dict[str, str] = {}

    def failed(subject: Subject, error: NamiAmpError) -> None:
        failures[partition_key(subject)] = f"{called(subject)}: {error}"

    with in_one_line(pipeline):
        opened = pipeline.open(context.log)
        subjects = _subjects(opened, stage, set(map(str, context.partition_keys)))
        with (graceful if stage.is_stoppable else prompt)() as stop:
            done = run_stage(opened, stage, subjects, stop=stop, failed=failed)
            found = metadata_of(opened, stage, subjects, stage.describe(opened, subjects, done))
    for subject in subjects:
        error = getattr(done.get(partition_key(subject)), "error", None)
        if error:
            failures[partition_key(subject)] = f"{called(subject)}: {error}"
    if not failures:
        yield from _all_materialized(context, subjects, found)
        return
    for key, facts in found.items():
        context.log_event(dg.AssetMaterialization(stage.asset, partition=key, metadata=facts))
    integrations = [one for one in subjects if isinstance(one, Integration)]
    halted = [now for now in status(opened, integrations) if now.is_halted] if integrations else []
    raise incomplete(failures.values(), halted)


def _subjects(opened: Context, stage: Stage, keys: set[str]) -> list[Subject]:
    """The apps or integrations that exist, of these partitions."""
    everything: Sequence[Subject] = (
        apps_with_integrations(opened.store) if stage.per == "app" else all_integrations(opened.store)
    )
    return [one for one in everything if partition_key(one) in keys]


def _all_materialized(
    context: dg.AssetExecutionContext, subjects: Sequence[Subject], found: Mapping[str, Metadata]
) -> Iterator[dg.MaterializeResult[None]]:
    """Marks the partitions of this run as up to date, unless none of them is of an integration that exists."""
    if not subjects:
        context.log.info("no integration that is switched on has these partitions; nothing to do")
        return
    for key in map(partition_key, subjects):
        context.add_asset_metadata(found.get(key, {ROW_COUNT: 0}), partition_key=key)
    yield dg.MaterializeResult()


ASSETS: Final = tuple(build_asset(stage) for stage in STAGES)
"""In the order in which an event passes them."""
