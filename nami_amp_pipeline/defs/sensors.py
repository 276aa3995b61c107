"""Partitions in step with the integrations, micro-batches before their time, and runs that were lost."""

import zlib
from typing import Final

import dagster as dg

from nami_amp_pipeline.defs.ours import MICRO_BATCH, store_label
from nami_amp_pipeline.defs.partitions import MOST_CHANGES, left_behind, missing_partitions, orphaned_partitions
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import SENSOR_SECONDS, quiet, run_under_way
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.backlog import DueWork, due
from nami_amp_pipeline.state.heartbeat import forget, lost_runs
from nami_amp_pipeline.state.integration_history import removed_since
from nami_amp_pipeline.state.integrations import all_integrations

_PAIRS: Final = "pairs:"
"""Begins the cursor of this version, so that an older one, which may come back, does not take it for its own."""

LOST: Final = "The process of this run is gone; it was killed, or its machine failed. The next run goes on."


@dg.sensor(
    minimum_interval_seconds=SENSOR_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Adds a partition for each new app and integration, and removes partitions whose last integration was removed. "
        "Partitions that another code location added to the same Dagster are left alone. Starts no run."
    ),
)
def integration_partitions(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
) -> dg.SensorResult | dg.SkipReason:
    """Compares the partitions with the integrations of the store."""
    try:
        label = store_label(pipeline.settings)
        of, _, number = (context.cursor or "").removeprefix(_PAIRS).partition(":")
        seen = int(number) if of == label else 0  # the number of another store means nothing
        store = pipeline.store_if_any()
        integrations = all_integrations(store) if store is not None else []
        removed, last = removed_since(store, seen, MOST_CHANGES) if store is not None else ([], seen)
    except NamiAmpError as error:
        return dg.SkipReason(str(error))
    missing = missing_partitions(context.instance, integrations)
    # Looked at once: where another code location still has such a key, its sensor adds it again, and that is that.
    orphaned = orphaned_partitions(context.instance, integrations, removed)
    if not (context.cursor or "").startswith(_PAIRS):  # once: a code location of an older version may still add them
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


@dg.sensor(
    job_name=MICRO_BATCH,
    minimum_interval_seconds=SENSOR_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Starts an extra micro-batch when work has waited longer than `NAMI_AMP_EARLY_TICK_SECONDS`, unless one is "
        "queued or running, and not in quiet hours. "
        "It does not start another for work on which the last extra one made no progress."
    ),
)
def early_micro_batch(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
) -> dg.SensorResult | dg.SkipReason:
    """Looks for the oldest work."""
    try:
        limit = pipeline.settings.early_tick_seconds
        if not limit:
            return dg.SkipReason("switched off: NAMI_AMP_EARLY_TICK_SECONDS is 0")
        why = quiet(pipeline.settings)
        if why:
            return dg.SkipReason(why)
        run_id = run_under_way(context.instance, pipeline.settings)
        if run_id:
            return dg.SkipReason(f"run {run_id} is still queued or running")
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
    context.log.info("%s have waited for %s s", oldest.what, (opened.now() - oldest.since) // 1_000_000)
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=" ".join(sorted(map(_mark, late))))


@dg.sensor(
    minimum_interval_seconds=SENSOR_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    name="lost_runs",
    description=(
        "Marks runs as failed whose process is gone: killed, or on a machine that failed. Otherwise they would show as "
        "started, and block other runs, until Dagster's run monitoring times them out. Starts no run."
    ),
)
def lost_runs_sensor(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.SkipReason:
    """Looks for runs that have not been heard of for as long as a lease holds."""
    try:
        store = pipeline.store_if_any()
        lost = lost_runs(store) if store is not None else []
        if store is None or not lost:
            return dg.SkipReason("no run is lost")
        alive = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        runs = context.instance.get_runs(dg.RunsFilter(run_ids=lost, statuses=alive))
        for run in runs:
            if run.status is dg.DagsterRunStatus.CANCELING:
                context.instance.report_run_canceled(run, LOST)
            else:
                context.instance.report_run_failed(run, LOST)
        forget(store, lost)
    except NamiAmpError as error:
        return dg.SkipReason(str(error))
    return dg.SkipReason(f"ended: {', '.join(run.run_id for run in runs) or 'none, they had ended by themselves'}")


def _mark(work: DueWork) -> str:
    """Short for what waits, since when and how much: a thousand of them must fit into a cursor."""
    return f"{zlib.crc32(f'{work.what}|{work.since // 1_000_000}|{work.events}'.encode()):08x}"
