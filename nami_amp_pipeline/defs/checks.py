"""What must hold of a partition after a run; cheap enough to look at each time."""

from collections.abc import Iterator, Sequence, Set
from typing import Any

import dagster as dg

from nami_amp_pipeline.defs.partitions import app_integrations
from nami_amp_pipeline.defs.resources import Pipeline
from nami_amp_pipeline.defs.tick import Tick
from nami_amp_pipeline.defs.unsettled import unsettled
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.status import IntegrationStatus, status

DELIVERIES = dg.AssetKey("amplitude_deliveries")

LOGGED_PARTITIONS = 50
"""A run that moves more partitions than this logs only the checks that do not pass: each costs some 10 ms."""


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
        description="; ".join(f"{one.integration}: {one.error or 'behind'}" for one in late) or None,
        metadata={
            "lag_seconds": max((round(one.lag_seconds, 3) for one in found), default=0.0),
            "allowed_seconds": allowed,
            "pending": sum(one.pending for one in found),
            "waiting_for_login": sum(one.waiting for one in found),
        },
    )


def evaluations(tick: Tick, moved: Set[str]) -> Iterator[dg.AssetCheckEvaluation]:
    """The checks of each partition that a micro-batch moved, or that has an error."""
    integrations = [
        one
        for one in tick.integrations()
        if one.partition_key in moved or getattr(tick.delivered.get(one.id), "error", None)
    ]
    for one, now in zip(integrations, status(tick.context, integrations), strict=True):
        for result in (conservation_result([now]), lag_result([now], tick.context.settings.tick_minutes)):
            if result.passed and len(integrations) > LOGGED_PARTITIONS:
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


def _found(context: dg.AssetCheckExecutionContext, pipeline: Pipeline) -> list[IntegrationStatus]:
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
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.AssetCheckResult:
        return conservation_result(_found(context, pipeline))

    @dg.asset_check(
        **options,
        description="The oldest event that waits for delivery has been in the warehouse for three ticks at most.",
    )
    def lag(context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[Pipeline]) -> dg.AssetCheckResult:
        return lag_result(_found(context, pipeline), pipeline.settings.tick_minutes)

    return conservation, lag


with unsettled():  # checks by partition
    asset_checks = _checks()
