"""Alerts: two sensors that look at what is wrong and at runs that failed, and leave the telling to the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dagster as dg

from nami_amp_pipeline import redaction
from nami_amp_pipeline.alerts import Alert, FailedRun, Kind, note_failed_run, tell, watch
from nami_amp_pipeline.alerts.message import log_line
from nami_amp_pipeline.clock import micros, system_clock, to_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.defs.failures import KIND
from nami_amp_pipeline.defs.ours import DEFAULT, MICRO_BATCH, RETENTION, STORE_TAG, TRACE, Place, store_label
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import sensor_seconds
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError, StoreUnavailable, WarehouseUnavailable
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.standing import standings

LOG: Final = redaction.guarded_logger("nami_amp_pipeline.alerts")
"""Goes to the console of the code server, whatever Dagster does with a sensor's own log."""

_RECENT: Final = 100

_ALERTS: Final = (
    "Sends one alert, and one all-clear, for each halted integration, outage, growing dead letters, lag, "
    "silent app, failed run or warehouse that cannot be read: to `NAMI_AMP_ALERT_WEBHOOK_URL` and to the log. "
    "`nami-amp alerts` lists and silences them. Starts no run."
)

_FAILED_RUNS: Final = (
    "Records each failed run of this pipeline; the sensor `alerts` sends the alert. A job that keeps failing for "
    "the same reason sends one alert."
)


def _look(context: dg.SensorEvaluationContext, pipeline: PipelineSession, place: Place) -> dg.SensorResult:
    """Looks at everything."""
    cursor = context.cursor or None  # something only while the store is away

    def succeeded_since(jobs: Mapping[str, int]) -> set[str]:
        label = store_label(pipeline.settings)
        return {job for job, failed_at in jobs.items() if _succeeded(context.instance, job, failed_at, label, place)}

    try:
        store = pipeline.store_if_any()
        if store is None:
            return dg.SensorResult(skip_reason="there is no state store yet")
        opened = pipeline.open()
        if cursor and (
            not json.loads(cursor)["told"] or tell(pipeline.settings, LOG, _store_unavailable(""), over=True)
        ):
            cursor = ""
        done = watch(opened, LOG, succeeded_since=succeeded_since, link=place.link)
    except StoreUnavailable as error:
        return _told_without_a_store(cursor, pipeline, error)
    except NamiAmpError as error:
        return dg.SensorResult(skip_reason=str(error), cursor=cursor)
    lasting = ", ".join(f"{alert.kind.called.lower()}: {alert.subject}" for alert in done.open[:10])
    more = f" and {len(done.open) - 10} more" if len(done.open) > 10 else ""
    said = f"{len(done.open)} open: {lasting}{more}" if done.open else "nothing is wrong"
    return dg.SensorResult(skip_reason=f"{said}; {done.trouble}" if done.trouble else said, cursor=cursor)


def subject_of(run: dg.DagsterRun, place: Place = DEFAULT) -> str:
    """What a run was for, as people call it: its job with its selection, or its assets with their partitions."""
    tags = run.tags
    if run.job_name not in place.ours.jobs:
        assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ()))
        first, last = (tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
        partition = tags.get("dagster/partition") or (f"{first} to {last}" if first and first != last else first)
        return f"{assets or 'assets'} {partition or ''}".strip()
    chosen = selection_of(run)
    return f"{run.job_name} ({', '.join(chosen)})" if chosen else run.job_name


def selection_of(run: dg.DagsterRun) -> list[str]:
    """The integrations that a micro-batch was restricted to."""
    given = run.run_config.get("integrations")
    return sorted(map(str, given)) if isinstance(given, list) else []


def _succeeded(instance: dg.DagsterInstance, subject: str, failed_at: int, label: str, place: Place = DEFAULT) -> bool:
    """Whether a run succeeded since, for the same subject or for all: no other shows that the cause is gone."""
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], updated_after=to_datetime(failed_at))
    by_everything = {subject} if subject == place.name(RETENTION) else {subject, place.name(MICRO_BATCH)}
    return any(
        (record.end_time or 0) * 1e6 > failed_at
        and place.ours.has(record.dagster_run)
        and subject_of(record.dagster_run, place) in by_everything
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


def _note(context: dg.RunFailureSensorContext, pipeline: PipelineSession, place: Place) -> dg.SkipReason:
    """Notes the run."""
    run = context.dagster_run
    if not place.ours.has(run):
        return dg.SkipReason("not a run of this pipeline")
    if run.job_name == place.name(TRACE):
        return dg.SkipReason("the person who asked sees it")
    record = context.instance.get_run_record_by_id(run.run_id)
    failed_at = int((record.end_time or 0) * 1e6) if record is not None else 0
    if _is_a_typing_error(context):
        return dg.SkipReason("a person launched it with a selection that cannot be; the run says so")
    try:
        opened = pipeline.open()
        problems = _not_told_otherwise(opened, run.run_id, [_clean(line) for line in _problems(context)])
        if not problems:
            return dg.SkipReason("what it failed for has an alert of its own")
        new = note_failed_run(opened.store, FailedRun(subject_of(run, place), run.run_id, failed_at, problems))
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


def _is_a_typing_error(context: dg.RunFailureSensorContext) -> bool:
    """Whether a run that a person launched failed because it was told to do what cannot be done."""
    tags = context.dagster_run.tags
    if {"dagster/schedule_name", "dagster/sensor_name"} & set(tags) or not selection_of(context.dagster_run):
        return False
    failures = [event.step_failure_data.user_failure_data for event in context.get_step_failure_events()]
    kinds = {str(data.metadata[KIND].value) for data in failures if data is not None and KIND in data.metadata}
    return kinds == {Misconfigured.__name__}


def _not_told_otherwise(opened: Context, run_id: str, problems: Sequence[str]) -> list[str]:
    """Problems without those that alerts of their own tell: halted, unreachable, a warehouse that cannot be read."""
    told = {
        standing.integration.replace("/", "|")
        for standing in standings(opened)
        if standing.state in ("halted", "unreachable")
    }
    noted = MicroBatch(opened, None).noted(run_id)
    unread = {f"{asset}: {error}" for asset, _, error in noted if isinstance(error, WarehouseUnavailable)}
    unread = {_clean(line) for line in unread}
    return [line for line in problems if line.partition(": ")[0] not in told and line not in unread]


def _clean(line: str) -> str:
    return redaction.clean(line)[:300]


def build_alert_sensors(place: Place = DEFAULT) -> tuple[dg.SensorDefinition, dg.SensorDefinition]:
    """The sensors ``alerts`` and ``failed_runs``."""

    def alerts(context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.SensorResult:
        return _look(context, pipeline, place)

    def failed_runs(context: dg.RunFailureSensorContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.SkipReason:
        return _note(context, pipeline, place)

    shared: dict[str, Any] = {
        "minimum_interval_seconds": sensor_seconds(place),
        "default_status": dg.DefaultSensorStatus.RUNNING,
    }
    decorate: Callable[..., dg.SensorDefinition] = dg.sensor(name=place.name("alerts"), description=_ALERTS, **shared)
    decorate_failed: Callable[..., dg.SensorDefinition] = dg.run_failure_sensor(
        name=place.name("failed_runs"), description=_FAILED_RUNS, **shared
    )
    return decorate(place.owned(alerts)), decorate_failed(place.owned(failed_runs))


alerts, failed_runs = build_alert_sensors()
