"""The work that is due for a micro-batch, and since when; cheap enough to check every half minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.shards import shards
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import compute

_BEGINNING = -(2**52)


@dataclass(frozen=True)
class DueWork:
    """Work that a micro-batch could do.

    Attributes:
        what: for people, such as ``rows of fit in the warehouse``.
        since: the oldest ``ingested_at`` of it, in µs since the epoch.
        events: how many, if known.
        app_id: whose.
    """

    what: str
    since: int
    events: int | None = None
    app_id: str = ""


def due(context: Context) -> list[DueWork]:
    """The work that a micro-batch could do now, by app and integration.

    Disabled, halted and paused integrations do not count, nor do held events. Rows that were loaded again may be
    included, because only a capture can tell.

    Raises:
        StoreUnavailable: the state store cannot be read.
        WarehouseUnavailable: the warehouse cannot be read.
    """
    found = _pending(context)
    apps = tables.apps.c
    # A capture that had to stop at its limit leaves rows behind that it saw.
    rows = _newer(context, sa.select(sa.func.max(apps.watermark)), sa.select(apps.app_id, apps.watermark))
    return found + [DueWork(f"rows of {app} in the warehouse", since, app_id=app) for app, since in rows.items()]


def not_captured(context: Context) -> dict[str, int]:
    """The apps with rows newer than all that any micro-batch saw, with the oldest ``ingested_at`` of those.

    Rows that commit late or are loaded again do not count.

    Raises:
        StoreUnavailable: the state store cannot be read.
        WarehouseUnavailable: the warehouse cannot be read.
    """
    apps, observations = tables.apps, tables.observations
    # What a shard saw that has not read for long is forgotten.
    seen = sa.func.coalesce(observations.c.max_ingested_at, apps.c.watermark)
    return _newer(
        context,
        sa.select(sa.func.max(observations.c.max_ingested_at)),
        sa.select(apps.c.app_id, seen).outerjoin_from(
            apps, observations, observations.c.observed_at == apps.c.captured_at
        ),
    )


def _newer(
    context: Context, of_all: sa.Select[tuple[int | None]], of_each: sa.Select[tuple[str, int | None]]
) -> dict[str, int]:
    """The oldest ``ingested_at`` after a time, by app with an enabled integration.

    Args:
        context: the process at work.
        of_all: selects the time, where all apps are read together.
        of_each: selects app ids, and how far each is. Of a shard, the furthest counts: what another shard has done says
            nothing, for its run may be ahead, or this one's worker gone.
    """
    starts = _starts(all_integrations(context.store))
    if not starts:
        return {}
    divided = context.settings.shards > 1
    with context.store.begin() as tx:
        found = [row._tuple() for row in tx.execute(of_each)] if divided else []
        after = None if divided else tx.execute(of_all).scalar()
    with compute(context.settings) as connection:
        if divided:
            unread = context.warehouse.unread(connection, _positions(starts, found, context.settings.shards))
            rows = {app: since for app, (_, since) in unread.items()}
        else:
            rows = context.warehouse.oldest(connection, list(starts), _BEGINNING if after is None else after)
    return {app: since for app, since in rows.items() if since >= starts[app]}


def _positions(
    starts: Mapping[str, int], reached: Sequence[tuple[str, int | None]], many: int
) -> dict[str, int | None]:
    """After which ``ingested_at`` the rows of each app count: the same for all apps of a shard."""
    positions: dict[str, int | None] = {}
    for shard in filter(None, shards(many)):
        apps = [app for app in starts if shard.has(app)]
        # What is older than every integration of a new shard need not be counted.
        first = min((starts[app] for app in apps), default=_BEGINNING) - 1
        at = max((at for app, at in reached if at is not None and shard.has(app)), default=first)
        positions |= dict.fromkeys(apps, at if at > _BEGINNING else None)
    return positions


def _starts(integrations: Sequence[Integration]) -> dict[str, int]:
    """Where the earliest integration of each app begins, if none begins at the beginning."""
    starts: dict[str, int] = {}
    for integration in integrations:
        if integration.enabled:
            start = -(2**62) if integration.start_of_new is None else integration.start_of_new
            starts[integration.app_id] = min(start, starts.get(integration.app_id, start))
    return starts


def _pending(context: Context) -> list[DueWork]:
    """The integrations that could post something now."""
    integrations = all_integrations(context.store)
    working = [integration for integration in integrations if integration.enabled and not integration.halted_reason]
    pauses = tables.pauses
    with context.store.begin() as tx:
        paused = set(
            tx.execute(
                sa.select(pauses.c.integration_id).where(pauses.c.identity == "", pauses.c.until > context.now())
            ).scalars()
        )
    now = context.now()
    return [
        DueWork(
            f"events of {row.integration}",
            now - int(row.lag_by["queued"] * 1e6),
            row.pending_by["queued"],
            row.integration.partition("/")[0],
        )
        for row in status(context, [integration for integration in working if integration.id not in paused])
        if row.lag_by.get("queued")
    ]
