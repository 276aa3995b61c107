"""The job ``micro_batch``: all stages, for all partitions with work, in one run and one process.

A run for each partition would cost seconds before it did anything. So four ops take everything that has work, and log a
materialization for each partition that they moved, and for no other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import dagster as dg
from pydantic import Field

from nami_amp_pipeline.dagster_support.event_log import keep_sqlite_log_open
from nami_amp_pipeline.dagster_support.shutdown import ASKED_TO_END, Stop, graceful, prompt
from nami_amp_pipeline.defs.asset_pages import metadata
from nami_amp_pipeline.defs.asset_pages.halted import observations, with_halts
from nami_amp_pipeline.defs.checks import evaluations
from nami_amp_pipeline.defs.partitions import add_partitions
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.status import IntegrationStatus

MICRO_BATCH = "micro_batch"
CONCURRENCY_TAG = {"nami/job": MICRO_BATCH}
"""``dagster.yaml`` lets one run with this tag run at a time."""


class MicroBatchConfig(dg.Config):
    """What a run of ``micro_batch`` may be given."""

    integrations: list[str] = Field(
        default_factory=list,
        description="Only these integrations, as <app_id>/<name>. Empty: all that are switched on.",
    )
    console_log_level: str = Field(
        default="INFO",
        description="How much of the run's log goes to the console as well: DEBUG, INFO, WARNING, ERROR or CRITICAL.",
    )


class Selected(dg.Config):
    """What each op is given."""

    integrations: list[str] = Field(default_factory=list, description="<app_id>/<name>; empty for all.")


@contextmanager
def in_one_line(pipeline: PipelineSession) -> Iterator[None]:
    """Fails the step with the message of an error that was raised on purpose, and without its traceback."""
    try:
        yield
    except NamiAmpError as error:
        pipeline.error = error
        raise dg.Failure(str(error), allow_retries=False) from None


def _begin(context: dg.OpExecutionContext, config: Selected, pipeline: PipelineSession) -> MicroBatch:
    return pipeline.tick(config.integrations, context.log)


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
    context: dg.OpExecutionContext, asset: str, moved: Mapping[str, Mapping[str, Any]], stop: Stop | None = None
) -> None:
    if moved:
        rows = sum(facts[metadata.ROW_COUNT] for facts in moved.values())
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


@dg.op(out=dg.Out(dg.Nothing), tags={"dagster/kind": "duckdb"})
def capture(context: dg.OpExecutionContext, config: Selected, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """Copies what is new in the warehouse into segments; ``nami_events``.

    Where the warehouse cannot be read, the ops after this one still deliver what was captured earlier, and the run
    fails at its end.
    """
    with in_one_line(pipeline), prompt(**_ending(context)):
        tick = _begin(context, config, pipeline)
        add_partitions(context.instance, tick.integrations())
        moved = tick.capture()
        _materialized(context, "nami_events", metadata.captured(tick.context, moved))


@dg.op(ins={"captured": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), tags={"dagster/kind": "duckdb"})
def snapshot(context: dg.OpExecutionContext, config: Selected, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """Computes the state of each user as of each new event; ``user_property_snapshots``."""
    with in_one_line(pipeline), prompt(**_ending(context)):
        tick = _begin(context, config, pipeline)
        moved = tick.snapshot()
        _materialized(context, "user_property_snapshots", metadata.snapshotted(tick.context, moved))


@dg.op(ins={"snapshotted": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), tags={"dagster/kind": "duckdb"})
def prepare(context: dg.OpExecutionContext, config: Selected, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """Writes what will be posted, as it will be posted; ``amplitude_events``."""
    with in_one_line(pipeline), prompt(**_ending(context)):
        tick = _begin(context, config, pipeline)
        moved = tick.prepare()
        _materialized(context, "amplitude_events", metadata.prepared(tick.context, tick.integrations(), moved))


@dg.op(ins={"prepared": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), tags={"dagster/kind": "amplitude"})
def upload(context: dg.OpExecutionContext, config: Selected, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """Posts to Amplitude and records every answer; ``amplitude_deliveries``.

    Fails if anything of this run, or of one of its integrations, could not be done, after everything else was.
    """
    with in_one_line(pipeline):
        tick = _begin(context, config, pipeline)
        with graceful(**_ending(context)) as stop:
            moved = tick.deliver(stop)
            facts = metadata.delivered(tick.context, tick.integrations(), moved)
            _materialized(context, "amplitude_deliveries", facts, stop)
            halted = tick.halted()
            known = {key for key, was in tick.before.items() if was.is_halted}
            with keep_sqlite_log_open(context.instance, context.run_id):
                for observation in observations(one for one in halted if one.integration not in known):
                    context.log_event(observation)
                for evaluation in () if stop() else evaluations(context.instance, tick, set(facts)):
                    context.log_event(cast("dg.AssetMaterialization", evaluation))  # which it takes, says its code
        problems = tick.problems()
        for line in problems:
            context.log.error(line)
        if problems:
            raise incomplete(problems, halted)


def incomplete(problems: Iterable[str], halted: Iterable[IntegrationStatus]) -> dg.Failure:
    """The failure of a run that could not do everything: a line for each reason, and how halted integrations go on."""
    lines = list(problems)
    return dg.Failure(
        "Not everything was delivered; what could be, was.\n" + "\n".join(with_halts(lines, halted)),
        metadata={"problems": dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))},
        allow_retries=False,
    )


@dg.config_mapping
def _for_each_op(config: MicroBatchConfig) -> dict[str, Any]:
    selected = {"config": {"integrations": config.integrations}}
    return {
        "ops": {op.name: selected for op in (capture, snapshot, prepare, upload)},
        "loggers": {"console": {"config": {"log_level": config.console_log_level}}},
    }


@dg.job(
    name=MICRO_BATCH,
    config=_for_each_op,
    executor_def=dg.in_process_executor,
    tags=CONCURRENCY_TAG,
    description=(
        "Captures what is new in the warehouse, computes snapshots, prepares and delivers, for every app and "
        "integration with work. The schedule runs it; `nami-amp run` is the same in one process. It fails if an "
        "integration has an error, after everything else was delivered; the last lines of its log say which and why."
    ),
)
def micro_batch() -> None:
    """The whole way, once."""
    upload(prepared=prepare(snapshotted=snapshot(captured=capture())))
