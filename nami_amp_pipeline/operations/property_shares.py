"""How many users of an app have which value of each user property, and how many events went without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.snapshot_sql import snapshot_sql, stored_table
from nami_amp_pipeline.state import Store, tables
from nami_amp_pipeline.state.users import read_app
from nami_amp_pipeline.storage.duckdb_engine import compute

MOST_USERS: Final = 5_000
"""So many users are looked at: their ids say nothing of them, so they are a fair sample."""

_MOST_VALUES: Final = 5


@dataclass(frozen=True)
class ValueShare:
    """A value of a property.

    Attributes:
        value: ``true``, ``false``, or an id.
        users: how many users have it; of a list of ids, those whose list contains it.
    """

    value: str
    users: int


@dataclass(frozen=True)
class PropertyShare:
    """A property.

    Attributes:
        property: its declaration.
        values: the most frequent values.
        known: how many users have any value.
    """

    property: contract.Property
    values: Sequence[ValueShare]
    known: int


@dataclass(frozen=True)
class PropertyShares:
    """All properties of an app's users.

    Attributes:
        users: how many users were looked at.
        is_sample: whether the app has more.
        properties: in the contract's order.
    """

    users: int
    is_sample: bool
    properties: Sequence[PropertyShare]


def property_shares(context: Context, app_id: str) -> PropertyShares:
    """How many users of an app have which value of each user property, by their current snapshots.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    with context.store.reading() as tx:
        rows = read_app(tx, app_id, MOST_USERS + 1)
    is_sample = len(rows) > MOST_USERS
    found = []
    with compute(context.settings) as connection:
        connection.register("stored", stored_table(rows[:MOST_USERS]))
        connection.execute(f"CREATE TEMP TABLE snapshots AS {snapshot_sql('snapshots_of_users')}")
        for prop in contract.PROPERTIES:
            each = f"unnest(list_distinct({prop.name}))" if prop.kind == "texts" else f"{prop.name}::VARCHAR"
            values = connection.execute(
                f"SELECT value, count(*) FROM (SELECT {each} AS value FROM snapshots WHERE {prop.name} IS NOT NULL) "  # noqa: S608
                f"GROUP BY value ORDER BY count(*) DESC, value LIMIT {_MOST_VALUES}"
            ).fetchall()
            ((known,),) = connection.execute(
                f"SELECT count({prop.name}) FROM snapshots"  # noqa: S608 - a name of the contract
            ).fetchall()
            found.append(PropertyShare(prop, [ValueShare(*value) for value in values], known))
    return PropertyShares(min(len(rows), MOST_USERS), is_sample, found)


def events_without(store: Store, since: int) -> list[tuple[str, str, int]]:
    """App, property and how many of its events go without it because its SQL or its enrichment failed.

    Args:
        store: as it is.
        since: of events captured from then on, in µs since the epoch.
    """
    parts, segments = tables.segment_apps, tables.segments
    query = (
        sa.select(parts.c.app_id, parts.c.events_without)
        .join(segments, segments.c.id == parts.c.segment_id)
        .where(segments.c.captured_at >= since, parts.c.events_without.is_not(None))
    )
    found: Counter[tuple[str, str]] = Counter()
    with store.reading() as tx:
        for app_id, text in tx.execute(query):
            found.update({(app_id, name): events for name, events in orjson.loads(text).items()})
    return [(*key, events) for key, events in sorted(found.items())]
