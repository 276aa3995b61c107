"""Finds the problems of this moment in the state store and the warehouse; cheap enough for every half minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline.alerts.kinds import Alert, Kind, integration_page, partition_page
from nami_amp_pipeline.clock import from_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import NamiAmpError, WarehouseUnavailable
from nami_amp_pipeline.operations.backfill_status import failed
from nami_amp_pipeline.operations.backlog import not_captured
from nami_amp_pipeline.operations.dead_letters import RETRIED, is_dismissed
from nami_amp_pipeline.operations.standing import Standing, is_late, standings
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations


@dataclass(frozen=True)
class Found:
    """The result of an evaluation.

    Attributes:
        alerts: what is wrong.
        known: the kinds that could be checked; of the others nobody knows whether they are over.
        unsettled: alerts that are not proven to be over although their condition does not hold: nothing was posted yet.
        in_trouble: partitions of integrations whose events wait, or that need a person.
    """

    alerts: list[Alert]
    known: frozenset[Kind]
    unsettled: frozenset[tuple[Kind, str]] = frozenset()
    in_trouble: frozenset[str] = frozenset()


def conditions(context: Context, open_since: Mapping[tuple[Kind, str], int] | None = None) -> Found:
    """Checks everything but runs.

    Args:
        context: the process at work.
        open_since: the alerts that are open, with the time they began, in µs since the epoch.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    working = [integration for integration in all_integrations(context.store) if integration.enabled]
    found = standings(context, integrations=working)
    alerts = [
        *_halted(working),
        *_unreachable(context, found),
        *_dead_letters(context, working),
        *_late(context, found),
        *_silent(context, working),
        *_failed(context),
    ]
    known = {
        *(Kind.INTEGRATION_HALTED, Kind.AMPLITUDE_UNREACHABLE, Kind.DEAD_LETTERS_GROWING),
        *(Kind.LAG_OVER_LIMIT, Kind.NOTHING_INGESTED, Kind.WAREHOUSE_UNREADABLE, Kind.BACKFILL_FAILED),
    }
    try:
        alerts += _not_captured(context)
        known.add(Kind.NOTHING_CAPTURED)
    except WarehouseUnavailable as error:
        alerts.append(Alert(Kind.WAREHOUSE_UNREADABLE, "warehouse", str(error), "/assets/nami_events?view=partitions"))
    except NamiAmpError as error:
        context.log.debug("the warehouse was not checked: %s", error)
        known.discard(Kind.WAREHOUSE_UNREADABLE)
    waits = [standing for standing in found if standing.needs_you or standing.state in _TROUBLE]
    return Found(
        alerts,
        frozenset(known),
        _unsettled(context, working, found, open_since or {}),
        frozenset(standing.integration.replace("/", "|") for standing in waits),
    )


_TROUBLE: Final = ("halted", "unreachable", "throttled", "waiting")


def _unsettled(
    context: Context,
    integrations: Sequence[Integration],
    found: Sequence[Standing],
    open_since: Mapping[tuple[Kind, str], int],
) -> frozenset[tuple[Kind, str]]:
    """Alerts whose cause a person may have removed, and of which no event has shown it yet."""
    unsettled: set[tuple[Kind, str]] = set()
    by_key = {standing.integration: standing for standing in found}
    requests, exceptions = tables.requests, tables.exceptions
    with context.store.begin() as tx:
        for integration in integrations:
            standing = by_key.get(integration.key)
            if standing is None:
                continue
            halted, dead, late = (
                (kind, integration.key)
                for kind in (Kind.INTEGRATION_HALTED, Kind.DEAD_LETTERS_GROWING, Kind.LAG_OVER_LIMIT)
            )
            if halted in open_since and standing.numbers.to_post:
                delivered = sa.select(requests.c.id).where(
                    requests.c.integration_id == integration.id,
                    requests.c.outcome == "delivered",
                    requests.c.sent_at > open_since[halted],
                )
                if tx.execute(delivered.limit(1)).first() is None:
                    unsettled.add(halted)
            if dead in open_since:
                retried = sa.select(exceptions.c.id).where(
                    exceptions.c.integration_id == integration.id,
                    exceptions.c.state == "held",
                    exceptions.c.reason == RETRIED,
                )
                if tx.execute(retried.limit(1)).first() is not None:
                    unsettled.add(dead)
            if late in open_since and is_late(standing.numbers, context.settings):
                unsettled.add(late)  # it was halted since
    return frozenset(unsettled)


def _page(integration: str) -> str:
    return integration_page(integration.replace("/", "|"))


def _halted(integrations: Sequence[Integration]) -> list[Alert]:
    return [
        Alert(Kind.INTEGRATION_HALTED, integration.key, integration.halted_reason, _page(integration.key))
        for integration in integrations
        if integration.halted_reason
    ]


def _failed(context: Context) -> list[Alert]:
    """An integration has at most one backfill or identify that failed."""
    return [
        Alert(Kind.BACKFILL_FAILED, made.integration, f"{made.called}: {made.error}", _page(made.integration))
        for made in failed(context)
    ]


def _unreachable(context: Context, found: Sequence[Standing]) -> list[Alert]:
    """Not at once: a server that is started again is no alert."""
    limit = context.settings.timetable.late_after_seconds // 3
    return [
        Alert(
            Kind.AMPLITUDE_UNREACHABLE,
            standing.integration,
            f"{standing.why} since {to_text(from_datetime(standing.since))}; "
            f"{standing.pending:,} event{'s' * (standing.pending != 1)} wait{'s' * (standing.pending == 1)}",
            _page(standing.integration),
        )
        for standing in found
        if standing.state == "unreachable"
        and standing.since is not None
        and context.now() - from_datetime(standing.since) > limit * 1_000_000
    ]


def _dead_letters(context: Context, integrations: Sequence[Integration]) -> list[Alert]:
    window = context.settings.alert_window_seconds
    table = tables.exceptions
    query = (
        sa.select(table.c.integration_id, table.c.reason, sa.func.count())
        .where(table.c.state == "dead", sa.not_(is_dismissed()), table.c.at > context.now() - window * 1_000_000)
        .group_by(table.c.integration_id, table.c.reason)
    )
    new: dict[int, dict[str, int]] = {}
    with context.store.begin() as tx:
        for integration_id, reason, events in tx.execute(query):
            new.setdefault(integration_id, {})[reason] = events
    many = [
        integration
        for integration in integrations
        if sum(new.get(integration.id, {}).values()) > context.settings.alert_dead_letters
    ]
    return [
        Alert(
            Kind.DEAD_LETTERS_GROWING,
            integration.key,
            f"{sum(new[integration.id].values()):,} in the last {duration(window)}: "
            + ", ".join(f"{events:,} {reason}" for reason, events in sorted(new[integration.id].items())),
            _page(integration.key),
        )
        for integration in many
    ]


def _late(context: Context, found: Sequence[Standing]) -> list[Alert]:
    return [
        Alert(
            Kind.LAG_OVER_LIMIT,
            standing.integration,
            f"{standing.numbers.to_post:,} event{'s' * (standing.numbers.to_post != 1)} pending, the oldest for "
            f"{duration(standing.lag_seconds)}" + (f" ({standing.why})" if standing.why else ""),
            _page(standing.integration),
        )
        for standing in found
        if standing.state != "halted" and is_late(standing.numbers, context.settings)
    ]


def _silent(context: Context, integrations: Sequence[Integration]) -> list[Alert]:
    limit = context.settings.alert_nothing_ingested_seconds
    if not limit:
        return []
    apps: dict[str, int] = {}  # where nothing has come yet, the wait began with its first integration
    for integration in integrations:
        apps[integration.app_id] = min(integration.created_at, apps.get(integration.app_id, integration.created_at))
    with context.store.begin() as tx:
        newest = dict(tx.execute(sa.select(tables.apps.c.app_id, tables.apps.c.watermark)).tuples().all())
    found = []
    for app_id, since in sorted(apps.items()):
        last = newest.get(app_id)
        silent = (context.now() - (since if last is None else last)) / 1e6
        if silent > limit:
            never = "no event yet" if last is None else "no event"
            found.append(
                Alert(
                    Kind.NOTHING_INGESTED,
                    app_id,
                    f"{never} for {duration(silent)}",
                    partition_page("nami_events", app_id),
                )
            )
    return found


def _not_captured(context: Context) -> list[Alert]:
    limit = context.settings.alert_lag_seconds
    if not limit:
        return []
    return [
        Alert(
            Kind.NOTHING_CAPTURED,
            app_id,
            f"rows that no micro-batch has read yet, the oldest for {duration((context.now() - since) / 1e6)}",
            partition_page("nami_events", app_id),
        )
        for app_id, since in not_captured(context).items()
        if context.now() - since > limit * 1_000_000
    ]


def duration(seconds: float) -> str:
    """A time span as people say it, in two units at most."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part) or "0 s"
