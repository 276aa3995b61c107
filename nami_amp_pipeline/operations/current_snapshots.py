"""The state store's tables as Arrow tables, for notebooks and one-off questions."""

from __future__ import annotations

import pyarrow as pa

from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.snapshot_sql import property_fields, snapshot_sql, stored_table
from nami_amp_pipeline.state import Store
from nami_amp_pipeline.state.users import read_app
from nami_amp_pipeline.storage.duckdb_engine import compute


def current_snapshots_schema() -> pa.Schema:
    """Columns of :func:`current_snapshots`. ``as_of``: when Nami created the user's newest ``user.*`` event."""
    return pa.schema(
        [
            ("user_id", pa.string()),
            ("external_id", pa.string()),
            ("as_of", pa.timestamp("us", tz="UTC")),
            *property_fields(),
        ]
    )


def current_snapshots(settings: Settings, app_id: str) -> pa.Table:
    """The current snapshot of each user of an app, with the External ID.

    Args:
        settings: says where the state store is.
        app_id: the Nami app.

    Returns:
        One row per user, by ``user_id``, with the columns of :func:`current_snapshots_schema`; what was never seen is
        null. ``.to_pandas()`` and ``duckdb.sql`` take it from there.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    store = Store(settings.state_url, lambda: 0.0)
    try:
        with store.reading() as tx:
            rows = read_app(tx, app_id)
    finally:
        store.close()
    with compute(settings) as connection:
        connection.register("stored", stored_table(rows))
        found = connection.sql(snapshot_sql("snapshots_of_users")).to_arrow_table()
    return found.cast(current_snapshots_schema())
