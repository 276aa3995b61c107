"""When micro-batches start."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import MICRO_BATCH
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.settings import Settings

LOG: Final = logging.getLogger("nami_amp_pipeline.schedules")

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
            f"Starts a micro-batch every {tick_minutes} minutes (NAMI_AMP_TICK_MINUTES), unless one is queued or "
            "running. The next micro-batch catches up on everything since the last one."
        ),
    )
    def micro_batch_every_5_minutes(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        run_id = run_under_way(context.instance)
        return dg.SkipReason(f"run {run_id} is still queued or running") if run_id else dg.RunRequest()

    return micro_batch_every_5_minutes


def _settings() -> Settings:
    """The settings; the defaults where one cannot be used, so that the code loads and the run says what is wrong."""
    try:
        return Settings.load()
    except Misconfigured as error:
        LOG.warning("%s; until then the schedule and the sensors keep their default times", error)
        return Settings()


SENSOR_SECONDS: Final = _settings().sensor_seconds
"""How often each sensor looks."""

micro_batch_every_5_minutes = build_schedule(_settings().tick_minutes)
