"""Reads the integrations from the state store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.contract import AnonymousPolicy, EventType, RevenueKind, SandboxPolicy, UserIdKind
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction

_TO_COME: Final = 2**62

_FEW: Final = 200
"""Up to so many integrations are read by themselves; of more, all rows are read, which is quicker."""

_MOST_KNOWN: Final = 20_000
"""So many are kept in memory: about 100 MB."""

_OBJECTS: Final = ("rename", "store_fees", "fields", "secret_fields")
"""Columns with JSON objects."""


@dataclass(frozen=True)
class Integration:
    """One Amplitude project that an app's events go to.

    Attributes:
        id: in the store; never reused.
        app_id: the Nami app.
        name: unique in its app.
        enabled: whether anything is sent.
        endpoint: the URL that events are posted to.
        api_key: encrypted.
        secret_key: encrypted; for reconciliation only.
        user_id_kind: which id becomes Amplitude's ``user_id``.
        anonymous: what happens to events of users without an External ID.
        patterns: the selection of event types as it was given.
        events: the event types that the selection covers today.
        rename: Nami's event type to the name in Amplitude.
        start_from: the first ``ingested_at`` that counts, in µs since the epoch; None for the beginning.
        created_at: in µs since the epoch.
        prepared_through: the newest segment that is in an outbox.
        halted_reason: why delivery stopped, until a person enables it.
        last_error: the last error, for people.
        halted_at: when it halted, in µs since the epoch.
        version: raised by every change.
        sandbox: what happens to events of a store's sandbox.
        exclude: payload fields that are never sent.
        hashed: payload fields that are sent as hashes.
        hash_salt: encrypted; None until a field is hashed.
        revenue: which amount is sent as revenue.
        store_fees: the store's share of a price by ``event_platform``, where it is not the default.
        destination: what receives the events.
        backfill_of: the id of the integration that it delivers a backfill for; None of what people set up.
        managed_by: the name of the file that its settings come from; None where people change them one by one.
        fields: those that its destination has of its own and that were given, by name; without secrets.
        secret_fields: the secrets among them, encrypted.
        rereads: (segment, ``ingested_at`` in µs) for each time that the app was read again from an earlier point: in
            segments after that segment, earlier events had already been read for this integration.
    """

    id: int
    app_id: str
    name: str
    enabled: bool
    endpoint: str
    api_key: str = field(repr=False)
    secret_key: str | None = field(repr=False)
    user_id_kind: UserIdKind
    anonymous: AnonymousPolicy
    patterns: tuple[str, ...]
    events: tuple[str, ...]
    rename: Mapping[str, str]
    start_from: int | None
    created_at: int
    prepared_through: int
    halted_reason: str | None
    last_error: str | None
    halted_at: int | None = None
    version: int = 1
    sandbox: SandboxPolicy = "send"
    exclude: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    hash_salt: str | None = field(default=None, repr=False)
    revenue: RevenueKind = "gross"
    store_fees: Mapping[str, float] = field(default_factory=dict)
    destination: str = "amplitude"
    backfill_of: int | None = None
    managed_by: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    secret_fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    rereads: tuple[tuple[int, int], ...] = ()

    def start_in(self, segment_id: int) -> int | None:
        """The first ``ingested_at`` in a segment that counts, in µs since the epoch; None if all of it does."""
        starts = [frontier for after, frontier in self.rereads if segment_id > after]
        return max([*starts, *([] if self.start_from is None else [self.start_from])], default=None)

    @property
    def start_of_new(self) -> int | None:
        """The first ``ingested_at`` that counts in segments that are still to come."""
        return self.start_in(_TO_COME)

    def lacks(self, segment_id: int, newest: int) -> bool:
        """Whether a segment that it has not prepared may hold events for it.

        Args:
            segment_id: the segment.
            newest: the newest ``ingested_at`` of its app in there, in µs since the epoch.
        """
        if segment_id <= self.prepared_through:
            return False
        start = self.start_in(segment_id)
        # Rows from before the start may hold the logins for which its events wait.
        return start is None or newest >= start or self.anonymous == "wait_for_login"

    @property
    def profiles_of(self) -> int:
        """The id of the integration whose users' sent states count: a backfill updates the same profiles."""
        return self.backfill_of if self.backfill_of is not None else self.id

    @property
    def key(self) -> str:
        """``<app_id>/<name>``, as people name it."""
        return f"{self.app_id}/{self.name}"

    @property
    def partition_key(self) -> str:
        """``<app_id>|<name>``, as Dagster names it."""
        return f"{self.app_id}|{self.name}"


def apps_with_integrations(store: Store) -> list[str]:
    """The apps that have an enabled integration."""
    with store.begin() as tx:
        table = tables.integrations
        query = sa.select(table.c.app_id).where(table.c.enabled, table.c.backfill_of.is_(None)).distinct()
        return sorted(tx.execute(query).scalars())


def unknown(key: str, known: Collection[str], store: str = "the state store") -> Misconfigured:
    """The error that there is no such integration, with the one that was perhaps meant, or none at all."""
    if not known:
        return Misconfigured(
            f"there is no integration {key}, nor any other in {store}: 'nami-amp integrations add' adds one; if it "
            "should hold some, set NAMI_AMP_HOME"
        )
    return Misconfigured(
        f"there is no integration {key}{contract.did_you_mean(key, known) or ';'} 'nami-amp integrations list' shows "
        "all integrations"
    )


def all_integrations(store: Store, keys: Sequence[str] | None = None) -> list[Integration]:
    """All integrations in order of their keys, or the named ones in the given order.

    Raises:
        Misconfigured: one of the names is unknown.
    """
    with store.reading() as tx:
        if keys is None or len(keys) > _FEW:
            found = read_all(tx)
        else:
            pairs = [key.partition("/")[::2] for key in keys]
            found = read_all(tx, sa.tuple_(tables.integrations.c.app_id, tables.integrations.c.name).in_(pairs))
    if keys is None:
        return found
    known = {integration.key: integration for integration in found}
    for key in keys:
        if key not in known:
            with store.reading() as tx:
                known = {integration.key: integration for integration in read_all(tx)}
            where = Path(store.url.removeprefix("sqlite:///")).absolute() if store.is_sqlite else store.name
            raise unknown(key, known, str(where))
    return [known[key] for key in dict.fromkeys(keys)]


def is_there_any(store: Store) -> bool:
    """Whether there is an integration."""
    table = tables.integrations
    with store.reading() as tx:
        return tx.execute(sa.select(table.c.id).where(table.c.backfill_of.is_(None)).limit(1)).first() is not None


def of_app(store: Store, app_id: str) -> list[Integration]:
    """The integrations of an app, by name."""
    with store.reading() as tx:
        return read_all(tx, tables.integrations.c.app_id == app_id)


def read_all(tx: Transaction, *conditions: sa.ColumnElement[bool]) -> list[Integration]:
    """The integrations by key, in a transaction that is open already; rows that belong to a backfill are left out."""
    table = tables.integrations
    rereads = _rereads(tx)
    query = sa.select(table).where(table.c.backfill_of.is_(None), *conditions).order_by(table.c.app_id, table.c.name)
    return [_from_row(row, rereads) for row in tx.execute(query).all()]


def find(tx: Transaction, key: str, *, lock: bool = False) -> Integration | None:
    """An integration by ``<app_id>/<name>``, in a transaction that is open already; None if there is none.

    Args:
        tx: the transaction.
        key: its key.
        lock: whether nobody else may change it until the transaction ends.
    """
    app_id, _, name = key.partition("/")
    table = tables.integrations
    query = sa.select(table).where(table.c.app_id == app_id, table.c.name == name, table.c.backfill_of.is_(None))
    row = tx.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _from_row(row, _rereads(tx))


def refreshed(tx: Transaction, integrations: Sequence[Integration]) -> list[Integration]:
    """The same integrations, read again; removed ones are left out."""
    found = by_id(tx, [integration.id for integration in integrations])
    return [found[integration.id] for integration in integrations if integration.id in found]


def by_id(tx: Transaction, ids: Collection[int]) -> dict[int, Integration]:
    """The integrations of these ids, by id; those that do not exist are left out."""
    if not ids:
        return {}
    table, wanted = tables.integrations, set(ids)
    rows = tx.execute(sa.select(table).where(only_of(table.c.id, ids))).all()
    rereads = _rereads(tx)
    return {row.id: _from_row(row, rereads) for row in rows if row.id in wanted}


def only_of(column: sa.ColumnElement[int], ids: Collection[int]) -> sa.ColumnElement[bool]:
    """The condition that rows are of these integrations; where these are many, none: who reads leaves the others out.

    Args:
        column: with the id of an integration.
        ids: of integrations.
    """
    return column.in_(ids) if len(ids) <= _FEW else sa.true()


def get(store: Store, key: str) -> Integration:
    """One integration by ``<app_id>/<name>``.

    Raises:
        Misconfigured: there is none of that name.
    """
    return all_integrations(store, [key])[0]


def _rereads(tx: Transaction) -> dict[str, list[Any]]:
    """Those of each app."""
    found: dict[str, list[Any]] = {}
    for reread in tx.execute(sa.select(tables.rereads)):
        found.setdefault(reread.app_id, []).append(reread)
    return found


class _Known:
    """The integrations by what was read: a tick reads all of them again and again, and few change meanwhile."""

    def __init__(self) -> None:
        self._types: tuple[EventType, ...] = ()
        self._made: dict[tuple[Any, ...], Integration] = {}
        self._selections: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def of(self, row: Any, rereads: tuple[tuple[int, int], ...]) -> Integration:
        """The integration of a row."""
        if self._types is not contract.EVENT_TYPES or len(self._made) >= _MOST_KNOWN:
            self._types, self._made, self._selections = contract.EVENT_TYPES, {}, {}
        key = (*row, rereads)
        known = self._made.get(key)
        if known is None:
            known = self._made[key] = _made(row, self._selection(row.events), rereads)
        return known

    def _selection(self, text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """A selection from its JSON text, and the types that it covers; most integrations share a few texts."""
        if text not in self._selections:
            patterns = tuple(orjson.loads(text))
            covered = {event_type.name for event_type in contract.select_events(patterns)}
            self._selections[text] = patterns, tuple(each.name for each in self._types if each.name in covered)
        return self._selections[text]


_KNOWN = _Known()


def _from_row(row: Any, rereads: Mapping[str, Sequence[Any]]) -> Integration:
    of_app = rereads.get(row.app_id)
    if of_app is None:
        return _KNOWN.of(row, ())
    mine = tuple((reread.after_segment, reread.frontier) for reread in of_app if reread.integration_id > row.id)
    return _KNOWN.of(row, mine)


def _made(
    row: Any, selection: tuple[tuple[str, ...], tuple[str, ...]], rereads: tuple[tuple[int, int], ...]
) -> Integration:
    """The fields are called as the columns are, but for few; thousands are made in a tick, hence no long list."""
    values = row._asdict()
    del values["counted_since"]
    for name in _OBJECTS:
        values[name] = orjson.loads(values[name])
    return Integration(
        **values
        | {
            "enabled": bool(row.enabled),
            "patterns": selection[0],
            "events": selection[1],
            "exclude": tuple(orjson.loads(row.exclude)),
            "hashed": tuple(orjson.loads(values.pop("hash"))),
            "rereads": rereads,
        }
    )
