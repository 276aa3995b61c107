"""The job ``micro_batch``: all stages, for all partitions with work, in one run and one process.

A run for each partition would cost seconds before it did anything. So an op for each stage takes everything that has
work, and logs a materialization for each partition that it moved, and for no other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, cast

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from nami_amp_pipeline.dagster_support.event_log import keep_sqlite_log_open
from nami_amp_pipeline.dagster_support.failed_partitions import Failed, failed_partitions
from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.dagster_support.shutdown import ASKED_TO_END, Stop, graceful, prompt
from nami_amp_pipeline.defs import delivery_report
from nami_amp_pipeline.defs.asset_pages.metadata import ROW_COUNT, Metadata, again, metadata_of, standing_facts
from nami_amp_pipeline.defs.asset_pages.standing_page import is_in_trouble, observation, partition_of
from nami_amp_pipeline.defs.checks import LOGGED_PARTITIONS, evaluations
from nami_amp_pipeline.defs.news import news_of, recovered, tell
from nami_amp_pipeline.defs.ours import JOB_TAG, MICRO_BATCH, STORE_TAG, loaded_settings, store_label
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.standing import standings
from nami_amp_pipeline.stages.stage import Stage, partition_key
from nami_amp_pipeline.stages.table import STAGES
from nami_amp_pipeline.state.integrations import Integration

AFTER: Final = "after"
"""The input by which a step waits for the one before it."""

KIND: Final = "kind"
"""Metadata of a failure: the name of the error that ended a step."""

PROBLEMS: Final = "problems"
"""Metadata of a failure: a line for each reason that is news."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Selected(BaseModel):
    """What each step is given."""

    model_config = ConfigDict(hide_input_in_errors=True)

    integrations: list[str] = Field(
        default_factory=list,
        description="Only these integrations, as <app_id>/<name>. Empty: all that are switched on.",
    )


class MicroBatchConfig(Selected):
    """What a run of ``micro_batch`` may be given."""

    console_log_level: LogLevel = Field(
        default="INFO", description="How much of the run's log goes to the console as well."
    )


@contextmanager
def in_one_line(pipeline: PipelineSession) -> Iterator[None]:
    """Fails the step with the message of an error that was raised on purpose, and without its traceback."""
    try:
        yield
    except NamiAmpError as error:
        pipeline.error = error
        raise dg.Failure(str(error), metadata={KIND: type(error).__name__}, allow_retries=False) from None


def _ending(context: dg.OpExecutionContext) -> dict[str, Callable[[], None]]:
    """Lets the run end as canceled also where nobody pressed *Terminate*: nothing failed, the next run goes on."""

    def end() -> None:
        run = context.instance.get_run_by_id(context.run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            context.instance.report_run_canceling(run, ASKED_TO_END)

    def last_word() -> None:
        run = context.instance.get_run_by_id(context.run_id)
        if run is not None and not run.is_finished:
            context.instance.report_run_canceled(run, ASKED_TO_END)

    return {"end": end, "last_word": last_word}


def _materialized(
    context: dg.OpExecutionContext, asset: str, moved: Mapping[str, Metadata], stop: Stop | None = None
) -> None:
    if moved:
        rows = sum(facts.get(ROW_COUNT, 0) for facts in moved.values())
        context.log.info("%s: %s events, of %s", asset, f"{rows:,}", _listed(moved))
    with keep_sqlite_log_open(context.instance, context.run_id):
        for partition, facts in moved.items():
            if stop is not None and stop.is_pressing:
                context.log.warning("%s: told to end; not every partition that moved is shown as materialized", asset)
                return
            context.log_event(dg.AssetMaterialization(asset, partition=partition, metadata=facts))


def _listed(names: Iterable[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")


def build_op(stage: Stage, *, before: Sequence[Stage], is_last: bool) -> dg.OpDefinition:
    """The step of a stage in the job.

    Args:
        stage: which one.
        before: the stages before it. A step without any begins a run, and adds partitions that are missing.
        is_last: whether it ends a run; it tells what could not be done, and fails if any of it is news.
    """
    is_first = not before

    def work(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
        with in_one_line(pipeline):
            tick = pipeline.micro_batch(Selected(**context.op_config).integrations, context.log)
            if is_first:
                add_partitions(context.instance, tick.integrations())
            moved: dict[str, set[str]] = {}
            for step in (*_left_undone(context, tick, before), stage):
                moved[step.asset] = _do(context, tick, step)
            if is_last:
                _end(context, tick, moved)

    decorate: Callable[..., dg.OpDefinition] = dg.op(
        name=stage.op,
        ins={} if is_first else {AFTER: dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        config_schema=plain_fields(Selected),
        tags={"dagster/kind": min(stage.kinds, default="python")},
        description=f"{stage.summary} Makes `{stage.asset}`.",
    )
    return decorate(work)


def _do(context: dg.OpExecutionContext, tick: MicroBatch, stage: Stage) -> set[str]:
    """Runs a stage; returns the partitions that it materialized."""
    with (graceful if stage.is_stoppable else prompt)(**_ending(context)) as stop:
        done = tick.run(stage, stop)
        facts = metadata_of(tick.context, stage, tick.subjects(stage), tick.describe(stage, done))
        _materialized(context, stage.asset, facts, stop)
        if not stop():
            _materialized_again(context, tick, stage, set(facts))
        if stage.finishes_events:
            _evaluate(context, tick, set(facts), stop)
    return set(facts)


def _materialized_again(context: dg.OpExecutionContext, tick: MicroBatch, stage: Stage, moved: set[str]) -> None:
    """Lets partitions that count as failed, and of which nothing is wrong any more, count as materialized."""
    if any(asset == stage.asset and partition is None for asset, partition, _ in tick.noted()):
        return
    in_trouble = {partition for asset, partition, _ in tick.noted() if asset == stage.asset}
    subjects = {partition_key(subject): subject for subject in tick.subjects(stage)}
    done = {
        key for key, subject in subjects.items() if not (isinstance(subject, Integration) and tick.error_of(subject))
    }
    if not failed_partitions(context.instance, stage.asset):
        return
    some = [subject for subject in subjects.values() if isinstance(subject, Integration)]
    found = (
        {partition_of(standing): standing for standing in standings(tick.context, integrations=some)} if some else {}
    )
    for key in recovered(context.instance, stage.asset, done - in_trouble - moved, list(found.values())):
        fresh = standing_facts(found[key], context.run_id) if stage.finishes_events and key in found else None
        context.log_event(again(context.instance, stage, key, fresh))


def _left_undone(context: dg.OpExecutionContext, tick: MicroBatch, before: Sequence[Stage]) -> Sequence[Stage]:
    """What a run that repeats another *from failure* leaves out, although the other could not do it.

    Only the last step of a run fails, so only that is repeated. Without the stages that were in trouble, such as by a
    warehouse that could not be read, and those after them, the run would be green and nothing done about it.
    """
    run = context.run
    if run.parent_run_id is None or run.step_keys_to_execute is None:
        return ()
    in_trouble = {asset for asset, _ in tick.troubles_of(run.parent_run_id)}
    skipped = [stage for stage in before if stage.op not in run.step_keys_to_execute and stage.asset not in tick.done]
    first = next((number for number, stage in enumerate(skipped) if stage.asset in in_trouble), len(skipped))
    return skipped[first:]


def _evaluate(context: dg.OpExecutionContext, tick: MicroBatch, moved: set[str], stop: Stop) -> None:
    """Logs how the integrations stand that have trouble or events that wait, and the checks of those and what moved."""
    if stop():
        return
    found = standings(tick.context, integrations=tick.integrations())
    waits = [
        standing for standing in found if is_in_trouble(standing) or (standing.pending and standing.state != "off")
    ]
    waits.sort(key=lambda standing: (not is_in_trouble(standing), standing.integration))
    concerned = [standing for standing in found if partition_of(standing) in moved or is_in_trouble(standing)]
    with keep_sqlite_log_open(context.instance, context.run_id):
        for standing in waits[:LOGGED_PARTITIONS]:
            context.log_event(observation(standing))
        for evaluation in evaluations(context.instance, tick.context, concerned):
            context.log_event(cast("dg.AssetMaterialization", evaluation))  # which it takes, says its code


def _end(context: dg.OpExecutionContext, tick: MicroBatch, moved: Mapping[str, set[str]]) -> None:
    """Logs the report of all integrations, and fails if there is news of trouble."""
    found = standings(tick.context)
    context.log_event(delivery_report.materialization(found))
    news = news_of(context.instance, tick, found)
    for line in news.lines:
        context.log.error(line)
    for trouble, before in news.known:
        context.log.warning("%s Run %s failed for it.", trouble.line, before.run_id[:8])
    run = Failed(context.run_id, context.job_name, "")
    with keep_sqlite_log_open(context.instance, context.run_id):
        tell(context.instance, news, run, context.op_def.name, moved, fails=bool(news.lines))
    if news.lines:
        raise incomplete(news.lines, [trouble.line for trouble, _ in news.known])


def incomplete(problems: Iterable[str], known: Iterable[str] = ()) -> dg.Failure:
    """The failure of a run that could not do everything.

    Args:
        problems: a line for each reason.
        known: the same of what other runs failed for, and is not over.
    """
    lines, before = list(problems), list(known)
    text = "Not everything was delivered; what could be, was.\n" + "\n".join(lines)
    if before:
        text += "\nNot over since earlier runs:\n" + "\n".join(before)
    return dg.Failure(
        text,
        metadata={PROBLEMS: dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))},
        allow_retries=False,
    )


def build_micro_batch(stages: Sequence[Stage] = STAGES) -> dg.JobDefinition:
    """The job: the steps of these stages, one after the other."""
    steps = [stage for stage in stages if stage.op is not None]
    ops = [build_op(step, before=steps[:number], is_last=step is steps[-1]) for number, step in enumerate(steps)]

    @dg.config_mapping(config_schema=plain_fields(MicroBatchConfig))
    def for_each_op(given: dict[str, Any]) -> dict[str, Any]:
        config = MicroBatchConfig(**given)
        selected = {"config": {"integrations": config.integrations}}
        return {
            "ops": {op.name: selected for op in ops},
            "loggers": {"console": {"config": {"log_level": config.console_log_level}}},
        }

    @dg.job(
        name=MICRO_BATCH,
        config=for_each_op,
        executor_def=dg.in_process_executor,
        tags={JOB_TAG: MICRO_BATCH, STORE_TAG: store_label(loaded_settings())},
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
