"""One asset for each stage, for people who run one app or integration by hand, and for several partitions at once.

Each does what the job ``micro_batch`` does, for its own partitions: what is new since the last time, under a lease, so
that a partition which a micro-batch works on at the moment is left to that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.dagster_support.failed_partitions import Failed, count_as_failed
from nami_amp_pipeline.dagster_support.shutdown import graceful, prompt
from nami_amp_pipeline.defs.asset_pages.columns import definition_metadata
from nami_amp_pipeline.defs.asset_pages.metadata import Metadata, again, metadata_of, standing_facts
from nami_amp_pipeline.defs.asset_pages.standing_page import in_a_line, is_in_trouble, partition_of
from nami_amp_pipeline.defs.jobs import in_one_line, incomplete
from nami_amp_pipeline.defs.kept_up import kept_up_to_date
from nami_amp_pipeline.defs.partitions import app_integrations, nami_apps
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.standing import standings
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.stage import Stage, Subject, partition_key
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
        "description": f"{kept_up_to_date()}\n{stage.description}",
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
    is_per = {other.asset: other.per for other in STAGES}.get(upstream)
    return dg.AssetDep(upstream, partition_mapping=None if is_per == stage.per else dg.AllPartitionMapping())


def _materialize(
    context: dg.AssetExecutionContext, pipeline: PipelineSession, stage: Stage
) -> Iterator[dg.MaterializeResult[None]]:
    failures: dict[str, str] = {}

    def failed(subject: Subject, error: NamiAmpError) -> None:
        failures[partition_key(subject)] = f"{partition_key(subject)}: {error}"

    with in_one_line(pipeline):
        opened = pipeline.open(context.log)
        subjects = _subjects(opened, stage, set(map(str, context.partition_keys)))
        with (graceful if stage.is_stoppable else prompt)() as stop:
            done = run_stage(opened, stage, subjects, stop=stop, failed=failed)
            found = metadata_of(opened, stage, subjects, stage.describe(opened, subjects, done))
            for subject in subjects:
                error = getattr(done.get(partition_key(subject)), "error", None)
                if error:
                    failures[partition_key(subject)] = f"{partition_key(subject)}: {error}"
            made = _pages(context, opened, stage, subjects, found, failures)
            lines = _in_words(opened, stage, subjects, failures)
    if not failures:
        yield from _all_materialized(context, made)
        return
    for facts in made.values():
        context.log_event(facts)
    # What moved in part does not count as materialized: the plan to materialize it is repeated after its facts.
    said = {key: line for key, line in lines.items() if key in made}
    run = Failed(context.run.run_id, context.run.job_name, "")
    count_as_failed(context.instance, stage.asset, said, run, stage.asset)
    raise incomplete(lines.values())


def _pages(
    context: dg.AssetExecutionContext,
    opened: Context,
    stage: Stage,
    subjects: Sequence[Subject],
    found: Mapping[str, Metadata],
    failures: Mapping[str, str],
) -> dict[str, dg.AssetMaterialization]:
    """What to show of each partition: what moved, and what it showed before where there was nothing new."""
    made = {key: dg.AssetMaterialization(stage.asset, partition=key, metadata=facts) for key, facts in found.items()}
    still = [
        subject for subject in subjects if partition_key(subject) not in made and partition_key(subject) not in failures
    ]
    fresh: dict[str, Metadata] = {}
    if stage.finishes_events and still:
        integrations = [subject for subject in still if isinstance(subject, Integration)]
        stand = standings(opened, integrations=integrations)
        fresh = {partition_of(standing): standing_facts(standing, context.run.run_id) for standing in stand}
    for subject in still:
        key = partition_key(subject)
        made[key] = again(context.instance, stage, key, fresh.get(key))
    return made


def _in_words(
    opened: Context, stage: Stage, subjects: Sequence[Subject], failures: Mapping[str, str]
) -> dict[str, str]:
    """A line for each partition that failed: how its integration stands, where that says more."""
    lines = dict(failures)
    some = [subject for subject in subjects if isinstance(subject, Integration) and subject.partition_key in failures]
    if stage.finishes_events and some:
        stand = standings(opened, integrations=some)
        lines |= {partition_of(standing): in_a_line(standing) for standing in stand if is_in_trouble(standing)}
    return lines


def _subjects(opened: Context, stage: Stage, keys: set[str]) -> list[Subject]:
    """The apps or integrations that exist, of these partitions."""
    everything: Sequence[Subject] = (
        apps_with_integrations(opened.store) if stage.per == "app" else all_integrations(opened.store)
    )
    return [subject for subject in everything if partition_key(subject) in keys]


def _all_materialized(
    context: dg.AssetExecutionContext, made: Mapping[str, dg.AssetMaterialization]
) -> Iterator[dg.MaterializeResult[None]]:
    """Marks the partitions of this run as up to date, unless none of them is of an integration that exists."""
    if not made:
        context.log.info("no integration that is switched on has these partitions; nothing to do")
        return
    for key, facts in made.items():
        context.add_asset_metadata(dict(facts.metadata), partition_key=key)
    yield dg.MaterializeResult()


ASSETS: Final = tuple(build_asset(stage) for stage in STAGES)
"""In the order in which an event passes them."""
