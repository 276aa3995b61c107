"""When micro-batches start."""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.jobs import MICRO_BATCH, micro_batch
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


def run_under_way(instance: dg.DagsterInstance) -> str | None:
    """The id of a micro-batch that is queued or under way, if there is one."""
    found = instance.get_run_records(
        dg.RunsFilter(job_name=MICRO_BATCH, statuses=UNDER_WAY, updated_after=datetime.now(UTC) - FORGOTTEN), limit=1
    )
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
            f"Starts a micro-batch every {tick_minutes} min (NAMI_AMP_TICK_MINUTES), unless one is under way; "
            "what is missed meanwhile is caught up by the next one."
        ),
    )
    def micro_batch_every_5_minutes(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        run_id = run_under_way(context.instance)
        return dg.SkipReason(f"run {run_id} is still queued or under way") if run_id else dg.RunRequest()

    return micro_batch_every_5_minutes


_settings = Settings.load()

SENSOR_SECONDS: Final = _settings.sensor_seconds
"""How often each sensor looks."""

micro_batch_every_5_minutes = build_schedule(_settings.tick_minutes)
