"""What must hold of a partition after a run; cheap enough to look at each time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.dagster_support.beta_warnings import ignore_beta_warnings
from nami_amp_pipeline.defs.asset_pages.standing_page import DELIVERIES, facts, in_a_line, partition_of
from nami_amp_pipeline.defs.failures import in_one_line
from nami_amp_pipeline.defs.ours import DEFAULT, Place
from nami_amp_pipeline.defs.partitions import integrations_of
from nami_amp_pipeline.defs.resources import PipelineSession
from nami_amp_pipeline.operations.standing import Standing, standings
from nami_amp_pipeline.operations.status import WAITING, IntegrationStatus
from nami_amp_pipeline.state.integrations import all_integrations

LOGGED_PARTITIONS = 20
"""A run that moves more partitions than this logs only the checks that do not pass, or did not lately: each costs some
10 ms."""

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
        description="\n".join(map(in_a_line, halted)) or _all_well(found, "not halted"),
        metadata=facts(halted[0]) if len(halted) == 1 else {"pending": sum(standing.pending for standing in found)},
    )


def none_rejected_result(found: Sequence[Standing]) -> dg.AssetCheckResult:
    """Whether none of these has rejected events that a person could send again."""
    rejected = [standing for standing in found if standing.rejected and standing.state != "off"]
    return dg.AssetCheckResult(
        passed=not rejected,
        check_name="none_rejected",
        severity=dg.AssetCheckSeverity.WARN,
        description="\n".join(map(in_a_line, rejected)) or _all_well(found, "no rejected event can be sent again"),
        metadata={
            **(facts(rejected[0]) if len(rejected) == 1 else {}),
            "rejected": sum(standing.rejected for standing in rejected),
            "dismissed": sum(standing.dismissed for standing in found),
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
    instance: dg.DagsterInstance, context: Context, concerned: Sequence[Standing], place: Place = DEFAULT
) -> Iterator[dg.AssetCheckEvaluation]:
    """The checks of each of these, which a micro-batch moved, or which are in trouble.

    Those that do not pass come last: of all partitions, the asset's page shows the newest evaluation.
    """
    results = [(partition_of(standing), result) for standing in concerned for result in results_of([standing], context)]
    lately = _failed_lately(instance, place) if len(concerned) > LOGGED_PARTITIONS else None
    for partition, result in sorted(results, key=lambda pair: not pair[1].passed):
        if result.passed and lately is not None and (result.check_name, partition) not in lately:
            continue
        yield dg.AssetCheckEvaluation(
            asset_key=place.key(DELIVERIES),
            check_name=result.check_name or "",
            passed=result.passed,
            severity=result.severity,
            description=result.description,
            metadata=result.metadata,
            partition=partition,
        )


def _failed_lately(instance: dg.DagsterInstance, place: Place) -> set[tuple[str | None, str | None]]:
    """(check, partition) of evaluations that did not pass; what does not pass is evaluated again by each run."""
    return {
        (record.key.name, record.partition)
        for name in CHECKS
        for record in instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(place.key(DELIVERIES), name), _LATELY, status={AssetCheckExecutionRecordStatus.FAILED}
        )
    }


def _found(context: dg.AssetCheckExecutionContext, pipeline: PipelineSession) -> list[Standing]:
    keys = {str(key) for key in context.partition_keys} if context.has_partition_key_range else {context.partition_key}
    with in_one_line(pipeline):
        opened = pipeline.open()
        every = all_integrations(opened.store)
        return standings(
            opened, integrations=[integration for integration in every if integration.partition_key in keys]
        )


_DESCRIPTIONS: Final = {
    "conservation": "Every captured event is delivered, skipped, a dead letter or pending, and counted once.",
    "lag": "The oldest event that waits for delivery has been in the warehouse for three starts of the schedule at "
    "most.",
    "not_halted": "The integration is not halted. One that is sends nothing until a person repairs it and enables it "
    "again; its events wait.",
    "none_rejected": "Amplitude rejected no event of the last 7 days that a person could repair and send again; what "
    "`nami-amp dead-letters dismiss` marked as seen does not count.",
}

CHECKS: Final = tuple(_DESCRIPTIONS)


def build_check(name: str, place: Place = DEFAULT) -> dg.AssetChecksDefinition:
    """A check that a person runs for a partition; a micro-batch evaluates the same by itself."""

    def look(
        context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[PipelineSession]
    ) -> dg.AssetCheckResult:
        results = results_of(_found(context, pipeline), pipeline.open())
        return next(result for result in results if result.check_name == name)

    decorate: Callable[..., dg.AssetChecksDefinition] = dg.asset_check(
        name=name,
        asset=place.key(DELIVERIES),
        partitions_def=integrations_of(place),
        description=_DESCRIPTIONS[name],
    )
    return decorate(place.owned(look))


def build_checks(place: Place) -> tuple[dg.AssetChecksDefinition, ...]:
    """All checks of the deliveries."""
    with ignore_beta_warnings():  # checks by partition
        return tuple(build_check(name, place) for name in CHECKS)


asset_checks = build_checks(DEFAULT)
