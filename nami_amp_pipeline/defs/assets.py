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
from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.dagster_support.shutdown import graceful, prompt
from nami_amp_pipeline.defs.asset_pages.columns import definition_metadata
from nami_amp_pipeline.defs.asset_pages.cursors import nothing_new, with_cursors
from nami_amp_pipeline.defs.asset_pages.metadata import Metadata, again, metadata_of, standing_facts
from nami_amp_pipeline.defs.asset_pages.standing_page import in_a_line, is_in_trouble, partition_of
from nami_amp_pipeline.defs.backfill_job import AskedWindow, asked, send
from nami_amp_pipeline.defs.failures import in_one_line, incomplete
from nami_amp_pipeline.defs.kept_up import kept_up_to_date
from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.defs.partitions import apps_of, integrations_of
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.steps import Execute, Step, at_once
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.standing import Standing, standings
from nami_amp_pipeline.stages.pipeline import run_stage
from nami_amp_pipeline.stages.stage import Stage, Subject, called, partition_key
from nami_amp_pipeline.stages.table import STAGES
from nami_amp_pipeline.state.integrations import Integration, all_integrations, apps_with_integrations

CODE_VERSION: Final = "1"
"""Raised when the same rows would give other bytes."""


def build_asset(stage: Stage, place: Place = DEFAULT, execute: Execute = at_once) -> dg.AssetsDefinition:
    """The asset of a stage.

    Args:
        stage: which one.
        place: of the pipeline.
        execute: does the step, with whatever a component does before and after it.
    """
    options: dict[str, Any] = {
        "key": place.key(stage.asset),
        "deps": [_dependency(stage, asset, place) for asset in stage.upstream],
        "partitions_def": apps_of(place) if stage.per == "app" else integrations_of(place),
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "output_required": False,
        "group_name": place.group,
        "owners": list(place.owners),
        "kinds": set(stage.kinds),
        "tags": {"domain": "subscriptions", "grain": "event"},
        "code_version": CODE_VERSION,
        "description": f"{kept_up_to_date(place=place)}\n{stage.description}{_question(stage, place)}",
        "metadata": definition_metadata(stage, place),
    }
    if stage.finishes_events:
        options["config_schema"] = plain_fields(AskedWindow)

    def materialize(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> Iterator[dg.MaterializeResult[None]]:
        def work() -> Iterator[dg.MaterializeResult[None]]:
            window = context.op_execution_context.op_config if stage.finishes_events else None
            if window and (window["from"] or window["to"]):
                yield from _send_window(context, pipeline, stage, window, place)
            else:
                yield from _materialize(context, pipeline, stage, place)

        yield from execute(context, pipeline, Step(stage.asset, work))

    with ignore_beta_warnings():  # backfill_policy
        decorate: Callable[..., dg.AssetsDefinition] = dg.asset(**options)
        return decorate(place.owned(materialize))


def _question(stage: Stage, place: Place) -> str:
    """Where the page of an asset at whose partitions events end leads those who look for one."""
    if not stage.finishes_events:
        return ""
    return f"\n**Did an event arrive?** [Ask here]({place.ask}): give an event id or a user, and launch the run.\n"


def _dependency(stage: Stage, upstream: str, place: Place) -> dg.AssetDep:
    """An integration is no app, and Dagster would take keys of one for keys of the other: it depends on all apps."""
    is_per = {other.asset: other.per for other in STAGES}.get(upstream)
    mapping = None if is_per == stage.per else dg.AllPartitionMapping()
    return dg.AssetDep(place.key(upstream), partition_mapping=mapping)


def _materialize(
    context: dg.AssetExecutionContext, pipeline: PipelineSession, stage: Stage, place: Place
) -> Iterator[dg.MaterializeResult[None]]:
    failures: dict[str, str] = {}

    def failed(subject: Subject, error: NamiAmpError) -> None:
        failures[partition_key(subject)] = f"{partition_key(subject)}: {error}"

    with in_one_line(pipeline):
        opened = pipeline.open(context.log)
        subjects = _subjects(opened, stage, set(map(str, context.partition_keys)))
        with (graceful if stage.is_stoppable else prompt)() as stop:
            done = run_stage(opened, stage, subjects, stop=stop, failed=failed)
            some = [subject for subject in subjects if isinstance(subject, Integration)]
            stands = standings(opened, integrations=some) if stage.finishes_events else []
            found = metadata_of(opened, stage, stands, stage.describe(opened, subjects, done), place)
            found = with_cursors(context.instance, place.key(stage.asset), found)
            for subject in subjects:
                error = getattr(done.get(partition_key(subject)), "error", None)
                if error:
                    failures[partition_key(subject)] = f"{partition_key(subject)}: {error}"
            made = _pages(context, stage, subjects, stands, found, failures, place)
            lines = _in_words(stands, failures)
    if not failures:
        yield from _all_materialized(context, made)
        return
    for facts in made.values():
        context.log_event(facts)
    # What moved in part does not count as materialized: the plan to materialize it is repeated after its facts.
    said = {key: line for key, line in lines.items() if key in made}
    run = Failed(context.run.run_id, context.run.job_name, "")
    count_as_failed(context.instance, place.key(stage.asset), said, run, stage.asset)
    raise incomplete(lines.values())


def _send_window(
    context: dg.AssetExecutionContext,
    pipeline: PipelineSession,
    stage: Stage,
    window: dict[str, Any],
    place: Place,
) -> Iterator[dg.MaterializeResult[None]]:
    """Makes a backfill of each integration, one after the other, in place of delivering what is new."""
    made: dict[str, dg.AssetMaterialization] = {}
    failures: dict[str, str] = {}
    with in_one_line(pipeline), graceful() as stop:
        opened = pipeline.open(context.log)
        for subject in _subjects(opened, stage, set(map(str, context.partition_keys))):
            if stop():
                break
            key = partition_key(subject)
            try:
                facts, why = send(context, opened, pipeline, asked(called(subject), window), window, stop)
            except NamiAmpError as error:
                failures[key] = f"{key}: {error}"
                continue
            facts = nothing_new(context.instance, place.key(stage.asset), {key: facts})[key]
            made[key] = dg.AssetMaterialization(place.key(stage.asset), partition=key, metadata=facts)
            if why is not None:
                failures[key] = why
    if not failures:
        yield from _all_materialized(context, made)
        return
    for materialization in made.values():
        context.log_event(materialization)
    raise incomplete(failures.values())


def _pages(
    context: dg.AssetExecutionContext,
    stage: Stage,
    subjects: Sequence[Subject],
    stands: Sequence[Standing],
    found: Mapping[str, Metadata],
    failures: Mapping[str, str],
    place: Place,
) -> dict[str, dg.AssetMaterialization]:
    """What to show of each partition: what moved, and what it showed before where there was nothing new."""
    asset = place.key(stage.asset)
    made = {key: dg.AssetMaterialization(asset, partition=key, metadata=facts) for key, facts in found.items()}
    still = [
        subject for subject in subjects if partition_key(subject) not in made and partition_key(subject) not in failures
    ]
    by_key = {partition_of(standing): standing for standing in stands}
    for subject in still:
        key = partition_key(subject)
        fresh = standing_facts(by_key[key], context.run.run_id, place) if key in by_key else None
        made[key] = again(context.instance, stage, key, fresh, place)
    return made


def _in_words(stands: Sequence[Standing], failures: Mapping[str, str]) -> dict[str, str]:
    """A line for each partition that failed: how its integration stands, where that says more."""
    mine = [standing for standing in stands if partition_of(standing) in failures and is_in_trouble(standing)]
    return {**failures, **{partition_of(standing): in_a_line(standing) for standing in mine}}


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
"""Of the default place, in the order in which an event passes them."""
