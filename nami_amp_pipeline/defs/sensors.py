"""Partitions in step with the integrations, micro-batches before their time, and runs that were lost."""

import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.dagster_support.histories import two_histories
from nami_amp_pipeline.defs.ours import DEFAULT, MICRO_BATCH, STORE_TAG, Place, store_label
from nami_amp_pipeline.defs.partitions import MOST_CHANGES, left_behind, missing_partitions, orphaned_partitions
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import quiet, requests, sensor_seconds
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.backlog import DueWork, due
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state.heartbeat import beats, forget, lost_runs
from nami_amp_pipeline.state.integration_history import removed_since
from nami_amp_pipeline.state.listed import everything
from nami_amp_pipeline.state.store import Store

_PAIRS: Final = "pairs:"
"""Begins the cursor of this version, so that an older one, which may come back, does not take it for its own."""

LOST: Final = "The process of this run is gone; it was killed, or its machine failed. The next run goes on."

LOST_SECONDS: Final = 10
"""At least so often it looks for lost runs, so that a shard is taken over within a lease and half a minute."""

_PROCESS: Final = "Started process for run"
"""What Dagster logs when a process takes a run."""

_FEW: Final = 20
"""A run that has not begun has fewer events."""

BEGINNING_SECONDS: Final = 60
"""At least so long a run may take from its process to its first sign of life: a slow machine loads code meanwhile."""

_PARTITIONS: Final = (
    "Adds a partition for each new app and integration, and removes partitions whose last integration was removed. "
    "Partitions that another code location added to the same Dagster are left alone. Starts no run."
)

_EARLY: Final = (
    "Starts an extra micro-batch when work has waited longer than `NAMI_AMP_EARLY_TICK_SECONDS`, unless one is "
    "queued or running, and not in quiet hours. "
    "It does not start another for work on which the last extra one made no progress."
)

_LOST: Final = (
    "Marks runs as failed whose process is gone: killed, or on a machine that failed. Otherwise they would show as "
    "started, and block other runs, until Dagster's run monitoring times them out. Starts no run."
)


def _compare_partitions(
    context: dg.SensorEvaluationContext, pipeline: PipelineSession, place: Place
) -> dg.SensorResult | dg.SkipReason:
    """Compares the partitions with the integrations of the store."""
    try:
        if place == DEFAULT:
            _tell_of_two_histories(context, pipeline)
        label = store_label(pipeline.settings)
        of, _, number = (context.cursor or "").removeprefix(_PAIRS).partition(":")
        seen = int(number) if of == label else 0  # the number of another store means nothing
        store = pipeline.store_if_any()
        integrations = everything(store) if store is not None else []
        removed, last = removed_since(store, seen, MOST_CHANGES) if store is not None else ([], seen)
    except NamiAmpError as error:
        return dg.SkipReason(str(error))
    missing = missing_partitions(context.instance, integrations, place)
    # Looked at once: where another code location still has such a key, its sensor adds it again, and that is that.
    orphaned = orphaned_partitions(context.instance, integrations, removed, place)
    if place == DEFAULT and not (context.cursor or "").startswith(
        _PAIRS
    ):  # once: a code location of an older version may still add them
        orphaned |= left_behind(context.instance, integrations, removed)
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = [
        *(dg.AddDynamicPartitionsRequest(name, keys) for name, keys in missing.items()),
        *(dg.DeleteDynamicPartitionsRequest(name, keys) for name, keys in orphaned.items()),
    ]
    said = None if requests else f"the partitions match the {len(integrations)} integrations"
    cursor = f"{_PAIRS}{label}:{last}"
    if said and (cursor == context.cursor or store is None):
        return dg.SkipReason(said)
    return dg.SensorResult(skip_reason=said, dynamic_partitions_requests=requests, cursor=cursor)


_told: set[str] = set()


def _tell_of_two_histories(context: dg.SensorEvaluationContext, pipeline: PipelineSession) -> None:
    """Warns once in the life of this process, on its console too, where a person started Dagster by hand."""
    warning = two_histories(context.instance, pipeline.settings)
    beginning = (warning or "").partition(" (last")[0]
    if warning is not None and beginning not in _told:
        _told.add(beginning)
        context.log.warning(warning)


def _look_for_late_work(
    context: dg.SensorEvaluationContext, pipeline: PipelineSession, place: Place
) -> dg.SensorResult | dg.SkipReason:
    """Looks for the oldest work."""
    try:
        limit = pipeline.settings.early_tick_seconds
        if not limit:
            return dg.SkipReason("switched off: NAMI_AMP_EARLY_TICK_SECONDS is 0")
        why = quiet(pipeline.settings)
        if why:
            return dg.SkipReason(why)
        asked, why_not = requests(context.instance, pipeline.settings, place.name(MICRO_BATCH))
        if not asked:
            return dg.SkipReason(why_not)
        if pipeline.store_if_any() is None:
            return dg.SkipReason("there is no state store yet")
        opened = pipeline.open()
        late = [work for work in due(opened) if opened.now() - work.since > limit * 1_000_000]
    except NamiAmpError as error:
        return dg.SkipReason(str(error))
    if not late:
        return dg.SkipReason(f"nothing has waited for {limit} s")
    tried = set((context.cursor or "").split())
    if not {_mark(work) for work in late} - tried:
        return dg.SkipReason(f"the last early run made no progress on {late[0].what}; leaving it to the schedule")
    oldest = min(late, key=lambda work: work.since)
    asked, why_not = requests(
        context.instance,
        pipeline.settings,
        place.name(MICRO_BATCH),
        lambda shard: shard is None or any(shard.has(work.app_id) for work in late),
    )
    if not asked:
        return dg.SkipReason(why_not)
    context.log.info("%s have waited for %s s", oldest.what, (opened.now() - oldest.since) // 1_000_000)
    return dg.SensorResult(run_requests=asked, cursor=" ".join(sorted(map(_mark, late))))


def _look_for_lost_runs(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
) -> dg.SkipReason:
    """Looks for runs that have not been heard of for as long as a lease holds."""
    try:
        store = pipeline.store_if_any()
        if store is None:
            return dg.SkipReason("no run is lost")
        lost = lost_runs(store)
        unheard = list(_never_heard_of(context.instance, store, pipeline.settings))
        if not lost and not unheard:
            return dg.SkipReason("no run is lost")
        alive = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        runs = [*context.instance.get_runs(dg.RunsFilter(run_ids=lost, statuses=alive)), *unheard] if lost else unheard
        for run in runs:
            if run.status is dg.DagsterRunStatus.CANCELING:
                context.instance.report_run_canceled(run, LOST)
            else:
                context.instance.report_run_failed(run, LOST)
        forget(store, lost)
    except NamiAmpError as error:
        return dg.SkipReason(str(error))
    return dg.SkipReason(f"ended: {', '.join(run.run_id for run in runs) or 'none, they had ended by themselves'}")


def _never_heard_of(instance: dg.DagsterInstance, store: Store, settings: Settings) -> Iterator[dg.DagsterRun]:
    """The runs that a process began to carry out, which was gone before its first sign of life.

    Celery has given such a run away, and calls it alive. Runs that still wait for a worker do not count.
    """
    began = datetime.now(UTC) - timedelta(seconds=max(settings.lease_seconds, BEGINNING_SECONDS))
    alive = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    filters = dg.RunsFilter(statuses=alive, tags={STORE_TAG: store_label(settings)}, updated_before=began)
    found = instance.get_runs(filters)
    if not found:
        return
    with store.begin() as tx:
        heard = {beat.run_id for beat in beats(tx, micros(store.clock))}
    for run in found:
        if run.run_id in heard:
            continue
        events = [
            record.event_log_entry
            for record in instance.get_records_for_run(run.run_id, limit=_FEW, ascending=False).records
        ]
        if not events or events[0].timestamp > began.timestamp():
            continue
        # Dagster logs that a run has started, and then sets its status: a process may die in between.
        if run.status is not dg.DagsterRunStatus.STARTING or any(_PROCESS in event.message for event in events):
            yield run


def _mark(work: DueWork) -> str:
    """Short for what waits, since when and how much: a thousand of them must fit into a cursor."""
    return f"{zlib.crc32(f'{work.what}|{work.since // 1_000_000}|{work.events}'.encode()):08x}"


def build_sensors(place: Place = DEFAULT) -> tuple[dg.SensorDefinition, dg.SensorDefinition, dg.SensorDefinition]:
    """The three sensors: ``integration_partitions``, ``early_micro_batch`` and ``lost_runs``."""

    def integration_partitions(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.SensorResult | dg.SkipReason:
        return _compare_partitions(context, pipeline, place)

    def early_micro_batch(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.SensorResult | dg.SkipReason:
        return _look_for_late_work(context, pipeline, place)

    def decorated(
        name: str, description: str, job: str | None = None, seconds: int = 3_600
    ) -> Callable[..., dg.SensorDefinition]:
        return dg.sensor(
            name=place.name(name),
            job_name=job,
            minimum_interval_seconds=min(seconds, sensor_seconds(place)),
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=description,
        )

    return (
        decorated("integration_partitions", _PARTITIONS)(place.owned(integration_partitions)),
        decorated("early_micro_batch", _EARLY, place.name(MICRO_BATCH))(place.owned(early_micro_batch)),
        decorated("lost_runs", _LOST, seconds=LOST_SECONDS)(place.owned(_look_for_lost_runs)),
    )


integration_partitions, early_micro_batch, lost_runs_sensor = build_sensors()
