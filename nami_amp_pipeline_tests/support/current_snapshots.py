"""The current snapshots as the store has them, in the form that the plain reading gives."""

from __future__ import annotations

from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.state import Store, tables


def current_snapshots(store: Store) -> dict[str, dict[str, Any]]:
    """The current snapshots of the store, by user, without what was never seen."""
    found = {}
    with store.begin() as tx:
        for row in tx.execute(sa.select(tables.user_property_snapshots)).mappings():
            if row["app_id"] != "app" or row["as_of_date"] is None:
                continue
            properties: dict[str, Any] = {}
            for group in ("entitlements", "devices", "journey"):
                properties |= orjson.loads(row[group] or "{}")
            is_active = properties.pop("has_active_entitlement", False)
            if "former_subscriber" in properties:
                properties["namiml_former_subscriber"] = properties.pop("former_subscriber") and not is_active
            found[row["user_id"]] = properties
    return found
