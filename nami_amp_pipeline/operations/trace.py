"""Where an event is, or the events of a user: a verdict for each integration first, and all that is known below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import duckdb
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.operations.event_places import captures_of, places_of, snapshot_of, sources_of
from nami_amp_pipeline.operations.standing import standings
from nami_amp_pipeline.operations.verdicts import EXIT, WORST_FIRST, Verdict, exit_status, verdict
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.integration_rows import of_app
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import compute
from nami_amp_pipeline.warehouse import EventRow, Places

UNREAD_DAYS: Final = 7
"""So far back, at most, an event that was not captured is looked for in a table that has no index for it."""

MOST_EVENTS: Final = 20
"""So many of a user's events are traced, the newest."""


@dataclass
class Trace:
    """All that is known of an event.

    Attributes:
        event_id: Nami's event id.
        warehouse: its rows in the events table; the same id can stand in several.
        warehouse_error: why the warehouse could not be asked.
        warehouse_is_whole: whether there can be no other rows of it: without an index on ``id``, a large table is
            searched only for what was captured, and among what is new.
        captures: the segments that hold it, one per app that has an event of this id.
        integrations: per integration of those apps, what became of it.
        verdicts: the same in a word each.
        event_type: Nami's; empty if it is not known.
        created_date: as ISO-8601 text; empty if it is not known.
    """

    event_id: str
    warehouse: list[dict[str, Any]] = field(default_factory=list)
    warehouse_error: str | None = None
    warehouse_is_whole: bool = True
    captures: list[dict[str, Any]] = field(default_factory=list)
    integrations: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def is_known(self) -> bool:
        """Whether there is any sign of it."""
        return bool(self.warehouse or self.captures or any(place["state"] for place in self.integrations))

    @property
    def event_type(self) -> str:
        """Nami's; empty if it is not known."""
        return next((row["event_type"] for row in (*self.captures, *self.warehouse)), "")

    @property
    def created_date(self) -> str:
        """As ISO-8601 text; empty if it is not known."""
        return next((row["created_date"] for row in (*self.captures, *self.warehouse)), "")

    @property
    def apps(self) -> list[str]:
        """The apps that have an event of this id."""
        return sorted({row["app_id"] for row in (*self.captures, *self.warehouse)})

    @property
    def exit_status(self) -> int:
        """See :data:`~nami_amp_pipeline.operations.verdicts.EXIT`; 1 if it is not known."""
        return exit_status(self.verdicts) if self.is_known else 1

    def to_json(self) -> dict[str, Any]:
        """The object of ``trace --json``."""
        return {
            "event_id": self.event_id,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "exit_status": self.exit_status,
            "warehouse": self.warehouse,
            "warehouse_error": self.warehouse_error,
            "warehouse_is_whole": self.warehouse_is_whole,
            "captures": self.captures,
            "integrations": [
                {key: value for key, value in place.items() if key != "body"} for place in self.integrations
            ],
        }


@dataclass(frozen=True)
class UserTrace:
    """The events of a user.

    Attributes:
        asked: the External ID or Nami user that was asked for.
        users: (app, Nami user, External ID or None) of whom it names.
        events: the newest, in the order in which Nami created them.
        has_older: whether older events of theirs were read, which are not among these.
    """

    asked: str
    users: list[tuple[str, str, str | None]]
    events: list[Trace]
    has_older: bool = False

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all events."""
        return [verdict for event in self.events for verdict in event.verdicts]

    @property
    def exit_status(self) -> int:
        """See :data:`~nami_amp_pipeline.operations.verdicts.EXIT`; 1 if no event of the user is known."""
        return exit_status(self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The object of ``trace --json``."""
        return {
            "user": self.asked,
            "users": [
                {"app_id": app, "nami_user": nami_user, "external_id": external}
                for app, nami_user, external in self.users
            ],
            "exit_status": self.exit_status,
            "events": [event.to_json() for event in self.events],
            "has_older": self.has_older,
        }


@dataclass(frozen=True)
class Answer:
    """What became of what was asked for: an event, or the newest events of a user.

    Attributes:
        asked: event id, External ID or Nami user.
        event: what was found of an event of that id; None if it was not looked for, or a user is meant.
        user: what was found of a user of that name; None if it is an event.
        missing: why nothing can be said, in a sentence without a full stop; empty where something can.
    """

    asked: str
    event: Trace | None
    user: UserTrace | None
    missing: str = ""

    @property
    def by_event(self) -> list[tuple[Trace, Verdict]]:
        """All verdicts, each with its event."""
        events = [] if self.missing else [self.event] if self.event else self.user.events if self.user else []
        return [(event, verdict) for event in events for verdict in event.verdicts]

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all events."""
        return [verdict for _, verdict in self.by_event]

    @property
    def summary(self) -> str:
        """How often each word was said, such as ``1 rejected, 2 arrived``; the worst first."""
        if self.missing:
            return "not known"
        if not self.verdicts:
            return "no integration takes it"
        words = Counter(verdict.word for verdict in self.verdicts)
        order = sorted(words, key=lambda word: WORST_FIRST.index(EXIT[word]))
        return ", ".join(f"{words[word]} {word}" for word in order)

    @property
    def verdict(self) -> str:
        """One sentence without a full stop."""
        return self.missing or f"{self.asked}: {self.summary}"

    @property
    def exit_status(self) -> int:
        """See :data:`~nami_amp_pipeline.operations.verdicts.EXIT`; 1 if nothing can be said."""
        found = self.event or self.user
        return 1 if self.missing or found is None else found.exit_status

    def to_json(self) -> dict[str, Any]:
        """The object of ``trace --json``."""
        found = self.event or self.user
        return {} if found is None else found.to_json()


def look_up(
    context: Context,
    asked: str,
    *,
    only_user: bool = False,
    most: int = MOST_EVENTS,
    whole_table: bool = False,
    app_id: str | None = None,
) -> Answer:
    """Looks for an event, and if there is none of that id, for the newest events of a user.

    Args:
        context: the process at work.
        asked: event id, External ID or Nami user.
        only_user: whether it is a user, also if there is an event of that id.
        most: so many events of a user at most.
        whole_table: as in :func:`trace`.
        app_id: looks only in this app; in all by default.
    """
    event = None if only_user else trace(context, asked, whole_table=whole_table, app_id=app_id)
    if event is not None and event.is_known:
        return Answer(asked, event, None)
    user = trace_user(context, asked, most, app_id)
    if user.events:
        return Answer(asked, None, user)
    return Answer(asked, event, user, _missing(asked, event, is_known_user=bool(user.users)))


def _missing(asked: str, event: Trace | None, *, is_known_user: bool) -> str:
    if is_known_user:
        return f"user {asked} is known, but no event of theirs is kept any more"
    if event is not None and event.warehouse_error:
        return (
            f"no event or user {asked} in what was read; the warehouse cannot be asked for newer ones: "
            f"{event.warehouse_error}"
        )
    more = "; --whole-table reads all of the warehouse" if event is not None and not event.warehouse_is_whole else ""
    return f"no event or user {asked}: not in the warehouse, nor among what was read, nor with any integration{more}"


def trace(context: Context, event_id: str, *, whole_table: bool = False, app_id: str | None = None) -> Trace:
    """Looks for an event everywhere; nothing is changed.

    Args:
        context: the process at work.
        event_id: Nami's event id.
        whole_table: reads the whole events table where it takes that to find all rows of an id.
        app_id: looks only in this app; in all by default.
    """
    found = Trace(event_id)
    with compute(context.settings) as connection:
        found.captures = captures_of(context, connection, "id", [event_id], app_id=app_id)
        for capture in found.captures:
            capture["snapshot"] = snapshot_of(context, connection, capture)
            capture["snapshot_sources"] = sources_of(context, connection, capture)
        rows: Sequence[EventRow] = ()
        try:
            places = None if whole_table else _places(context, found.captures)
            looked_up = context.warehouse.find(connection, event_id, places)
            rows = [row for row in looked_up.rows if app_id in (None, row.app_id)]
            found.warehouse_is_whole = looked_up.is_whole
        except WarehouseUnavailable as error:
            found.warehouse_error = str(error)
        found.warehouse = _shown(rows)
        _judge(context, connection, {event_id: found}, {event_id: rows}, app_id)
    return found


def trace_user(context: Context, user: str, most: int = MOST_EVENTS, app_id: str | None = None) -> UserTrace:
    """Looks for the newest events of an External ID or a Nami user, among what was read.

    Args:
        context: the process at work.
        user: External ID, or Nami's user id.
        most: so many events at most.
        app_id: looks only in this app; in all by default.
    """
    table = tables.user_property_snapshots
    with context.store.reading() as tx:
        query = sa.select(table.c.app_id, table.c.user_id, table.c.external_id).where(
            sa.or_(table.c.user_id == user, table.c.external_id == user)
        )
        query = query if app_id is None else query.where(table.c.app_id == app_id)
        users = list(tx.execute(query.order_by(table.c.app_id, table.c.user_id)).tuples())
    nami_users = sorted({nami_user for _, nami_user, _ in users} | {user})
    traces: dict[str, Trace] = {}
    with compute(context.settings) as connection:
        captures = captures_of(context, connection, "user_id", nami_users, most + 1, app_id)
        for capture in captures[-most:]:
            traces.setdefault(capture["event_id"], Trace(capture["event_id"])).captures.append(capture)
        _judge(context, connection, traces, {}, app_id)
    return UserTrace(user, users, list(traces.values()), len(captures) > most)


def _judge(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    traces: dict[str, Trace],
    rows: dict[str, Sequence[EventRow]],
    app_id: str | None,
) -> None:
    """Says of each event what became of it with each integration of its apps."""
    every = all_integrations(context.store) if app_id is None else of_app(context.store, app_id)
    stands = {standing.integration: standing for standing in standings(context, integrations=every)}
    for integration in every:
        standing = stands.get(integration.key)
        if standing is None:  # removed meanwhile
            continue
        places = places_of(context, connection, integration, list(traces))
        _add_backfills(context, connection, integration, places, list(traces))
        for event_id, found in traces.items():
            place = places.get(event_id)
            if place is None and integration.app_id in found.apps:
                capture = next((capture for capture in found.captures if capture["app_id"] == integration.app_id), None)
                place = _before_outbox(integration, capture, rows.get(event_id, ()))
            if place is not None:
                found.integrations.append({"integration": integration.key, **place})
                found.verdicts.append(verdict(place, standing))


def _add_backfills(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    integration: Integration,
    places: dict[str, dict[str, Any]],
    event_ids: Sequence[str],
) -> None:
    """Where a backfill has taken events that live delivery has no place for, or skipped; the newest backfill wins."""
    with context.store.reading() as tx:
        some = [
            made for made in backfills.of_integration(tx, integration.id, "backfill") if made.started_at is not None
        ]
    for backfill in some:
        own = replace(integration, id=backfill.channel_id, backfill_of=integration.id)
        for event_id, place in places_of(context, connection, own, event_ids).items():
            known = places.get(event_id)
            if known is None or "backfill" in known or known["state"] == "skipped":
                places[event_id] = {**place, "backfill": backfill.id}


def _places(context: Context, captures: Sequence[dict[str, Any]]) -> Places:
    """Where rows of an event may be: where it was captured, and among what no run may have read yet."""
    apps = tables.apps
    with context.store.begin() as tx:
        frontiers = tx.execute(sa.select(apps.c.app_id, apps.c.frontier)).all()
    longest_ago = context.now() - UNREAD_DAYS * 86_400_000_000
    return Places(
        [(capture["app_id"], capture["ingested_us"]) for capture in captures],
        {app_id: max(frontier or longest_ago, longest_ago) for app_id, frontier in frontiers},
    )


def _shown(rows: Sequence[EventRow]) -> list[dict[str, Any]]:
    return [
        {
            "app_id": row.app_id,
            "event_type": row.event_type,
            "user_id": row.user_id,
            "created_date": to_text(row.created_date),
            "ingested_at": to_text(row.ingested_at),
        }
        for row in rows
    ]


def _before_outbox(
    integration: Integration, capture: Mapping[str, Any] | None, rows: Sequence[EventRow] = ()
) -> dict[str, Any]:
    """What stands between an event and an integration that has no outbox with it."""
    if capture is None:
        return _unread(integration, [row for row in rows if row.app_id == integration.app_id])
    if capture["event_type"] not in integration.events:
        return {"state": "not_selected", "reason": f"{capture['event_type']} is not selected"}
    start = integration.start_in(capture["segment"])
    if start is not None and capture["ingested_us"] < start:
        if start == integration.start_from:
            return {"state": "before_start", "reason": f"the integration starts with {to_text(start)}"}
        reason = f"the app was read once more for another integration; this one had been read up to {to_text(start)}"
        return {"state": "before_start", "reason": reason}
    if capture["segment"] <= integration.prepared_through:
        return {"state": "expired", "reason": "no record of it is left, or its type was selected later"}
    reason = integration.halted_reason or ("" if integration.enabled else "the integration is off")
    return {"state": "captured", "reason": reason or "the next run prepares it", "at": capture.get("captured_at")}


def _unread(integration: Integration, rows: Sequence[EventRow]) -> dict[str, Any]:
    """What will become of an event that no run has read, if nothing is changed."""
    if rows and all(row.event_type not in integration.events for row in rows):
        return {"state": "not_selected", "reason": f"{rows[0].event_type} is not selected"}
    start = integration.start_of_new
    if rows and start is not None and all(row.ingested_at < start for row in rows):
        return {"state": "before_start", "reason": f"the integration starts with {to_text(start)}"}
    return {"state": "not_captured", "reason": "not read yet" if integration.enabled else "the integration is off"}
