"""When micro-batches start."""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorStatus

from nami_amp_pipeline.clock import micros, system_clock, to_text
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import MICRO_BATCH, SCHEDULE, STORE_TAG, loaded_settings, store_label
from nami_amp_pipeline.settings import Settings

NAME_BEFORE: Final = "micro_batch_every_5_minutes"
"""It said so also where the settings said otherwise."""

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


def build_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """The schedule of the job, by the settings' timetable."""
    times = settings.timetable

    @dg.schedule(
        job=micro_batch,
        name=SCHEDULE,
        cron_schedule=times.schedule,
        execution_timezone=times.zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            f"Starts a micro-batch {times.called}, unless one is queued or running. The next micro-batch catches up on "
            "everything since the last one. `NAMI_AMP_TICK_MINUTES`, `NAMI_AMP_TICK_CRON`, `NAMI_AMP_TICK_TIME_ZONE` "
            "and `NAMI_AMP_QUIET_HOURS` change when."
        ),
    )
    def micro_batch_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        given = loaded_settings()
        why = quiet(given) or switched_off_before(context.instance)
        if why:
            return dg.SkipReason(why)
        run_id = run_under_way(context.instance, given)
        return dg.SkipReason(f"run {run_id} is still queued or running") if run_id else dg.RunRequest()

    return micro_batch_schedule


def quiet(settings: Settings) -> str | None:
    """Why nothing is to start at this time of day; None if something may."""
    now, times = micros(system_clock), settings.timetable
    if not times.is_quiet(now):
        return None
    following = to_text(times.next_start(now))
    return f"quiet hours ({times.quiet}, {times.zone}): the next micro-batch starts at {following or 'no time'}"


def switched_off_before(instance: dg.DagsterInstance) -> str | None:
    """Why nothing is to start where a person switched the schedule off while it had its old name.

    It holds until somebody switches the schedule of today's name, on or off.
    """
    states = {state.name: state for state in instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE)}
    before, today = states.get(NAME_BEFORE), states.get(SCHEDULE)
    if before is None or before.status is not InstigatorStatus.STOPPED:
        return None
    if today is not None and today.status is InstigatorStatus.RUNNING:
        return None
    return f"switched off as '{NAME_BEFORE}', its name before; switch '{SCHEDULE}' off and on again to start it"


SENSOR_SECONDS: Final = loaded_settings().sensor_seconds
"""How often each sensor looks."""

micro_batch_schedule = build_schedule(loaded_settings())
