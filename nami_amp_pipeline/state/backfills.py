"""Records of backfills and identifies: what they send, states and files; one function changes a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Store, Transaction

State = Literal["planned", "running", "paused", "done", "cancelled", "failed"]

Kind = Literal["backfill", "identify"]
"""What it sends: the events of a window, or the current snapshots of users. The rest is the same for both."""

_NEXT: Final[Mapping[str, frozenset[str]]] = {
    "planned": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"paused", "done", "cancelled", "failed"}),
    "paused": frozenset({"running", "cancelled", "failed"}),
    "done": frozenset(),
    "cancelled": frozenset(),
    "failed": frozenset({"running", "cancelled"}),
}
"""Each state, and those that may follow it."""

LEASE: Final = "backfill:"
"""What the name of a backfill's lease begins with; its number follows."""

ASKED_FOR: Final = "asked for"
"""In place of a run's id: nobody has made the dry run yet that a person asked for on a page."""

ENDED: Final = ("done", "cancelled")
"""Nothing follows these. What failed can be resumed, once its cause is gone, and keeps its files until then."""

UNFINISHED: Final = ("running", "paused", "failed")
"""What has taken events on and not brought all of them to their end: one of an integration at a time."""


@dataclass(frozen=True)
class Backfill:
    """A backfill or an identify; times in µs since the epoch.

    Attributes:
        id: its number.
        kind: what it sends.
        integration_id: of the integration that it belongs to.
        channel_id: of the row of ``integrations`` through which it delivers.
        integration: ``<app_id>/<name>``.
        since, until: the window; ``until`` is the first instant after it. Of an identify, ``since`` is the time from
            which on its users were sent nothing, 0 for all users.
        by: which time of a row counts.
        patterns: event types as they were given; None for those of the integration.
        resend: whether events are sent that Amplitude would store a second time.
        state: see :data:`State`.
        created_at, created_by: when, and in whose name.
        started_at, ended_at: when it began to run, and when it ended.
        run_id: Dagster's, of the run that worked on it last; or another name.
        events: of the window, or users; None until they have been read.
        plan: the counts of a dry run.
        compared_through: how far the integration was prepared when what is to be posted was last compared with the
            states that its users were sent.
        error: why it stands still or failed.
    """

    id: int
    kind: Kind
    integration_id: int
    channel_id: int
    integration: str
    since: int
    until: int
    by: Literal["created_date", "ingested_at"]
    patterns: tuple[str, ...] | None
    resend: bool
    state: State
    created_at: int
    created_by: str
    started_at: int | None
    ended_at: int | None
    run_id: str | None
    events: int | None
    plan: Mapping[str, Any] | None
    compared_through: int | None
    error: str | None

    @property
    def lease(self) -> str:
        """The name of the lease of the process that works on it."""
        return lease_of(self.id)

    @property
    def called(self) -> str:
        """As people name it."""
        return f"{self.kind} {self.id}"

    @property
    def channel_name(self) -> str:
        """What follows the integration's name in the name of the row through which it delivers."""
        return channel_name(self.kind, self.id)


@dataclass(frozen=True)
class BackfillFile:
    """Rows of a backfill for a share of the users.

    Attributes:
        id: in the store.
        file: relative to the data folder.
        rows: all of them.
        events: those in the window; of an identify, its users.
        is_prepared: whether their outbox was written.
        found: by what was found of them, how many events of the window.
    """

    id: int
    file: str
    rows: int
    events: int
    is_prepared: bool
    found: Mapping[str, int]

    @property
    def segment_id(self) -> int:
        """What its outbox names as its segment: a number that no segment has."""
        return -self.id


def lease_of(backfill_id: int) -> str:
    """The name of the lease of the process that works on a backfill."""
    return f"{LEASE}{backfill_id}"


def add(
    store: Store,
    tx: Transaction,
    integration: Integration,
    *,
    kind: Kind = "backfill",
    since: int,
    until: int = 0,
    by: str = "created_date",
    patterns: Sequence[str] | None = None,
    resend: bool = False,
    created_by: str,
) -> int:
    """Adds a planned backfill or identify, with the row through which it delivers; returns its number."""
    table = tables.integrations
    now = micros(store.clock)
    source = tx.execute(sa.select(table).where(table.c.id == integration.id)).one()._mapping
    own = {
        "name": f"{integration.name}~{now}",
        "enabled": False,
        "backfill_of": integration.id,
        # It posts with its integration's keys as they are then, and keeps none: they may be replaced or removed.
        "api_key": "",
        "secret_key": None,
        "hash_salt": None,
        "created_at": now,
        "start_from": None,
        "prepared_through": 0,
        "halted_reason": None,
        "halted_at": None,
        "last_error": None,
    }
    values = {name: source[name] for name in source if name != "id"} | own
    channel_id = _id_of(tx.execute(sa.insert(table).values(values)))
    backfill_id = _id_of(
        tx.execute(
            sa.insert(tables.backfills).values(
                kind=kind,
                integration_id=integration.id,
                channel_id=channel_id,
                since=since,
                until=until,
                by=by,
                events=orjson.dumps(list(patterns)).decode() if patterns is not None else None,
                resend=resend,
                state="planned",
                created_at=now,
                created_by=created_by,
            )
        )
    )
    tx.execute(
        sa.update(table)
        .where(table.c.id == channel_id)
        .values(name=f"{integration.name}~{channel_name(kind, backfill_id)}")
    )
    return backfill_id


def channel_name(kind: Kind, backfill_id: int) -> str:
    """See :attr:`Backfill.channel_name`."""
    return f"{kind}-{backfill_id}"


def move(store: Store, tx: Transaction, backfill_id: int, state: State, **values: Any) -> Backfill:
    """Changes the state of a backfill, and columns along with it.

    Raises:
        Misconfigured: there is no such backfill, or that state cannot follow its present one.
    """
    table = tables.backfills
    query = sa.select(table.c.state, table.c.kind).where(table.c.id == backfill_id).with_for_update()
    row = tx.execute(query).one_or_none()
    if row is None:
        raise _unknown(backfill_id)
    if state != row.state and state not in _NEXT[row.state]:
        raise Misconfigured(f"{row.kind} {backfill_id} is {row.state}: it cannot become {state}")
    now = micros(store.clock)
    if state == "running":
        values.setdefault("error", None)
        values["started_at"] = sa.func.coalesce(table.c.started_at, now)
    if state in ENDED:
        values["ended_at"] = now
    tx.execute(sa.update(table).where(table.c.id == backfill_id).values(state=state, **values))
    return get(tx, backfill_id)


def note(tx: Transaction, backfill_id: int, **values: Any) -> None:
    """Notes columns of a backfill that do not change its state."""
    tx.execute(sa.update(tables.backfills).where(tables.backfills.c.id == backfill_id).values(**values))


def get(tx: Transaction, backfill_id: int) -> Backfill:
    """A backfill by its number.

    Raises:
        Misconfigured: there is none of that number.
    """
    for backfill in read(tx, tables.backfills.c.id == backfill_id):
        return backfill
    raise _unknown(backfill_id)


def read(tx: Transaction, *conditions: sa.ColumnElement[bool], newest: int | None = None) -> list[Backfill]:
    """The backfills that fulfil conditions, the oldest first; all of them, or the newest so many."""
    table, integrations = tables.backfills, tables.integrations
    query = (
        sa.select(table, integrations.c.app_id, integrations.c.name)
        .join(integrations, integrations.c.id == table.c.integration_id)
        .where(*conditions)
        .order_by(table.c.id.desc())
        .limit(newest)
    )
    return [_from_row(row) for row in tx.execute(query)][::-1]


def of_integration(tx: Transaction, integration_id: int, kind: Kind | None = None) -> list[Backfill]:
    """The backfills and identifies of an integration, or those of a kind, the oldest first."""
    table = tables.backfills
    return read(tx, table.c.integration_id == integration_id, *([table.c.kind == kind] if kind is not None else []))


def add_files(tx: Transaction, backfill_id: int, files: Sequence[tuple[str, int, int]]) -> None:
    """Registers the files of a backfill: (file, rows, events in the window)."""
    rows = [{"backfill_id": backfill_id, "file": file, "rows": rows, "events": events} for file, rows, events in files]
    if rows:
        tx.execute(sa.insert(tables.backfill_files), rows)


def files_of(tx: Transaction, backfill_id: int) -> list[BackfillFile]:
    """The files of a backfill, in the order in which they are prepared."""
    table = tables.backfill_files
    rows = tx.execute(sa.select(table).where(table.c.backfill_id == backfill_id).order_by(table.c.id))
    return [
        BackfillFile(
            row.id,
            row.file,
            row.rows,
            row.events,
            row.prepared_at is not None,
            orjson.loads(row.found) if row.found is not None else {},
        )
        for row in rows
    ]


def note_file(tx: Transaction, file_id: int, **values: Any) -> None:
    """Notes columns of a file."""
    tx.execute(sa.update(tables.backfill_files).where(tables.backfill_files.c.id == file_id).values(**values))


def _id_of(result: sa.CursorResult[Any]) -> int:
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def _unknown(backfill_id: int) -> Misconfigured:
    return Misconfigured(f"there is no backfill or identify {backfill_id}; 'nami-amp backfills list' shows all of both")


def _from_row(row: Any) -> Backfill:
    return Backfill(
        id=row.id,
        kind=row.kind,
        integration_id=row.integration_id,
        channel_id=row.channel_id,
        integration=f"{row.app_id}/{row.name}",
        since=row.since,
        until=row.until,
        by=row.by,
        patterns=tuple(orjson.loads(row.events)) if row.events is not None else None,
        resend=bool(row.resend),
        state=row.state,
        created_at=row.created_at,
        created_by=row.created_by,
        started_at=row.started_at,
        ended_at=row.ended_at,
        run_id=row.run_id,
        events=row.events_in_window,
        plan=orjson.loads(row.plan) if row.plan is not None else None,
        compared_through=row.compared_through,
        error=row.error,
    )
