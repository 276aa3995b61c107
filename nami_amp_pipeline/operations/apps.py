"""The known Nami apps, their plans, and the last run that did something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.state import Store, tables


@dataclass(frozen=True)
class App:
    """A Nami app.

    Attributes:
        app_id: Nami's.
        plan: ``paid`` or ``free``.
        integrations: how many it has.
        watermark: the newest ``ingested_at`` captured, in µs since the epoch.
    """

    app_id: str
    plan: str
    integrations: int
    watermark: int | None

    def to_json(self) -> dict[str, Any]:
        """The object of ``apps list --json``."""
        return {
            "app_id": self.app_id,
            "plan": self.plan,
            "integrations": self.integrations,
            "watermark": to_text(self.watermark),
        }


def list_apps(store: Store) -> list[App]:
    """The apps by id."""
    apps, integrations = tables.apps, tables.integrations
    query = (
        sa.select(apps.c.app_id, apps.c.plan, sa.func.count(integrations.c.id), apps.c.watermark)
        .outerjoin(integrations, integrations.c.app_id == apps.c.app_id)
        .group_by(apps.c.app_id, apps.c.plan, apps.c.watermark)
        .order_by(apps.c.app_id)
    )
    with store.begin() as tx:
        return [App(*row) for row in tx.execute(query).tuples()]


def last_run(store: Store) -> str | None:
    """The run that last captured, prepared or posted anything."""
    newest: list[tuple[int, str]] = []
    with store.begin() as tx:
        for table, at in (
            (tables.segments, tables.segments.c.captured_at),
            (tables.outboxes, tables.outboxes.c.prepared_at),
            (tables.requests, tables.requests.c.answered_at),
        ):
            newest += tx.execute(sa.select(at, table.c.run_id).order_by(table.c.id.desc()).limit(1)).tuples().all()
    return max(newest)[1] if newest else None
