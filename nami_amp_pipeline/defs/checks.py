"""What must hold of a partition after a run; cheap enough to look at each time."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.defs.asset_pages.standing_page import DELIVERIES, facts, in_a_line, partition_of
from nami_amp_pipeline.defs.partitions import app_integrations
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.standing import Standing, standings
from nami_amp_pipeline.operations.status import WAITING, IntegrationStatus
from nami_amp_pipeline.state.integrations import Integration, all_integrations

LOGGED_PARTITIONS = 20
"""A run that moves more partitions than this logs only the checks that do not pass, or did not lately: each costs some
10 ms."""

CHECKS = ("conservation", "lag", "not_halted", "none_rejected")

_LATELY = 1_000


def is_conserved(now: IntegrationStatus) -> bool:
    """Whether every captured event is in exactly one place."""
    ended = now.delivered + sum(now.skipped.values()) + sum(now.dead_letters.values())
    return now.captured == ended + now.pending


def conservation_result(found: Sequence[Standing]) -> dg.AssetCheckResult:
    """``captured = delivered + skipped + dead letters + pending`` of each of these."""
    broken = [partition_of(standing) for standing in found if not is_conserved(standing.numbers)]
    numbers = [standing.numbers for standing in found]
    return dg.AssetCheckResult(
        passed=not broken,
        check_name="conservation",
        asset_key=DELIVERIES,
        description="; ".join(f"{standing}: the counts do not add up: a bug, please report it" for standing in broken)
        or _all_well(found, "the counts add up"),
        metadata={
            "captured": sum(standing.captured for standing in numbers),
            "delivered": sum(standing.delivered for standing in numbers),
            "skipped": sum(sum(standing.skipped.values()) for standing in numbers),
            "dead_letters": sum(sum(standing.dead_letters.values()) for standing in numbers),
            "pending": sum(standing.pending for standing in numbers),
        },
    )


def lag_result(found: Sequence[Standing], allowed: int) -> dg.AssetCheckResult:
    """Whether the oldest event of each of these that is still to be posted is at most so many seconds old."""
    late = [standing for standing in found if standing.state != "off" and standing.lag_seconds > allowed]
    return dg.AssetCheckResult(
        passed=not late,
        check_name="lag",
        asset_key=DELIVERIES,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(
            f"{partition_of(standing)}: {standing.why or _still_to_post(standing.numbers)}" for standing in late
        )
        or _all_well(found, "nothing is late"),
        metadata={
            "lag_seconds": max((round(standing.lag_seconds, 3) for standing in found), default=0.0),
            "allowed_seconds": allowed,
            "pending": sum(standing.pending for standing in found),
            "waiting_for_login": sum(standing.numbers.waiting for standing in found),
        },
    )


def _still_to_post(standing: IntegrationStatus) -> str:
    return ", ".join(
        f"{events:,} {why.replace('_', ' ')}" for why, events in standing.pending_by.items() if why != WAITING
    )


def _all_well(found: Sequence[Standing], said: str) -> str:
    """The text of a check that passed; it begins with the partition, for a list of checks shows nothing else of it."""
    return f"{', '.join(map(partition_of, found[:5]))}{', …' if len(found) > 5 else ''}: {said}"


def not_halted_result(found: Sequence[Standing]) -> dg.AssetCheckResult:
    """Whether each of these is at work, or at least waits for nobody."""
    halted = [standing for standing in found if standing.state == "halted"]
    return dg.AssetCheckResult(
        passed=not halted,
        check_name="not_halted",
        asset_key=DELIVERIES,
        description="\n".join(map(in_a_line, halted)) or _all_well(found, "not halted"),
        metadata=facts(halted[0]) if len(halted) == 1 else {"pending": sum(standing.pending for standing in found)},
    )


def none_rejected_result(found: Sequence[Standing]) -> dg.AssetCheckResult:
    """Whether none of these has rejected events that a person could send again."""
    rejected = [standing for standing in found if standing.rejected and standing.state != "off"]
    return dg.AssetCheckResult(
        passed=not rejected,
        check_name="none_rejected",
        asset_key=DELIVERIES,
        severity=dg.AssetCheckSeverity.WARN,
        description="\n".join(map(in_a_line, rejected)) or _all_well(found, "no rejected event can be sent again"),
        metadata={
            **(facts(rejected[0]) if len(rejected) == 1 else {}),
            "rejected": sum(standing.rejected for standing in rejected),
        },
    )


def results_of(found: Sequence[Standing], context: Context) -> list[dg.AssetCheckResult]:
    """All checks of some integrations."""
    return [
        conservation_result(found),
        lag_result(found, context.settings.timetable.late_after_seconds),
        not_halted_result(found),
        none_rejected_result(found),
    ]


def evaluations(
    instance: dg.DagsterInstance, context: Context, concerned: Sequence[Standing]
) -> Iterator[dg.AssetCheckEvaluation]:
    """The checks of each of these, which a micro-batch moved, or which are in trouble.

    Those that do not pass come last: of all partitions, the asset's page shows the newest evaluation.
    """
    results = [(partition_of(standing), result) for standing in concerned for result in results_of([standing], context)]
    lately = _failed_lately(instance) if len(concerned) > LOGGED_PARTITIONS else None
    for partition, result in sorted(results, key=lambda pair: not pair[1].passed):
        if result.passed and lately is not None and (result.check_name, partition) not in lately:
            continue
        yield dg.AssetCheckEvaluation(
            asset_key=DELIVERIES,
            check_name=result.check_name or "",
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            partition=partition,
        )


def _failed_lately(instance: dg.DagsterInstance) -> set[tuple[str | None, str | None]]:
    """(check, partition) of evaluations that did not pass; what does not pass is evaluated again by each run."""
    return {
        (record.key.name, record.partition)
        for name in CHECKS
        for record in instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(DELIVERIES, name), _LATELY, status={AssetCheckExecutionRecordStatus.FAILED}
        )
    }


def _found(context: dg.AssetCheckExecutionContext, pipeline: PipelineSession) -> list[Standing]:
    opened = pipeline.open()
    keys = {str(key) for key in context.partition_keys} if context.has_partition_key_range else {context.partition_key}
    chosen: list[Integration] = [
        standing for standing in all_integrations(opened.store) if standing.partition_key in keys
    ]
    return standings(opened, integrations=chosen)


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
        description="The oldest event that waits for delivery has been in the warehouse for three starts of the "
        "schedule at most.",
    )
    def lag(context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]) -> dg.AssetCheckResult:
        return lag_result(_found(context, pipeline), pipeline.settings.timetable.late_after_seconds)

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

    @dg.asset_check(
        **options,
        description="Amplitude rejected no event of the last 7 days that a person could repair and send again.",
    )
    def none_rejected(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.AssetCheckResult:
        return none_rejected_result(_found(context, pipeline))

    return conservation, lag, not_halted, none_rejected


with ignore_beta_warnings():  # checks by partition
    asset_checks = _checks()
