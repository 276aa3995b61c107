"""The job ``retention``: hourly, it removes what nothing needs any more, and its run says what that was."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from nami_amp_pipeline.clock import to_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.run_history import clear_history
from nami_amp_pipeline.dagster_support.shutdown import prompt
from nami_amp_pipeline.defs.failures import ending, in_one_line
from nami_amp_pipeline.defs.ours import DEFAULT, JOB_TAG, RETENTION, STORE_TAG, Place, loaded_settings, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import run_under_way
from nami_amp_pipeline.errors import Busy
from nami_amp_pipeline.retention import RetentionReport, retain


def apply_retention(
    context: Context, instance: dg.DagsterInstance, *, dry_run: bool = False, place: Place = DEFAULT
) -> RetentionReport:
    """Removes from the store, the data folder and Dagster's history what is past its retention.

    Args:
        context: the process at work.
        instance: of Dagster.
        dry_run: only says what would be removed.
        place: of the pipeline.

    Raises:
        Busy: another process is at it.
        StoreUnavailable: the store cannot be read or written; what was removed up to then is whole.
    """
    report = retain(context, dry_run=dry_run)
    days, now = context.settings.dagster_retention_days, to_datetime(context.now())
    cleared = clear_history(instance, place.ours, days, now=now, dry_run=dry_run)
    report.runs, report.runs_kept = cleared.runs, cleared.kept
    return report


def _expire(context: dg.OpExecutionContext, pipeline: PipelineSession, place: Place) -> None:
    with in_one_line(pipeline), prompt(**ending(context)):
        try:
            report = apply_retention(pipeline.open(context.log), context.instance, place=place)
        except Busy as error:
            context.log.info("%s; left to it", error)
            return
        for name, segments in report.held_back.items():
            context.log.warning("%s expired segments are kept: %s has not delivered them yet", segments, name)
        context.add_output_metadata(removed_metadata(report))


def removed_metadata(report: RetentionReport) -> dict[str, Any]:
    """What was removed as metadata: totals as numbers, a table by kind, and what had to be kept."""
    kinds = [
        dg.TableRecord({"kind": kind, "rows": removed.rows, "files": removed.files, "bytes": removed.bytes})
        for kind, removed in report.removed.items()
    ]
    facts: dict[str, Any] = {
        "rows": sum(removed.rows for removed in report.removed.values()),
        "files_off_the_disk": report.removed["unused_files"].files if "unused_files" in report.removed else 0,
        "bytes_off_the_disk": report.removed["unused_files"].bytes if "unused_files" in report.removed else 0,
        "dagster_runs": report.runs or 0,
        "dagster_runs_kept": report.runs_kept or 0,
    }
    if kinds:
        facts["removed"] = dg.MetadataValue.table(kinds)
    if report.held_back:
        facts["held_back"] = dg.MetadataValue.table(
            [dg.TableRecord({"integration": name, "segments": count}) for name, count in report.held_back.items()]
        )
    return facts


def build_retention(place: Place = DEFAULT) -> dg.JobDefinition:
    """The job: everything that grows, once."""

    def expire(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
        _expire(context, pipeline, place)

    decorate: Callable[..., dg.OpDefinition] = dg.op(
        name=place.name("expire"),
        out=dg.Out(dg.Nothing),
        description="Removes what is past its retention and that nothing needs.",
    )
    step = decorate(place.owned(expire))

    @dg.job(
        name=place.name(RETENTION),
        executor_def=dg.in_process_executor,
        tags={JOB_TAG: place.name(RETENTION), STORE_TAG: store_label(loaded_settings(place))},
        description=(
            "Removes expired data that nothing needs: segments, receipts, dead letters and other rows of the state "
            "store, unused files, and this pipeline's old runs in Dagster's history. `nami-amp retention` does the "
            "same; docs/operations.md lists what is kept for how long."
        ),
    )
    def retention() -> None:
        step()

    return retention


def build_hourly(place: Place, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The schedule of the job: one run at a time."""

    @dg.schedule(
        job=job,
        name=place.name("retention_hourly"),
        cron_schedule="17 * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Starts the job every hour, unless one is queued or running.",
    )
    def retention_hourly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        run_id = run_under_way(context.instance, loaded_settings(place), job.name)
        return dg.SkipReason(f"run {run_id} is still queued or running") if run_id else dg.RunRequest()

    return retention_hourly


retention = build_retention()
retention_hourly = build_hourly(DEFAULT, retention)
