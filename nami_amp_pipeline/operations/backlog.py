"""The work that is due for a micro-batch, and since when; cheap enough to check every half minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.shards import shards
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations, apps_with_integrations
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
    rows = _not_in_segments(context)
    return found + [DueWork(f"rows of {app} in the warehouse", since, app_id=app) for app, since in rows.items()]


def _not_in_segments(context: Context) -> dict[str, int]:
    """The apps with rows newer than all that was captured in their shard, with the oldest ``ingested_at`` of those.

    What another shard captured says nothing: its run may be hours ahead, or this one's worker gone.
    """
    with context.store.begin() as tx:
        watermarks = {row.app_id: row.watermark for row in tx.execute(sa.select(tables.apps))}
    divided = shards(context.settings.shards)
    if divided == [None]:
        # A capture that had to stop at its limit leaves rows behind that it saw.
        return _newer(context, max((at for at in watermarks.values() if at is not None), default=_BEGINNING))
    starts = _starts(all_integrations(context.store))
    positions: dict[str, int | None] = {}
    for shard in divided:
        apps = [app for app in starts if shard is not None and shard.has(app)]
        captured = [at for app, at in watermarks.items() if at is not None and shard is not None and shard.has(app)]
        # What is older than every integration of a new shard need not be counted.
        reached = max(captured, default=min((starts[app] for app in apps), default=_BEGINNING) - 1)
        positions |= dict.fromkeys(apps, reached if reached > _BEGINNING else None)
    if not positions:
        return {}
    with compute(context.settings) as connection:
        unread = context.warehouse.unread(connection, positions)
    return _wanted(context, {app: since for app, (_, since) in unread.items()})


def not_captured(context: Context) -> dict[str, int]:
    """The apps with rows newer than all that any micro-batch saw, with the oldest ``ingested_at`` of those.

    Rows that commit late or are loaded again do not count.

    Raises:
        StoreUnavailable: the state store cannot be read.
        WarehouseUnavailable: the warehouse cannot be read.
    """
    with context.store.begin() as tx:
        seen = tx.execute(sa.select(sa.func.max(tables.observations.c.max_ingested_at))).scalar()
    return _newer(context, seen if seen is not None else _BEGINNING)


def _newer(context: Context, after: int) -> dict[str, int]:
    """The oldest ``ingested_at`` after a time, by app with an enabled integration."""
    apps = apps_with_integrations(context.store)
    if not apps:
        return {}
    with compute(context.settings) as connection:
        return _wanted(context, context.warehouse.oldest(connection, apps, after))


def _wanted(context: Context, rows: dict[str, int]) -> dict[str, int]:
    """Those from where an integration of the app begins."""
    starts = _starts(all_integrations(context.store))
    return {app: since for app, since in rows.items() if since >= starts.get(app, since)}


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
