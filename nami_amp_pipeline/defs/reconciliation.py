"""The asset ``amplitude_reconciliation``: what Amplitude holds of what was delivered; its job, schedule and check."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, cast

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from nami_amp_pipeline.clock import from_datetime, to_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.dagster_support.one_line_failure import OneLineFailure
from nami_amp_pipeline.dagster_support.plain_config import plain_fields
from nami_amp_pipeline.dagster_support.shutdown import prompt
from nami_amp_pipeline.defs.asset_pages.standing_page import DELIVERIES
from nami_amp_pipeline.defs.failures import ending, in_one_line
from nami_amp_pipeline.defs.ours import (
    DEFAULT,
    JOB_TAG,
    RECONCILE,
    RECONCILIATION,
    STORE_TAG,
    Place,
    loaded_settings,
    store_label,
)
from nami_amp_pipeline.defs.partitions import integrations_of
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.defs.schedules import run_under_way
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError
from nami_amp_pipeline.operations.reconciliation import (
    Day,
    ReconciledDay,
    Reconciliation,
    due_days,
    fail_asked,
    reconcilable,
    reconciled,
)
from nami_amp_pipeline.state.integrations import Integration, all_integrations

SCHEDULE: Final = "reconcile_daily"
CRON: Final = "23 4 * * *"
"""All hours of the day before have been over for more than three hours then."""

CHECK: Final = "amplitude_holds_all"

CHECKED_DAYS: Final = 7
SHOWN_DAYS: Final = 30
SHOWN_SAMPLES: Final = 20


class ReconcileConfig(BaseModel):
    """Which days to compare, and whose."""

    model_config = ConfigDict(hide_input_in_errors=True)

    first_day: str = Field(
        default="",
        description=(
            "The first day, in UTC, such as 2026-09-01. Empty: all days of the last week that were not compared whole "
            "yet, or in which something was missing."
        ),
    )
    last_day: str = Field(default="", description="The last day. Empty: that of first_day.")
    with_now: bool = Field(default=False, description="Also compare hours that closed less than 3 hours ago.")


def compare(
    context: Context, integration: Integration, config: ReconcileConfig
) -> Iterator[tuple[Day, dict[str, Any]]]:
    """Each day that was compared, with its metadata.

    Raises:
        Misconfigured: there is no secret key, or a day is none.
        Blocked: Amplitude gives no export.
    """
    work = Reconciliation(context, integration.key)
    days = _days(config) or due_days(context, integration)
    for day in days:
        for found in work.compare(day, day, now_too=config.with_now):
            yield found, metadata(context, integration, found)


def _days(config: ReconcileConfig) -> list[int]:
    if not config.first_day:
        return []
    try:
        first, last = (
            datetime.fromisoformat(f"{text.strip()}T00:00:00+00:00")
            for text in (config.first_day, config.last_day or config.first_day)
        )
    except ValueError:
        raise Misconfigured("first_day and last_day must be days such as 2026-09-01") from None
    return [from_datetime(first + timedelta(days=number)) for number in range((last - first).days + 1)]


def metadata(context: Context, integration: Integration, day: Day) -> dict[str, Any]:
    """What the page of a partition shows of a day. Dagster plots the numbers: delivered against held."""
    (recorded, *_) = [*reconciled(context, integration.key, first=day.day, last=day.day), None]
    facts: dict[str, Any] = {
        "result": day.in_a_line,
        "day": dg.MetadataValue.timestamp(to_datetime(day.day)),
        "delivered": day.delivered,
        "held": day.held,
        **{name: day.counts[name] for name in ("missing", "altered", "twice", "undelivered", "others")},
        "hours_compared": len(day.hours),
    }
    if day.early:
        facts["not_yet_exported"] = day.counts["not_yet_exported"]
    if not day.is_clean:
        facts["differences"] = _table([
            *({"class": name, "column": "", "events": day.counts[name]} for name in ("missing", "altered", "twice")),
            *({"class": "altered", "column": name, "events": number} for name, number in day.columns.most_common()),
        ])  # fmt: skip
        facts["what_to_do"] = dg.MetadataValue.md(_advice(integration, day))
    if recorded is not None and recorded.samples:
        facts["sent_and_held"] = _table([
            {"class": sample.kind, "event": sample.event_id, "column": sample.column or "",
             "field": sample.field or "", "sent": sample.sent or "", "held": sample.held or ""}
            for sample in recorded.samples[:SHOWN_SAMPLES]
        ])  # fmt: skip
    by_day = reconciled(context, integration.key, first=day.day - SHOWN_DAYS * 24 * 3_600_000_000)
    facts["by_day"] = _table(
        [
            {
                "day": each.date,
                "delivered": each.delivered,
                "held": each.held,
                **{name: each.classes.get(name, 0) for name in ("missing", "altered", "twice", "others")},
                "sent_again": each.repaired,
                "hours": each.hours,
            }
            for each in by_day
        ]
    )
    return facts


def _advice(integration: Integration, day: Day) -> str:
    advice = []
    if day.counts["missing"]:
        advice.append(f"`nami-amp reconcile {integration.key} --from {day.date} --repair` sends what is missing again.")
    if day.counts["altered"]:
        advice.append("Altered: look at Amplitude's schema and property limits for the columns above.")
    if day.counts["twice"]:
        advice.append("Held twice: Amplitude cannot remove one of two; tell who counts these events.")
    return " ".join(advice)


def _table(rows: Sequence[dict[str, Any]]) -> dg.TableMetadataValue:
    kinds = {int: "int", str: "string"}
    columns = [dg.TableColumn(name, kinds[type(value)]) for name, value in rows[0].items()] if rows else []
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], dg.TableSchema(columns))


def check_result(integrations: Sequence[Integration], context: Context) -> dg.AssetCheckResult:
    """Whether Amplitude held everything of the last days as it was sent, once; a warning until a day is complete."""
    since = context.now() - (CHECKED_DAYS + 1) * 24 * 3_600_000_000
    days = [day for each in integrations for day in reconciled(context, each.key, first=since)]
    bad = [day for day in days if not day.is_clean]
    without = [each.partition_key for each in integrations if each.secret_key is None and not days]
    severity = dg.AssetCheckSeverity.ERROR if any(map(_is_final, bad)) else dg.AssetCheckSeverity.WARN
    well = ", ".join(each.partition_key for each in integrations[:5])
    said = "\n".join(f"{day.integration.replace('/', '|')}: {day.said}" for day in bad)
    if without:
        said = said or f"{', '.join(without)}: without a secret key nothing was compared"
    return dg.AssetCheckResult(
        passed=not bad,
        check_name=CHECK,
        severity=severity,
        description=said or f"{well}: Amplitude holds everything of the days that were compared",
        metadata={
            "days": len(days),
            "delivered": sum(day.delivered for day in days),
            "held": sum(day.held for day in days),
        },
    )


def _is_final(day: ReconciledDay) -> bool:
    return day.complete_at is not None


def _work(
    context: dg.OpExecutionContext | dg.AssetExecutionContext,
    opened: Context,
    integrations: Sequence[Integration],
    config: ReconcileConfig,
    place: Place,
) -> dict[str, str]:
    """Compares, and logs each day and the check of each partition; returns what failed, by partition."""
    failures: dict[str, str] = {}
    key = place.key(RECONCILIATION)
    for integration in integrations:
        partition = integration.partition_key
        try:
            for day, facts in compare(opened, integration, config):
                context.log.info("%s: %s", partition, day.in_a_line)
                context.log_event(dg.AssetMaterialization(key, partition=partition, metadata=facts))
        except NamiAmpError as error:
            failures[partition] = f"{partition}: {error}"
            fail_asked(opened, integration, str(error))
        result = check_result([integration], opened)
        evaluation = dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=CHECK,
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            partition=partition,
        )
        context.log_event(cast("dg.AssetMaterialization", evaluation))  # it takes both
    return failures


def _fail(failures: Mapping[str, str]) -> None:
    """Fails the run for partitions that could not be compared; the others were."""
    if failures:
        lines = "\n".join(failures.values())
        raise OneLineFailure(f"Not everything was compared; what could be, was.\n{lines}", {})


class JobConfig(ReconcileConfig):
    """What a run of the job ``reconcile`` may be given."""

    integrations: list[str] = Field(
        default_factory=list, description="Only these, as <app_id>/<name>. Empty: all that have a secret key."
    )


def build_job(place: Place = DEFAULT) -> dg.JobDefinition:
    """The job: all integrations with a secret key, one after the other."""

    def compare_days(context: dg.OpExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> None:
        config = JobConfig(**context.op_config)
        with in_one_line(pipeline), prompt(**ending(context)):
            opened = pipeline.open(context.log)
            chosen = (
                all_integrations(opened.store, config.integrations) if config.integrations else reconcilable(opened)
            )
            failures = _work(context, opened, chosen, config, place)
        _fail(failures)

    decorate: Callable[..., dg.OpDefinition] = dg.op(
        name=place.name("compare_days"),
        description="Compares the days that are due, of all integrations with a secret key.",
        out=dg.Out(dg.Nothing),
        config_schema=plain_fields(JobConfig),
    )
    step = decorate(place.owned(compare_days))

    @dg.job(
        name=place.name(RECONCILE),
        executor_def=dg.in_process_executor,
        tags={JOB_TAG: place.name(RECONCILE), STORE_TAG: store_label(loaded_settings(place))},
        description=(
            "Compares what was delivered with what Amplitude holds, for all integrations with a secret key, and shows "
            f"it on the partitions of `{RECONCILIATION}`. It sends nothing: `nami-amp reconcile --repair` does."
        ),
    )
    def reconcile() -> None:
        step()

    return reconcile


def build_daily(place: Place, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The schedule of the job."""

    def reconcile_daily(
        context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.RunRequest | dg.SkipReason:
        store = pipeline.store_if_any()
        if store is None or not any(each.secret_key for each in all_integrations(store)):
            return dg.SkipReason(
                "no integration has a secret key: 'nami-amp integrations update APP/NAME --secret-key-env VAR'"
            )
        run_id = run_under_way(context.instance, loaded_settings(place), job.name)
        return dg.SkipReason(f"run {run_id} is still queued or running") if run_id else dg.RunRequest()

    decorate: Callable[..., dg.ScheduleDefinition] = dg.schedule(
        job=job,
        name=place.name(SCHEDULE),
        cron_schedule=CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Starts the job every day, if an integration has a secret key and no run is queued or under way.",
    )
    return decorate(place.owned(reconcile_daily))


def build_asset(place: Place = DEFAULT) -> dg.AssetsDefinition:
    """The asset."""

    def amplitude_reconciliation(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> Iterator[dg.MaterializeResult[None]]:
        config = ReconcileConfig(**context.op_execution_context.op_config)
        with in_one_line(pipeline):
            opened = pipeline.open(context.log)
            keys = set(map(str, context.partition_keys))
            chosen = [each for each in all_integrations(opened.store) if each.partition_key in keys]
            failures = _work(context, opened, chosen, config, place)
        _fail(failures)
        yield from ()

    options: dict[str, Any] = {
        "key": place.key(RECONCILIATION),
        "deps": [place.key(DELIVERIES)],
        "config_schema": plain_fields(ReconcileConfig),
        "partitions_def": integrations_of(place),
        "backfill_policy": dg.BackfillPolicy.single_run(),
        "output_required": False,
        "group_name": place.group,
        "owners": list(place.owners),
        "kinds": {"amplitude", "duckdb"},
        "tags": {"domain": "subscriptions", "grain": "day"},
        "code_version": "1",
        "description": _described(place),
    }
    with ignore_beta_warnings():  # backfill_policy
        decorate: Callable[..., dg.AssetsDefinition] = dg.asset(**options)
        return decorate(place.owned(amplitude_reconciliation))


def _described(place: Place) -> str:
    return f"""
**Kept up to date by the schedule `{place.name(SCHEDULE)}`, every day at 04:23 UTC**: it compares the days of the last
week that were not compared whole yet, of every integration with a secret key. Nothing needs to be materialized by hand.

What Amplitude holds of what was delivered, by day. **Partition:** `<app_id>|<integration>`.

- **Does Amplitude hold what was delivered?** `result`: "Amplitude holds 12,304 of 12,304". `delivered` and `held` are
  plotted by day; `differences` counts by class and column; `sent_and_held` has both values side by side.
- **Something is missing?** `nami-amp reconcile APP/NAME --from DAY --repair` sends it again, once. The check
  `{CHECK}` warns until a day is complete, and fails after.
- **Other days?** Materialize a partition with `first_day` and `last_day`, or use `nami-amp reconcile`.
- Events of other writers in the same project count as `others`, and are never an error.
- Running it again is always safe.
"""


def build_check(place: Place = DEFAULT) -> dg.AssetChecksDefinition:
    """The check of the asset."""

    def amplitude_holds_all(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.AssetCheckResult:
        opened = pipeline.open()
        keys = (
            {str(key) for key in context.partition_keys} if context.has_partition_key_range else {context.partition_key}
        )
        return check_result([each for each in all_integrations(opened.store) if each.partition_key in keys], opened)

    options: dict[str, Any] = {
        "asset": place.key(RECONCILIATION),
        "name": CHECK,
        "partitions_def": integrations_of(place),
        "description": (
            "Amplitude holds every event that was delivered in the compared days of the last week, as it was sent, and "
            "once. A warning until a day is complete, an error after."
        ),
    }
    with ignore_beta_warnings():  # checks by partition
        decorate: Callable[..., dg.AssetChecksDefinition] = dg.asset_check(**options)
        return decorate(place.owned(amplitude_holds_all))


reconcile = build_job()
reconcile_daily = build_daily(DEFAULT, reconcile)
amplitude_reconciliation = build_asset()
amplitude_holds_all = build_check()
