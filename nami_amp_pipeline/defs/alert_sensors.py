"""Alerts: two sensors that look at what is wrong and at runs that failed, and leave the telling to the library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import dagster as dg

from nami_amp_pipeline import redaction
from nami_amp_pipeline.alerts import Alert, FailedRun, Kind, note_failed_run, tell, watch
from nami_amp_pipeline.alerts.message import log_line
from nami_amp_pipeline.clock import micros, system_clock, to_datetime
from nami_amp_pipeline.defs.ours import OURS, STORE_TAG, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import SENSOR_SECONDS
from nami_amp_pipeline.errors import NamiAmpError, StoreUnavailable

LOG: Final = redaction.guarded_logger("nami_amp_pipeline.alerts")
"""Goes to the console of the code server, whatever Dagster does with a sensor's own log."""

_RECENT: Final = 100


@dg.sensor(
    minimum_interval_seconds=SENSOR_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Sends one alert, and one all-clear, for each halted integration, growing dead letters, lag, silent app or "
        "failed run: to NAMI_AMP_ALERT_WEBHOOK_URL and to the log. Starts no run."
    ),
)
def alerts(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.SensorResult:
    """Looks at everything."""
    cursor = context.cursor or None  # something only while the store is away

    def succeeded_since(jobs: Mapping[str, int]) -> set[str]:
        label = store_label(pipeline.settings)
        return {job for job, failed_at in jobs.items() if _succeeded(context.instance, job, failed_at, label)}

    try:
        store = pipeline.store_if_any()
        if store is None:
            return dg.SensorResult(skip_reason="there is no state store yet")
        opened = pipeline.open()
        if cursor and (
            not json.loads(cursor)["told"] or tell(pipeline.settings, LOG, _store_unavailable(""), over=True)
        ):
            cursor = ""
        done = watch(opened, LOG, succeeded_since=succeeded_since)
    except StoreUnavailable as error:
        return _told_without_a_store(cursor, pipeline, error)
    except NamiAmpError as error:
        return dg.SensorResult(skip_reason=str(error), cursor=cursor)
    lasting = ", ".join(f"{alert.kind.called.lower()}: {alert.subject}" for alert in done.open[:10])
    more = f" and {len(done.open) - 10} more" if len(done.open) > 10 else ""
    said = f"{len(done.open)} open: {lasting}{more}" if done.open else "nothing is wrong"
    return dg.SensorResult(skip_reason=f"{said}; {done.trouble}" if done.trouble else said, cursor=cursor)


def _succeeded(instance: dg.DagsterInstance, job: str, failed_at: int, label: str) -> bool:
    filters = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=to_datetime(failed_at))
    return any(
        (record.end_time or 0) * 1e6 > failed_at
        and OURS.has(record.dagster_run)
        # Of another store than ours is only what says so: a run that a person launched has no such tag.
        and record.dagster_run.tags.get(STORE_TAG, label) == label
        for record in instance.get_run_records(filters, limit=_RECENT)
    )


def _store_unavailable(reason: str) -> Alert:
    return Alert(Kind.STORE_UNAVAILABLE, "state store", reason, "/overview/runs")


def _told_without_a_store(cursor: str | None, pipeline: PipelineSession, error: StoreUnavailable) -> dg.SensorResult:
    """That the store is away cannot stand in the store: the sensor's cursor remembers whether it was told."""
    state = json.loads(cursor) if cursor else {"since": micros(system_clock), "told": False}
    # Not at the first look: a database that restarts is no alert.
    if cursor and not state["told"]:
        state["told"] = tell(pipeline.settings, LOG, _store_unavailable(str(error)))
    return dg.SensorResult(skip_reason=str(error), cursor=json.dumps(state))


@dg.run_failure_sensor(
    minimum_interval_seconds=SENSOR_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Records each failed run of this pipeline; the sensor `alerts` sends the alert. A job that keeps failing for "
        "the same reason sends one alert."
    ),
)
def failed_runs(context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.SkipReason:
    """Notes the run."""
    run = context.dagster_run
    if not OURS.has(run):
        return dg.SkipReason("not a run of this pipeline")
    record = context.instance.get_run_record_by_id(run.run_id)
    failed_at = int((record.end_time or 0) * 1e6) if record is not None else 0
    failed = FailedRun(run.job_name, run.run_id, failed_at, [_clean(line) for line in _problems(context)])
    try:
        new = note_failed_run(pipeline.open().store, failed)
    except NamiAmpError as error:
        LOG.warning("run %s failed, which cannot be noted: %s", run.run_id, error)
        return dg.SkipReason(str(error))
    if new is not None:
        LOG.warning("%s", log_line(new, pipeline.settings.dagster_url))
    return dg.SkipReason("noted" if new is not None else "known")


def _problems(context: dg.RunFailureSensorContext) -> list[str]:
    """A line for each reason, as the run's log has them."""
    lines: list[str] = []
    for event in context.get_step_failure_events():
        data = event.step_failure_data
        user = data.user_failure_data
        if user is not None and "problems" in user.metadata:
            text = str(user.metadata["problems"].value)
            lines += [line.removeprefix("- ") for line in text.splitlines()]
        elif user is not None and user.description:
            lines.append(f"{event.step_key}: {user.description.splitlines()[0]}")
        elif data.error is not None:
            last = data.error.cause or data.error
            lines.append(f"{event.step_key}: {last.message.strip().splitlines()[0]}")
    return lines or [(context.failure_event.message or "it ended without a word").splitlines()[0]]


def _clean(line: str) -> str:
    return redaction.clean(line)[:300]
