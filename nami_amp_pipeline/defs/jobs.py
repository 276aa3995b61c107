"""The job ``micro_batch``: all stages, for all partitions with work, in one run and one process.

A run for each partition would cost seconds before it did anything. So an op for each stage takes everything that has
work, and logs a materialization for each partition that it moved, and for no other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, cast

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from nami_amp_pipeline.dagster_support.event_log import written_together
from nami_amp_pipeline.dagster_support.failed_partitions import Failed, failed_partitions
from nami_amp_pipeline.dagster_support.histories import two_histories
from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.dagster_support.shutdown import Stop, graceful, prompt
from nami_amp_pipeline.defs import delivery_report
from nami_amp_pipeline.defs.asset_pages.cursors import with_cursors
from nami_amp_pipeline.defs.asset_pages.metadata import ROW_COUNT, Metadata, again, metadata_of, standing_facts
from nami_amp_pipeline.defs.asset_pages.standing_page import is_in_trouble, observation, partition_of
from nami_amp_pipeline.defs.checks import LOGGED_PARTITIONS, evaluations
from nami_amp_pipeline.defs.failures import ending, in_one_line, incomplete
from nami_amp_pipeline.defs.news import news_of, recovered, tell
from nami_amp_pipeline.defs.ours import DEFAULT, JOB_TAG, MICRO_BATCH, STORE_TAG, Place, loaded_settings, store_label
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.steps import Execute, Step, at_once
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.overview import unreadable
from nami_amp_pipeline.operations.standing import Standing, standings
from nami_amp_pipeline.stages.stage import Stage
from nami_amp_pipeline.stages.table import STAGES

AFTER: Final = "after"
"""The input by which a step waits for the one before it."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Selected(BaseModel):
    """What each step is given."""

    model_config = ConfigDict(hide_input_in_errors=True)

    integrations: list[str] = Field(
        default_factory=list,
        description="Only these integrations, as <app_id>/<name>. Empty: all that are switched on.",
    )
    shard: str = Field(
        default="",
        description="Only this share of the apps, such as 2/4, as the schedule asks with NAMI_AMP_SHARDS. Empty: all.",
    )


class MicroBatchConfig(Selected):
    """What a run of ``micro_batch`` may be given."""

    console_log_level: LogLevel = Field(
        default="INFO", description="How much of the run's log goes to the console as well."
    )


def _materialized(
    context: dg.OpExecutionContext, asset: dg.AssetKey, moved: Mapping[str, Metadata], stop: Stop | None = None
) -> None:
    if moved:
        rows = sum(facts.get(ROW_COUNT, 0) for facts in moved.values())
        context.log.info("%s: %s events, of %s", asset.to_user_string(), f"{rows:,}", _listed(moved))
    with written_together(context.instance):
        for partition, facts in moved.items():
            if stop is not None and stop.is_pressing:
                told = "%s: told to end; not every partition that moved is shown as materialized"
                context.log.warning(told, asset.to_user_string())
                return
            context.log_event(dg.AssetMaterialization(asset, partition=partition, metadata=facts))


def _listed(names: Iterable[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")


def build_op(
    stage: Stage, *, before: Sequence[Stage], is_last: bool, place: Place = DEFAULT, execute: Execute = at_once
) -> dg.OpDefinition:
    """The step of a stage in the job.

    Args:
        stage: which one.
        before: the stages before it. A step without any begins a run, and adds partitions that are missing.
        is_last: whether it ends a run; it tells what could not be done, and fails if any of it is news.
        place: of the pipeline.
        execute: does the step, with whatever a component does before and after it.
    """
    is_first = not before

    def do(context: dg.OpExecutionContext, pipeline: PipelineSession) -> Iterator[Any]:
        with in_one_line(pipeline):
            selected = Selected(**context.op_config)
            tick = pipeline.micro_batch(selected.integrations, selected.shard, context.log)
            if is_first:
                # Whoever has the component in a project of their own has a Dagster of their own, and means it.
                warning = two_histories(context.instance, pipeline.settings) if place == DEFAULT else None
                if warning is not None:
                    context.log.warning(warning)
                add_partitions(context.instance, tick.began_with, place)
            moved: dict[str, set[str]] = {}
            for step in (*_left_undone(context, tick, before, place), stage):
                moved[step.asset], found = _do(context, tick, step, place)
            if is_last:
                _end(context, tick, moved, _standings(tick) if found is None else found, place)
        yield from ()

    def work(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
        for _ in execute(context, pipeline, Step(stage.asset, lambda: do(context, pipeline))):
            pass

    decorate: Callable[..., dg.OpDefinition] = dg.op(
        name=place.name(stage.op or stage.asset),
        ins={} if is_first else {AFTER: dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        config_schema=plain_fields(Selected),
        tags={"dagster/kind": min(stage.kinds, default="python")},
        description=f"{stage.summary} Makes `{stage.asset}`.",
    )
    return decorate(place.owned(work))


def _do(
    context: dg.OpExecutionContext, tick: MicroBatch, stage: Stage, place: Place
) -> tuple[set[str], list[Standing] | None]:
    """Runs a stage; returns the partitions that it materialized, and how all integrations stand if events end in it."""
    with (graceful if stage.is_stoppable else prompt)(**ending(context)) as stop:
        done = tick.run(stage, stop)
        found = _standings(tick) if stage.finishes_events else None
        if found is not None:
            tick.after = {standing.integration: standing.numbers for standing in found}
        facts = metadata_of(tick.context, stage, found or (), tick.describe(stage, done), place)
        facts = with_cursors(context.instance, place.key(stage.asset), facts)
        _materialized(context, place.key(stage.asset), facts, stop)
        if not stop():
            _materialized_again(context, tick, stage, set(facts), found, place)
        if found is not None:
            _evaluate(context, tick, set(facts), found, stop, place)
    return set(facts), found


def _materialized_again(
    context: dg.OpExecutionContext,
    tick: MicroBatch,
    stage: Stage,
    moved: set[str],
    found: Sequence[Standing] | None,
    place: Place,
) -> None:
    """Lets partitions that count as failed, and of which nothing is wrong any more, count as materialized."""
    if any(asset == stage.asset and partition is None for asset, partition, _ in tick.noted()):
        return
    failed = failed_partitions(context.instance, place.key(stage.asset)).keys() - moved
    if not failed:
        return
    in_trouble = {partition for asset, partition, _ in tick.noted() if asset == stage.asset}
    done = {key for key in tick.partitions(stage) if not tick.error_of(key)}
    failed &= done - in_trouble
    if not failed:
        return
    if found is None:
        found = _standings(tick) if stage.per == "integration" else ()
    stands = {partition_of(standing): standing for standing in found}
    for key in recovered(failed, found):
        is_known = stage.finishes_events and key in stands
        fresh = standing_facts(stands[key], context.run_id, place) if is_known else None
        context.log_event(again(context.instance, stage, key, fresh, place))


def _left_undone(
    context: dg.OpExecutionContext, tick: MicroBatch, before: Sequence[Stage], place: Place
) -> Sequence[Stage]:
    """What a run that repeats another *from failure* leaves out, although the other could not do it.

    Only the last step of a run fails, so only that is repeated. Without the stages that were in trouble, such as by a
    warehouse that could not be read, and those after them, the run would be green and nothing done about it.
    """
    run = context.run
    if run.parent_run_id is None or run.step_keys_to_execute is None:
        return ()
    in_trouble = {asset for asset, _ in tick.troubles_of(run.parent_run_id)}
    skipped = [
        stage
        for stage in before
        if place.name(stage.op or stage.asset) not in run.step_keys_to_execute and stage.asset not in tick.done
    ]
    first = next((number for number, stage in enumerate(skipped) if stage.asset in in_trouble), len(skipped))
    return skipped[first:]


def _evaluate(
    context: dg.OpExecutionContext,
    tick: MicroBatch,
    moved: set[str],
    everybody: Sequence[Standing],
    stop: Stop,
    place: Place,
) -> None:
    """Logs how the integrations stand that have trouble or events that wait, and the checks of those and what moved."""
    if stop():
        return
    found = [standing for standing in everybody if tick.has(standing.integration)]
    waits = [
        standing for standing in found if is_in_trouble(standing) or (standing.pending and standing.state != "off")
    ]
    waits.sort(key=lambda standing: (not is_in_trouble(standing), standing.integration))
    concerned = [standing for standing in found if partition_of(standing) in moved or is_in_trouble(standing)]
    with written_together(context.instance):
        for standing in waits[:LOGGED_PARTITIONS]:
            context.log_event(observation(standing, place))
        for evaluation in evaluations(context.instance, tick.context, concerned, place):
            context.log_event(cast("dg.AssetMaterialization", evaluation))  # which it takes, says its code


def _is_for_all(tick: MicroBatch) -> bool:
    """Whether this run also does what is to be done once, however many runs share the apps."""
    return tick.shard is None or tick.shard.is_first


def _standings(tick: MicroBatch) -> list[Standing]:
    """How the integrations stand: all of them for the report, else those of the run."""
    return standings(tick.context, integrations=None if _is_for_all(tick) else tick.integrations())


def _end(
    context: dg.OpExecutionContext,
    tick: MicroBatch,
    moved: Mapping[str, set[str]],
    found: Sequence[Standing],
    place: Place,
) -> None:
    """Logs the report of all integrations, and fails if there is news of trouble."""
    if _is_for_all(tick):
        context.log_event(delivery_report.materialization(found, unreadable(tick.context), place))
    news = news_of(context.instance, tick, found, place)
    for line in news.lines:
        context.log.error(line)
    for trouble, before in news.known:
        context.log.warning("%s Run %s failed for it.", trouble.line, before.run_id[:8])
    run = Failed(context.run_id, context.job_name, "")
    with written_together(context.instance):
        tell(context.instance, news, run, context.op_def.name, moved, fails=bool(news.lines), place=place)
    if news.lines:
        raise incomplete(news.lines, [trouble.line for trouble, _ in news.known])


def build_micro_batch(
    stages: Sequence[Stage] = STAGES, place: Place = DEFAULT, execute: Execute = at_once
) -> dg.JobDefinition:
    """The job: the steps of these stages, one after the other."""
    steps = [stage for stage in stages if stage.op is not None]
    ops = [
        build_op(step, before=steps[:number], is_last=step is steps[-1], place=place, execute=execute)
        for number, step in enumerate(steps)
    ]
    name = place.name(MICRO_BATCH)

    @dg.config_mapping(config_schema=plain_fields(MicroBatchConfig))
    def for_each_op(given: dict[str, Any]) -> dict[str, Any]:
        config = MicroBatchConfig(**given)
        selected = {"config": {"integrations": config.integrations, "shard": config.shard}}
        return {
            "ops": {op.name: selected for op in ops},
            "loggers": {"console": {"config": {"log_level": config.console_log_level}}},
        }

    @dg.job(
        name=name,
        config=for_each_op,
        executor_def=dg.in_process_executor,
        tags={JOB_TAG: name, STORE_TAG: store_label(loaded_settings(place))},
        description=(
            "Captures new rows of the warehouse, computes snapshots, prepares events and delivers them, for every app "
            "and integration with work. The schedule runs it; `nami-amp run` does the same in its own process. A run "
            "fails for news: a trouble of an integration that no run has failed for yet, or one that is everybody's, "
            "such as a warehouse that cannot be read. What it failed for stays visible at the partition, its checks, "
            "`delivery_report` and `nami-amp status` until it is over."
        ),
    )
    def micro_batch() -> None:
        after: dict[str, Any] = {}
        for op in ops:
            after = {AFTER: op(**after)}

    return micro_batch


micro_batch = build_micro_batch()
