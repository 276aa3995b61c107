"""The jobs ``backfill`` and ``identify``, with their progress in the log of the run, and what resumes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, create_model

from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.backfill.plan import Plan
from nami_amp_pipeline.clock import to_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.dagster_support.shutdown import Stop, graceful
from nami_amp_pipeline.defs.asset_pages.metadata import WHAT
from nami_amp_pipeline.defs.failures import in_one_line
from nami_amp_pipeline.defs.jobs import LogLevel
from nami_amp_pipeline.defs.ours import (
    BACKFILL_TAG,
    DEFAULT,
    JOB_TAG,
    STORE_TAG,
    UNDER_WAY,
    Place,
    loaded_settings,
    store_label,
)
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import BackfillStatus, unattended
from nami_amp_pipeline.operations.backfills import SAYS, NewBackfill, NewIdentify, Progress
from nami_amp_pipeline.operations.times import parse_time
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state.backfills import Backfill, Kind

WINDOW_FIELDS: Final[dict[str, Any]] = {
    "from": (str, Field(default="", description="The first instant of the window, such as 2026-09-01T00:00:00Z.")),
    "to": (str, Field(default="", description="The first instant after the window.")),
    "by": (
        Literal["created_date", "ingested_at"],
        Field(default="created_date", description="Which time of a row counts."),
    ),
    "events": (
        list[str],
        Field(default_factory=list, description="Only these event types or prefixes. Empty: those of the integration."),
    ),
    "resend": (bool, Field(default=False, description="Also send events that Amplitude would store a second time.")),
    "dry_run": (bool, Field(default=False, description="Only count what would be sent.")),
}
"""What says what a backfill sends; an asset and the job share it."""

BY: Final = "Dagster"
"""In whose name runs make backfills."""

_PLAIN: Final = ConfigDict(hide_input_in_errors=True)

AskedWindow: type[BaseModel] = create_model("AskedWindow", __config__=_PLAIN, **WINDOW_FIELDS)

BackfillConfig: type[BaseModel] = create_model(
    "BackfillConfig",
    __config__=_PLAIN,
    integration=(str, Field(default="", description="<app_id>/<name>.")),
    **WINDOW_FIELDS,
    number=(int, Field(default=0, description="Of a backfill that exists: a saved plan, or one to resume.")),
)


IdentifyConfig: type[BaseModel] = create_model(
    "IdentifyConfig",
    __config__=_PLAIN,
    integration=(str, Field(default="", description="<app_id>/<name>.")),
    silent_since=(
        str,
        Field(default="", description="Only users to whom no event was delivered since then. Empty: all users."),
    ),
    dry_run=(bool, Field(default=False, description="Only count who would be sent what.")),
    number=(int, Field(default=0, description="Of an identify that exists: a saved plan, or one to resume.")),
)


class BackfillJobConfig(BaseModel):
    """What the jobs are given beside that."""

    model_config = _PLAIN

    console_log_level: LogLevel = Field(default="INFO", description="How much of the log goes to the console as well.")


def asked(integration: str, config: dict[str, Any]) -> NewBackfill:
    """The backfill that a run config asks for.

    Raises:
        Misconfigured: it names no window, or a time in it is none.
    """
    if not integration or not config["from"] or not config["to"]:
        raise Misconfigured("give the integration (<app_id>/<name>) and the window (from, to) in the run config")
    window = Window(parse_time(config["from"], "from"), parse_time(config["to"], "to"), config["by"])
    return NewBackfill(integration, window, config["events"] or None, config["resend"])


def asked_users(config: dict[str, Any]) -> NewIdentify:
    """The identify that a run config asks for.

    Raises:
        Misconfigured: it names no integration, or its time is none.
    """
    if not config["integration"]:
        raise Misconfigured("give the integration (<app_id>/<name>) in the run config")
    since = parse_time(config["silent_since"], "silent_since") if config["silent_since"] else None
    return NewIdentify(config["integration"], since)


def work_on(
    log: dg.DagsterLogManager, opened: Context, pipeline: PipelineSession, number: int, stop: Stop
) -> BackfillStatus:
    """Works on a backfill or an identify with its progress in a log."""

    def tell(progress: Progress) -> None:
        log.info("%s", progress)
        if pipeline.progress is not None:
            pipeline.progress(progress)

    pipeline.backfill = number
    return backfills.run(opened, number, progress=tell, stop=stop)


def send(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    opened: Context,
    pipeline: PipelineSession,
    new: NewBackfill | NewIdentify,
    config: dict[str, Any],
    stop: Stop,
) -> tuple[dict[str, Any], str | None]:
    """Makes a backfill or an identify, or its dry run; returns metadata, and why not all of its work is done, if so."""
    if config["dry_run"]:
        return plan_facts(*backfills.dry_run(opened, new, by=BY)), None
    return go_on(context, opened, pipeline, backfills.create(opened, new, by=BY).id, stop)


def go_on(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    opened: Context,
    pipeline: PipelineSession,
    number: int,
    stop: Stop,
) -> tuple[dict[str, Any], str | None]:
    """Works on a backfill or an identify; returns the same as :func:`send`."""
    status = work_on(context.log, opened, pipeline, number, stop)
    if stop() and status.backfill.state == "running" and _is_terminated(context):
        status = backfills.pause(opened, number)
    return facts_of(status), None if stop() else unfinished(status)


def facts_of(status: BackfillStatus) -> dict[str, Any]:
    """The numbers of a backfill or an identify as metadata."""
    backfill, kind = status.backfill, KINDS[status.backfill.kind]
    facts: dict[str, Any] = {
        WHAT: backfill.called,
        **_what_of(backfill),
        "state": backfill.state,
        kind.unit: backfill.events or 0,
        "delivered": status.delivered,
        "skipped": sum(status.skipped.values()),
        "dead_letters": sum(status.dead_letters.values()),
        "pending": status.pending,
        "found": dg.MetadataValue.table(
            [
                dg.TableRecord({"found": name, kind.unit: events, "meaning": kind.classes.get(name, "")})
                for name, events in sorted(status.found.items())
            ],
            dg.TableSchema([dg.TableColumn("found"), dg.TableColumn(kind.unit, "int"), dg.TableColumn("meaning")]),
        ),
    }
    if backfill.started_at is not None:
        facts["started"] = dg.MetadataValue.timestamp(to_datetime(backfill.started_at))
    if backfill.error:
        facts["error"] = backfill.error
    return facts


def _what_of(backfill: Backfill) -> dict[str, Any]:
    if backfill.kind == "identify":
        return {"of": f"silent since {to_text(backfill.since)}" if backfill.since else "all users", "says": SAYS}
    return {"window": f"{to_text(backfill.since)} to {to_text(backfill.until)} by {backfill.by}"}


def plan_facts(backfill: Backfill, plan: Plan) -> dict[str, Any]:
    """The counts of a dry run as metadata."""
    return {
        WHAT: f"plan {backfill.id}: nothing was sent",
        "run_it_with": backfills.plan_command(backfill),
        "events": plan.events,
        "users": plan.users,
        "requests": plan.requests,
        "bytes": plan.bytes,
        "seconds": plan.seconds,
        "would_be_stored_twice": plan.stored_twice,
        "by_type": dg.MetadataValue.json(dict(sorted(plan.by_type.items()))),
        "found": dg.MetadataValue.json(dict(plan.found)),
        "preview": dg.MetadataValue.json(plan.preview),
    }


def unfinished(status: BackfillStatus) -> str | None:
    """Why a backfill or an identify has not done all of its work, in a line; None if it has."""
    backfill = status.backfill
    if backfill.state == "done":
        return None
    return f"{backfill.integration}: {backfill.called} is {backfill.state}" + (
        f": {backfill.error}" if backfill.error else f", with {status.pending:,} events pending"
    )


def send_window(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """Sends the events of a window again, or goes on with a backfill."""
    config = BackfillConfig(**context.op_config).model_dump()
    _do(context, pipeline, config, lambda: asked(config["integration"], config))


def send_snapshots(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
    """Sends the current snapshots of users, or goes on with an identify."""
    config = IdentifyConfig(**context.op_config).model_dump()
    _do(context, pipeline, config, lambda: asked_users(config))


def _do(
    context: dg.OpExecutionContext,
    pipeline: PipelineSession,
    config: dict[str, Any],
    new: Callable[[], NewBackfill | NewIdentify],
) -> None:
    with in_one_line(pipeline), graceful() as stop:
        opened = pipeline.open(context.log)
        if config["number"] and config["dry_run"]:
            made = backfills.plan_asked(opened, config["number"])
            facts, why = {} if made.plan is None else plan_facts(made, Plan.from_json(made.plan)), None
        elif config["number"]:
            facts, why = go_on(context, opened, pipeline, config["number"], stop)
        else:
            facts, why = send(context, opened, pipeline, new(), config, stop)
        context.add_output_metadata(facts)
        if why is not None:
            raise NamiAmpError(why)


def _is_terminated(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> bool:
    """Whether a person pressed *Terminate*; a process that ends for another reason is replaced by the sensor."""
    run = context.instance.get_run_by_id(context.run.run_id)
    return run is not None and run.status is dg.DagsterRunStatus.CANCELING


@dataclass(frozen=True)
class _Job:
    """What differs between the job of backfills and that of identifies."""

    step: Callable[..., None]
    config: type[BaseModel]
    does: str
    description: str
    plural: str


_JOBS: Final[dict[Kind, _Job]] = {
    "backfill": _Job(
        send_window,
        BackfillConfig,
        "Sends the events of a window again, or goes on with a backfill.",
        "Sends the events of a window of time again, from the warehouse. Live delivery goes first, and no newer "
        "profile is overwritten. What Amplitude would store a second time is left out unless `resend` is set. "
        "*Terminate* pauses it; the sensor `unattended_backfills` resumes a run that was killed. `nami-amp backfill` "
        "does the same.",
        "backfills",
    ),
    "identify": _Job(
        send_snapshots,
        IdentifyConfig,
        "Sends the current snapshots of users, or goes on with an identify.",
        f"Gives Amplitude the current snapshot of users, one `$identify` event each. {SAYS} Live delivery goes first, "
        "and users with pending events are left to those. *Terminate* pauses it; the sensor `unattended_identifies` "
        "resumes a run that was killed. `nami-amp identify` does the same.",
        "identifies",
    ),
}


def build_job(kind: Kind, place: Place = DEFAULT) -> dg.JobDefinition:
    """The job of a kind: one step, as each backfill and each identify has one process."""
    of = _JOBS[kind]
    decorate: Callable[..., dg.OpDefinition] = dg.op(
        name=place.name(of.step.__name__),
        description=of.does,
        out=dg.Out(dg.Nothing),
        config_schema=plain_fields(of.config),
    )
    step = decorate(place.owned(of.step))

    @dg.config_mapping(config_schema={**plain_fields(of.config), **plain_fields(BackfillJobConfig)})
    def for_the_op(given: dict[str, Any]) -> dict[str, Any]:
        level = given.pop("console_log_level")
        return {
            "ops": {step.name: {"config": given}},
            "loggers": {"console": {"config": {"log_level": level}}},
        }

    @dg.job(
        name=place.name(kind),
        config=for_the_op,
        executor_def=dg.in_process_executor,
        tags={JOB_TAG: place.name(kind), STORE_TAG: store_label(loaded_settings(place))},
        description=of.description,
    )
    def job() -> None:
        step()

    return job


def build_unattended(kind: Kind, place: Place = DEFAULT) -> dg.SensorDefinition:
    """The sensor that goes on with those of a kind that are running although nobody works on them."""
    plural = _JOBS[kind].plural

    def look(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            if pipeline.store_if_any() is None:
                return dg.SkipReason("there is no state store yet")
            found = [entry for entry in unattended(pipeline.open()) if entry.kind == kind]
        except NamiAmpError as error:
            return dg.SkipReason(str(error))
        requests = []
        for entry in found:
            tags = {BACKFILL_TAG: str(entry.id)}
            mine = {**tags, STORE_TAG: store_label(pipeline.settings)}
            if context.instance.get_run_records(dg.RunsFilter(tags=mine, statuses=UNDER_WAY), limit=1):
                continue
            config = {"number": entry.id, "dry_run": entry.state == "planned"}
            requests.append(dg.RunRequest(run_config=config, tags=tags))
        return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason(f"no {kind} is unattended")

    decorate: Callable[..., dg.SensorDefinition] = dg.sensor(
        job_name=place.name(kind),
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        name=place.name(f"unattended_{plural}"),
        description=(
            f"Starts what people asked for in the Control Center, and goes on with {plural} whose process is "
            "gone. Those that a person paused, or that failed, are left alone."
        ),
    )
    return decorate(place.owned(look))


backfill = build_job("backfill")
identify = build_job("identify")
JOBS: Final[dict[Kind, dg.JobDefinition]] = {"backfill": backfill, "identify": identify}
unattended_backfills = build_unattended("backfill")
unattended_identifies = build_unattended("identify")
