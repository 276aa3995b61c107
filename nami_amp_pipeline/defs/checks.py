"""What must hold of a partition after a run; cheap enough to look at each time."""

from collections.abc import Iterator, Sequence, Set
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.defs.asset_pages import halted as halts
from nami_amp_pipeline.defs.asset_pages.halted import DELIVERIES
from nami_amp_pipeline.defs.partitions import app_integrations
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.micro_batch import MicroBatch
from nami_amp_pipeline.operations.status import WAITING, IntegrationStatus, status
from nami_amp_pipeline.state.integrations import Integration, all_integrations

LOGGED_PARTITIONS = 20
"""A run that moves more partitions than this logs only the checks that do not pass, or did not lately: each costs some
10 ms."""

_LATELY = 1_000


def is_conserved(now: IntegrationStatus) -> bool:
    """Whether every captured event is in exactly one place."""
    ended = now.delivered + sum(now.skipped.values()) + sum(now.dead_letters.values())
    return now.captured == ended + now.pending


def conservation_result(found: Sequence[IntegrationStatus]) -> dg.AssetCheckResult:
    """``captured = delivered + skipped + dead letters + pending`` of each of these."""
    broken = [one.integration for one in found if not is_conserved(one)]
    return dg.AssetCheckResult(
        passed=not broken,
        check_name="conservation",
        asset_key=DELIVERIES,
        description=f"the counts of {', '.join(broken)} do not add up: a bug, please report it" if broken else None,
        metadata={
            "captured": sum(one.captured for one in found),
            "delivered": sum(one.delivered for one in found),
            "skipped": sum(sum(one.skipped.values()) for one in found),
            "dead_letters": sum(sum(one.dead_letters.values()) for one in found),
            "pending": sum(one.pending for one in found),
        },
    )


def lag_result(found: Sequence[IntegrationStatus], tick_minutes: int) -> dg.AssetCheckResult:
    """Whether the oldest event of each of these that is still to be posted is at most three ticks old."""
    allowed = 3 * 60 * tick_minutes
    late = [one for one in found if one.state != "disabled" and one.lag_seconds > allowed]
    return dg.AssetCheckResult(
        passed=not late,
        check_name="lag",
        asset_key=DELIVERIES,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{one.integration}: {one.error or _still_to_post(one)}" for one in late) or None,
        metadata={
            "lag_seconds": max((round(one.lag_seconds, 3) for one in found), default=0.0),
            "allowed_seconds": allowed,
            "pending": sum(one.pending for one in found),
            "waiting_for_login": sum(one.waiting for one in found),
        },
    )


def _still_to_post(one: IntegrationStatus) -> str:
    return ", ".join(f"{events:,} {why.replace('_', ' ')}" for why, events in one.pending_by.items() if why != WAITING)


def not_halted_result(found: Sequence[IntegrationStatus]) -> dg.AssetCheckResult:
    """Whether each of these is at work, or at least waits for nobody."""
    halted = [one for one in found if one.is_halted]
    return dg.AssetCheckResult(
        passed=not halted,
        check_name="not_halted",
        asset_key=DELIVERIES,
        description="\n".join(map(halts.in_a_line, halted)) or None,
        metadata={
            **(halts.facts(halted[0]) if len(halted) == 1 else {}),
            "pending": sum(one.pending for one in found),
        },
    )


def evaluations(instance: dg.DagsterInstance, tick: MicroBatch, moved: Set[str]) -> Iterator[dg.AssetCheckEvaluation]:
    """The checks of each partition that a micro-batch moved, or that has an error.

    Those that do not pass come last: of all partitions, the asset's page shows the newest evaluation.
    """
    integrations = [one for one in tick.integrations() if one.partition_key in moved or tick.error_of(one)]
    results = [
        (one, result)
        for one, now in zip(integrations, status(tick.context, integrations), strict=True)
        for result in (
            conservation_result([now]),
            lag_result([now], tick.context.settings.tick_minutes),
            not_halted_result([now]),
        )
    ]
    lately = _failed_lately(instance) if len(integrations) > LOGGED_PARTITIONS else None
    for one, result in sorted(results, key=lambda pair: not pair[1].passed):
        if result.passed and lately is not None and (result.check_name, one.partition_key) not in lately:
            continue
        yield dg.AssetCheckEvaluation(
            asset_key=DELIVERIES,
            check_name=result.check_name or "",
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            partition=one.partition_key,
        )


def _failed_lately(instance: dg.DagsterInstance) -> set[tuple[str | None, str | None]]:
    """(check, partition) of evaluations that did not pass; what does not pass is evaluated again by each run."""
    return {
        (record.key.name, record.partition)
        for name in ("conservation", "lag", "not_halted")
        for record in instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(DELIVERIES, name), _LATELY, status={AssetCheckExecutionRecordStatus.FAILED}
        )
    }


def _found(context: dg.AssetCheckExecutionContext, pipeline: PipelineSession) -> list[IntegrationStatus]:
    opened = pipeline.open()
    keys = {str(key) for key in context.partition_keys} if context.has_partition_key_range else {context.partition_key}
    chosen: list[Integration] = [one for one in all_integrations(opened.store) if one.partition_key in keys]
    return status(opened, chosen)


def _checks() -> tuple[dg.AssetChecksDefinition, ...]:
    options: dict[str, Any] = {"asset": DELIVERIES, "partitions_def": app_integrations}

    @dg.asset_check(
        **options,
        description="Every captured event is delivered, skipped, a dead letter or pending, and counted once.",
    )
    def conservation(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.AssetCheckResult:
        return conservation_result(_found(context, pipeline))

    @dg.asset_check(
        **options,
        description="The oldest event that waits for delivery has been in the warehouse for three ticks at most.",
    )
    def lag(context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.AssetCheckResult:
        return lag_result(_found(context, pipeline), pipeline.settings.tick_minutes)

    @dg.asset_check(
        **options,
        description=(
            "The integration is not halted. One that is sends nothing until a person repairs it and enables it again; "
            "its events wait."
        ),
    )
    def not_halted(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.AssetCheckResult:
        return not_halted_result(_found(context, pipeline))

    return conservation, lag, not_halted


with ignore_beta_warnings():  # checks by partition
    asset_checks = _checks()
