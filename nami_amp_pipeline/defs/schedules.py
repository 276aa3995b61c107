"""When micro-batches start."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorStatus

from nami_amp_pipeline.clock import micros, system_clock, to_text
from nami_amp_pipeline.defs.jobs import micro_batch
from nami_amp_pipeline.defs.ours import (
    DEFAULT,
    MICRO_BATCH,
    SCHEDULE,
    SHARD_TAG,
    STORE_TAG,
    UNDER_WAY,
    Place,
    loaded_settings,
    store_label,
)
from nami_amp_pipeline.operations.shards import MOST, Shard, shards
from nami_amp_pipeline.settings import Settings

NAME_BEFORE: Final = "micro_batch_every_5_minutes"
"""It said so also where the settings said otherwise."""

FORGOTTEN: Final = timedelta(hours=1)
"""A run that has not been heard of for so long was killed without a word; it no longer keeps others from starting."""


def run_under_way(
    instance: dg.DagsterInstance, settings: Settings, job: str = MICRO_BATCH, shard: Shard | None = None
) -> str | None:
    """The id of a run of a job of ours that is queued or under way, for the store of the settings, if there is one.

    Args:
        instance: of Dagster.
        settings: of the pipeline.
        job: the job.
        shard: leaves out the runs of other shards of the same division.
    """
    filters = dg.RunsFilter(
        job_name=job,
        statuses=UNDER_WAY,
        tags={STORE_TAG: store_label(settings)},
        updated_after=datetime.now(UTC) - FORGOTTEN,
    )
    runs = [record.dagster_run for record in instance.get_run_records(filters, limit=2 * MOST)]
    return next((run.run_id for run in runs if _concerns(run.tags.get(SHARD_TAG, ""), shard)), None)


def _concerns(tag: str, shard: Shard | None) -> bool:
    """Whether a run with this tag works for apps of the shard."""
    if shard is None or not tag:
        return True
    return tag == str(shard) or not tag.endswith(f"/{shard.of}")


def requests(
    instance: dg.DagsterInstance, settings: Settings, job: str, wanted: Callable[[Shard | None], bool] = lambda _: True
) -> tuple[list[dg.RunRequest], str]:
    """A run for each shard that is wanted and has none; and why there is none for another.

    Args:
        instance: of Dagster.
        settings: say how many shards there are.
        job: the job.
        wanted: whether a shard has work.
    """
    asked: list[dg.RunRequest] = []
    why = ""
    for shard in filter(wanted, shards(settings.shards)):
        run_id = run_under_way(instance, settings, job, shard)
        if run_id:
            why = why or f"run {run_id} is still queued or running"
        elif shard is None:
            asked.append(dg.RunRequest())
        else:
            asked.append(dg.RunRequest(run_config={"shard": str(shard)}, tags={SHARD_TAG: str(shard)}))
    return asked, why


def build_schedule(
    settings: Settings, place: Place = DEFAULT, job: dg.JobDefinition = micro_batch
) -> dg.ScheduleDefinition:
    """The schedule of the job, by the settings' timetable."""
    times = settings.timetable

    @dg.schedule(
        job=job,
        name=place.name(SCHEDULE),
        cron_schedule=times.schedule,
        execution_timezone=times.zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            f"Starts a micro-batch {times.called}, unless one is queued or running. The next micro-batch catches up on "
            "everything since the last one. `NAMI_AMP_TICK_MINUTES`, `NAMI_AMP_TICK_CRON`, `NAMI_AMP_TICK_TIME_ZONE` "
            "and `NAMI_AMP_QUIET_HOURS` change when; with `NAMI_AMP_SHARDS`, several runs share the apps."
        ),
    )
    def micro_batch_schedule(
        context: dg.ScheduleEvaluationContext,
    ) -> dg.RunRequest | Sequence[dg.RunRequest] | dg.SkipReason:
        given = loaded_settings(place)
        why = quiet(given) or (switched_off_before(context.instance) if place == DEFAULT else None)
        if why:
            return dg.SkipReason(why)
        asked, why_not = requests(context.instance, given, job.name)
        if not asked:
            return dg.SkipReason(why_not)
        if given.shards == 1:
            return asked[0]
        # Dagster refuses several requests of one tick without keys; a key that was used once starts no run again.
        due = context.scheduled_execution_time.isoformat()
        return [request.with_replaced_attrs(run_key=f"{due} {request.tags[SHARD_TAG]}") for request in asked]

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


def sensor_seconds(place: Place = DEFAULT) -> int:
    """How often each sensor looks."""
    return loaded_settings(place).sensor_seconds


micro_batch_schedule = build_schedule(loaded_settings())
