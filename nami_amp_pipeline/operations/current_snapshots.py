"""The state store's tables as Arrow tables, for notebooks and one-off questions."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.contract import USER_PROPERTIES
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import Store, tables

_ARRAYS = USER_PROPERTIES[:4]

CURRENT_SNAPSHOTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("external_id", pa.string()),
        ("as_of", pa.timestamp("us", tz="UTC")),
        *((name, pa.list_(pa.string())) for name in _ARRAYS),
        *((name, pa.bool_()) for name in USER_PROPERTIES[4:]),
    ]
)
"""Columns of :func:`current_snapshots`. ``as_of``: when Nami created the user's newest ``user.*`` event."""


def current_snapshots(settings: Settings, app_id: str) -> pa.Table:
    """The current snapshot of each user of an app, with the External ID.

    Args:
        settings: says where the state store is.
        app_id: the Nami app.

    Returns:
        One row per user, by ``user_id``, with the columns of :data:`CURRENT_SNAPSHOTS`; what was never seen is null.
        ``.to_pandas()`` and ``duckdb.sql`` take it from there.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    store = Store(settings.state_url, lambda: 0.0)
    table = tables.user_property_snapshots
    try:
        with store.begin() as tx:
            rows = tx.execute(sa.select(table).where(table.c.app_id == app_id).order_by(table.c.user_id)).mappings()
            records = [_record(dict(row)) for row in rows]
    finally:
        store.close()
    return pa.Table.from_pylist(records, schema=CURRENT_SNAPSHOTS)


def _record(row: dict[str, Any]) -> dict[str, Any]:
    former, active = row["former_subscriber"], row["has_active_entitlement"]
    return {
        "user_id": row["user_id"],
        "external_id": row["external_id"],
        "as_of": row["as_of_date"],
        **{name: None if row[name] is None else orjson.loads(row[name]) for name in _ARRAYS},
        "namiml_former_subscriber": None if former is None else bool(former and not active),
        **{name: row[name] for name in USER_PROPERTIES[5:]},
    }
