"""The Nami apps that are known here, and their plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import did_you_mean
from nami_amp_pipeline.state import Store, tables


@dataclass(frozen=True)
class App:
    """A Nami app.

    Attributes:
        app_id: Nami's.
        plan: ``paid`` or ``free``.
        integrations: how many it has.
        watermark: the newest ``ingested_at`` captured, in µs since the epoch.
        quota: how many events a month its Amplitude organisation takes; None if nobody said so.
    """

    app_id: str
    plan: str
    integrations: int
    watermark: int | None
    quota: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of ``apps list --json``."""
        return {
            "app_id": self.app_id,
            "plan": self.plan,
            "integrations": self.integrations,
            "watermark": to_text(self.watermark),
            "monthly_quota": self.quota,
        }


def list_apps(store: Store, app_id: str | None = None) -> list[App]:
    """The apps by id, or the one of an id."""
    apps, integrations = tables.apps, tables.integrations
    query = (
        sa.select(apps.c.app_id, apps.c.plan, sa.func.count(integrations.c.id), apps.c.watermark, apps.c.monthly_quota)
        .outerjoin(integrations, sa.and_(integrations.c.app_id == apps.c.app_id, integrations.c.backfill_of.is_(None)))
        .group_by(apps.c.app_id, apps.c.plan, apps.c.watermark, apps.c.monthly_quota)
        .order_by(apps.c.app_id)
    )
    if app_id is not None:
        query = query.where(apps.c.app_id == app_id)
    with store.reading() as tx:
        return [App(*row) for row in tx.execute(query).tuples()]


def apps_of_warehouse(context: Context) -> list[str]:
    """Apps that have rows in the warehouse; of a large table perhaps not all of them.

    Raises:
        WarehouseUnavailable: it cannot be read.
    """
    from nami_amp_pipeline.storage.duckdb_engine import compute

    with compute(context.settings) as connection:
        return context.warehouse.app_ids(connection)


def app_without_integration(store: Store, app_id: str) -> str:
    """A sentence that no integration takes events of an app, with the app that was perhaps meant.

    It is empty if one does, and where there is no integration at all.
    """
    with store.reading() as tx:
        taken = set(tx.execute(sa.select(tables.integrations.c.app_id).distinct()).scalars())
    if not taken or app_id in taken:
        return ""
    return f"no integration takes events of app {app_id}{did_you_mean(app_id, taken)}"
