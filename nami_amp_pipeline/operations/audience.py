"""Users with a value of a property: how many there are here, and how many of them an integration was sent so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.current_snapshots import current_snapshots_schema
from nami_amp_pipeline.stages.snapshot_sql import snapshot_sql, stored_table
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.users import read_app
from nami_amp_pipeline.storage.duckdb_engine import compute

Place = Literal["sent", "waiting", "no_external_id", "not_sent"]
"""Where the state of a user is with an integration.

- ``sent``: the newest state is with Amplitude.
- ``waiting``: events of the user are held or throttled, or the newest state goes with the user's next event.
- ``no_external_id``: the integration sends External IDs only, and the user has none yet.
- ``not_sent``: no event of the user was sent: of another type, or from before the integration's start.
"""

PLACES: Final[tuple[Place, ...]] = ("sent", "waiting", "no_external_id", "not_sent")

VALUES: Final[dict[str, bool]] = {"true": True, "false": False}


@dataclass(frozen=True)
class AudienceUser:
    """A user of an audience.

    Attributes:
        nami_user: Nami's id.
        external_id: None if there is none yet.
        as_of: when Nami created the newest event of the user, in µs since the epoch.
    """

    nami_user: str
    external_id: str | None
    as_of: int | None

    def to_json(self) -> dict[str, Any]:
        """An object of ``audience --json``."""
        return {"nami_user": self.nami_user, "external_id": self.external_id, "as_of": to_text(self.as_of)}


@dataclass(frozen=True)
class Audience:
    """See the module's docstring.

    Attributes:
        integration: ``<app_id>/<name>``.
        property: of :data:`nami_amp_pipeline.contract.PROPERTIES`.
        value: that users have.
        here: how many users have it.
        places: the same by :data:`Place`.
        users: some of a place, by Nami's id.
        after: the key of the next page of them; None if there are no more.
    """

    integration: str
    property: str
    value: str
    here: int
    places: dict[Place, int]
    users: list[AudienceUser]
    after: str | None

    def to_json(self) -> dict[str, Any]:
        """The object of ``audience --json``."""
        return {
            "integration": self.integration,
            "property": self.property,
            "value": self.value,
            "here": self.here,
            "places": dict(self.places),
            "users": [user.to_json() for user in self.users],
        }


def audience(
    context: Context,
    integration: Integration,
    name: str,
    value: str,
    *,
    place: str | None = None,
    after: str = "",
    limit: int = 50,
) -> Audience:
    """Compares an audience here with what an integration was sent.

    Args:
        context: the process at work.
        integration: whose.
        name: of a user property.
        value: ``true`` or ``false``, or what a list of ids holds.
        place: the users of that place are listed; nobody is by default.
        after: the key of a page, as the page before has it.
        limit: so many users at most.

    Raises:
        Misconfigured: there is no such property, value or place.
    """
    test, wanted = _test(name, value)
    if place is not None and place not in PLACES:
        raise Misconfigured(f"{place!r} is no place: take one of {', '.join(PLACES)}")
    own = _user_id(integration)
    with compute(context.settings) as connection:
        _register(context, connection, integration)
        connection.execute(
            "CREATE TEMP TABLE members AS SELECT m.user_id, m.external_id, epoch_us(m.as_of) AS as_of, "  # noqa: S608
            f"CASE WHEN {own} IS NULL THEN 'no_external_id' "
            "WHEN h.id IS NOT NULL THEN 'waiting' WHEN s.id IS NULL THEN 'not_sent' "
            "WHEN s.sent_at >= epoch_us(m.as_of) THEN 'sent' ELSE 'waiting' END AS place "
            f"FROM snapshots m LEFT JOIN sent s ON s.id = {own} LEFT JOIN held h ON h.id = {own} WHERE {test}",
            [wanted],
        )
        counts = dict(connection.execute("SELECT place, count(*) FROM members GROUP BY place").fetchall())
        rows = connection.execute(
            "SELECT user_id, external_id, as_of FROM members WHERE place = ? AND user_id > ? ORDER BY user_id LIMIT ?",
            [place or "", after, limit + 1],
        ).fetchall()
    found = [AudienceUser(*row) for row in rows[:limit]]
    return Audience(
        integration.key,
        name,
        value,
        sum(counts.values()),
        {entry: counts.get(entry, 0) for entry in PLACES},
        found,
        found[-1].nami_user if len(rows) > limit else None,
    )


def _user_id(integration: Integration) -> str:
    """SQL for the user id under which an integration sends the state of a member; null if it sends none."""
    if integration.user_id_kind != "external_id":
        return "m.user_id"
    return "coalesce(m.external_id, m.user_id)" if integration.anonymous == "nami_user_id" else "m.external_id"


def _test(name: str, value: str) -> tuple[str, Any]:
    """SQL that tests a property for a value, and the value."""
    known = {prop.name: prop for prop in contract.PROPERTIES}
    if name not in known:
        raise Misconfigured(f"{name!r} is no user property{contract.did_you_mean(name, known)}")
    if known[name].kind == "texts":
        return f"list_contains({name}, ?)", value
    if known[name].kind == "text":
        return f"{name} = ?", value
    if known[name].kind == "number":
        try:
            return f"{name} = ?", float(value)
        except ValueError:
            raise Misconfigured(f"{name} is a number, not {value!r}") from None
    if value not in VALUES:
        raise Misconfigured(f"{name} is true or false, not {value!r}")
    return f"{name} = ?", VALUES[value]


def _register(context: Context, connection: duckdb.DuckDBPyConnection, integration: Integration) -> None:
    """Makes the relations ``snapshots`` of the app, ``sent`` and ``held`` of the integration."""
    sent, exceptions = tables.sent_states, tables.exceptions
    mine = sa.select(sent.c.user_id, sent.c.as_of_date).where(sent.c.integration_id == integration.id)
    with context.store.reading() as tx:
        users = read_app(tx, integration.app_id)
        states = tx.execute(mine).all()
        waits = tx.execute(sa.select(exceptions.c.identity).where(_held(integration.id)).distinct()).scalars().all()
    connection.register("stored", stored_table(users))
    snapshots = connection.sql(snapshot_sql("snapshots_of_users")).to_arrow_table().cast(current_snapshots_schema())
    connection.register("snapshots", snapshots)
    ids = pa.array([row.user_id for row in states], pa.string())
    moments = pa.array([row.as_of_date for row in states], pa.int64())
    connection.register("sent", pa.table({"id": ids, "sent_at": moments}))
    held = pa.array([identity.partition(":")[2] for identity in waits], pa.string())
    connection.register("held", pa.table({"id": held}))


def _held(integration_id: int) -> sa.ColumnElement[bool]:
    table = tables.exceptions
    return sa.and_(table.c.integration_id == integration_id, table.c.state == "held")
