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
            properties = {
                name: orjson.loads(row[name])
                for name in (
                    "namiml_active_entitlements",
                    "namiml_active_skus",
                    "namiml_device_ids",
                    "namiml_device_platforms",
                )
                if row[name] is not None
            }
            if row["former_subscriber"] is not None:
                properties["namiml_former_subscriber"] = bool(
                    row["former_subscriber"] and not row["has_active_entitlement"]
                )
            for name in ("namiml_in_grace_period", "namiml_in_trial_period", "namiml_in_intro_offer_period"):
                if row[name] is not None:
                    properties[name] = bool(row[name])
            found[row["user_id"]] = properties
    return found
