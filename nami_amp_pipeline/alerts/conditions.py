"""Finds the problems of this moment in the state store and the warehouse; cheap enough for every half minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from nami_amp_pipeline.alerts.kinds import Alert, Kind, partition_page, run_page
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.operations.backlog import not_captured
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations


@dataclass(frozen=True)
class Found:
    """The result of an evaluation.

    Attributes:
        alerts: what is wrong.
        known: the kinds that could be looked at; of the others nobody knows whether they are over.
    """

    alerts: list[Alert]
    known: frozenset[Kind]


def conditions(context: Context) -> Found:
    """Looks at everything but runs.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    working = [integration for integration in all_integrations(context.store) if integration.enabled]
    alerts = [
        *_halted(context, working),
        *_dead_letters(context, working),
        *_late(context, [integration for integration in working if not integration.halted_reason]),
        *_silent(context, working),
    ]
    known = {Kind.INTEGRATION_HALTED, Kind.DEAD_LETTERS_GROWING, Kind.LAG_OVER_LIMIT, Kind.NOTHING_INGESTED}
    try:
        alerts += _not_captured(context)
        known.add(Kind.NOTHING_CAPTURED)
    except NamiAmpError as error:
        context.log.debug("the warehouse was not looked at: %s", error)  # runs fail for it, which is an alert already
    return Found(alerts, frozenset(known))


def _page(integration: Integration, run_id: str | None) -> str:
    return run_page(run_id) if run_id else partition_page("amplitude_deliveries", integration.partition_key)


def _halted(context: Context, integrations: Sequence[Integration]) -> list[Alert]:
    halted = [integration for integration in integrations if integration.halted_reason]
    requests = tables.requests
    found = []
    with context.store.begin() as tx:
        for integration in halted:
            last = sa.select(requests.c.run_id).where(requests.c.integration_id == integration.id)
            run_id = tx.execute(last.order_by(requests.c.id.desc()).limit(1)).scalar()
            found.append(
                Alert(
                    Kind.INTEGRATION_HALTED,
                    integration.key,
                    integration.halted_reason or "",
                    _page(integration, run_id),
                )
            )
    return found


def _dead_letters(context: Context, integrations: Sequence[Integration]) -> list[Alert]:
    window = context.settings.alert_window_seconds
    table = tables.exceptions
    query = (
        sa.select(table.c.integration_id, table.c.reason, sa.func.count(), sa.func.max(table.c.id))
        .where(table.c.state == "dead", table.c.at > context.now() - window * 1_000_000)
        .group_by(table.c.integration_id, table.c.reason)
    )
    new: dict[int, dict[str, int]] = {}
    newest: dict[int, int] = {}
    runs: dict[int, str] = {}
    with context.store.begin() as tx:
        for integration_id, reason, events, last in tx.execute(query):
            new.setdefault(integration_id, {})[reason] = events
            newest[integration_id] = max(last, newest.get(integration_id, 0))
        many = [
            integration
            for integration in integrations
            if sum(new.get(integration.id, {}).values()) > context.settings.alert_dead_letters
        ]
        for integration in many:
            run_id = sa.select(table.c.run_id).where(table.c.id == newest[integration.id])
            runs[integration.id] = tx.execute(run_id).scalar() or ""
    return [
        Alert(
            Kind.DEAD_LETTERS_GROWING,
            integration.key,
            f"{sum(new[integration.id].values()):,} in the last {duration(window)}: "
            + ", ".join(f"{events:,} {reason}" for reason, events in sorted(new[integration.id].items())),
            _page(integration, runs[integration.id]),
        )
        for integration in many
    ]


def _late(context: Context, integrations: Sequence[Integration]) -> list[Alert]:
    limit = context.settings.alert_lag_seconds
    if not limit:
        return []
    by_key = {integration.key: integration for integration in integrations}
    return [
        Alert(
            Kind.LAG_OVER_LIMIT,
            now.integration,
            f"{now.to_post:,} event{'s' * (now.to_post != 1)} pending, the oldest for {duration(now.lag_seconds)}"
            + (f" ({now.error})" if now.error else ""),
            partition_page("amplitude_deliveries", by_key[now.integration].partition_key),
        )
        for now in status(context, integrations)
        if now.to_post and now.lag_seconds > limit
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
