"""When micro-batches start."""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import MICRO_BATCH, STORE_TAG, loaded_settings, store_label
from nami_amp_pipeline.settings import Settings

FORGOTTEN: Final = timedelta(hours=1)
"""A run that has not been heard of for so long was killed without a word; it no longer keeps others from starting."""

UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def run_under_way(instance: dg.DagsterInstance, settings: Settings, job: str = MICRO_BATCH) -> str | None:
    """The id of a run of a job of ours that is queued or under way, for the store of the settings, if there is one."""
    filters = dg.RunsFilter(
        job_name=job,
        statuses=UNDER_WAY,
        tags={STORE_TAG: store_label(settings)},
        updated_after=datetime.now(UTC) - FORGOTTEN,
    )
    found = instance.get_run_records(filters, limit=1)
    return found[0].dagster_run.run_id if found else None


def build_schedule(tick_minutes: int) -> dg.ScheduleDefinition:
    """The schedule of the job.

    Args:
        tick_minutes: between two starts.
    """

    @dg.schedule(
        job=micro_batch,
        name="micro_batch_every_5_minutes",
        cron_schedule=f"*/{tick_minutes} * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            f"Starts a micro-batch every {tick_minutes} minutes (NAMI_AMP_TICK_MINUTES), unless one is queued or "
            "running. The next micro-batch catches up on everything since the last one."
        ),
    )
    def micro_batch_every_5_minutes(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        run_id = run_under_way(context.instance, loaded_settings())
        return dg.SkipReason(f"run {run_id} is still queued or running") if run_id else dg.RunRequest()

    return micro_batch_every_5_minutes


SENSOR_SECONDS: Final = loaded_settings().sensor_seconds
"""How often each sensor looks."""

micro_batch_every_5_minutes = build_schedule(loaded_settings().tick_minutes)
