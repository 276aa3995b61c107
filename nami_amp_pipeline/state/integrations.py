"""The integrations: adding, changing, switching and removing them, with a record of who changed what."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros, to_text
from nami_amp_pipeline.contract import AnonymousPolicy, RevenueKind, SandboxPolicy, UserIdKind
from nami_amp_pipeline.errors import Busy, Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import integration_rules as rules
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import (
    Integration,
    all_integrations,
    apps_with_integrations,
    get,
    read_all,
    reread,
)
from nami_amp_pipeline.state.integration_rules import check_endpoint
from nami_amp_pipeline.state.store import Store, Transaction

__all__ = [
    "UNCHANGED",
    "ChangeRecord",
    "Integration",
    "IntegrationChange",
    "NewIntegration",
    "Unchanged",
    "add",
    "all_integrations",
    "apps_with_integrations",
    "change",
    "check_endpoint",
    "get",
    "halt",
    "history",
    "hold_keys",
    "read_all",
    "remove",
    "removed_since",
    "reread",
    "set_enabled",
    "set_plan",
    "sharing_a_key",
]

T = TypeVar("T")

_ENCRYPTING = 7_263_104_286  # any number that is ours alone
_SALT_BYTES = 32


class Unchanged(Enum):
    """The type of :data:`UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""In place of a value that stays as it is."""


@dataclass(frozen=True)
class NewIntegration:
    """What a person gives to add an integration; see :class:`Integration`."""

    app_id: str
    name: str
    endpoint: str
    api_key: Secret
    secret_key: Secret | None = None
    user_id_kind: UserIdKind = "external_id"
    anonymous: AnonymousPolicy = "skip"
    events: Sequence[str] = ("all",)
    rename: Mapping[str, str] = field(default_factory=dict)
    start_from: int | None = None
    enabled: bool = True
    sandbox: SandboxPolicy = "send"
    exclude: Sequence[str] = ()
    hashed: Sequence[str] = ()
    revenue: RevenueKind = "gross"
    store_fees: Mapping[str, float] = field(default_factory=dict)
    allow_custom_endpoint: bool = False
    allow_shared_key: bool = False


@dataclass(frozen=True)
class IntegrationChange:
    """What a person changes of an integration; what is :data:`UNCHANGED` stays as it is.

    ``secret_key=None`` takes the secret key away; ``start_from=None`` is the beginning. See :class:`Integration`.
    """

    endpoint: str | Unchanged = UNCHANGED
    api_key: Secret | Unchanged = UNCHANGED
    secret_key: Secret | Unchanged | None = UNCHANGED
    user_id_kind: UserIdKind | Unchanged = UNCHANGED
    anonymous: AnonymousPolicy | Unchanged = UNCHANGED
    events: Sequence[str] | Unchanged = UNCHANGED
    rename: Mapping[str, str] | Unchanged = UNCHANGED
    start_from: int | Unchanged | None = UNCHANGED
    enabled: bool | Unchanged = UNCHANGED
    sandbox: SandboxPolicy | Unchanged = UNCHANGED
    exclude: Sequence[str] | Unchanged = UNCHANGED
    hashed: Sequence[str] | Unchanged = UNCHANGED
    revenue: RevenueKind | Unchanged = UNCHANGED
    store_fees: Mapping[str, float] | Unchanged = UNCHANGED
    allow_custom_endpoint: bool = False
    allow_shared_key: bool = False


@dataclass(frozen=True)
class ChangeRecord:
    """One change of an integration.

    Attributes:
        version: that the integration had from then on.
        at: when, in µs since the epoch.
        by: who.
        what: by field, the value before and after; of keys only that they were set or changed.
    """

    version: int
    at: int
    by: str
    what: Mapping[str, tuple[Any, Any]]


def add(store: Store, cipher: Cipher, new: NewIntegration, *, by: str = "") -> Integration:
    """Adds an integration, and its app where that is new.

    Args:
        store: where to.
        cipher: for the keys.
        new: what to add.
        by: who adds it.

    Raises:
        Misconfigured: a value cannot be used, the name is taken, the key is another integration's, or the app is not on
            a paid plan.
    """
    key = f"{rules.check_app_id(new.app_id)}/{rules.check_name(new.name)}"
    values = _checked(new)
    api_key = rules.check_key(new.api_key, "API key")
    secret_key = rules.check_key(new.secret_key, "secret key") if new.secret_key is not None else None
    with store.begin() as tx:
        hold_keys(store, tx)
        plan = tx.execute(sa.select(tables.apps.c.plan).where(tables.apps.c.app_id == new.app_id)).scalar()
        if plan == "free" and new.enabled:
            raise _not_paid(new.app_id)
        if plan is None:
            tx.execute(sa.insert(tables.apps).values(app_id=new.app_id))
        taken = sa.select(tables.integrations.c.id).where(
            tables.integrations.c.app_id == new.app_id, tables.integrations.c.name == new.name
        )
        if tx.execute(taken).scalar() is not None:
            raise Misconfigured(f"integration {key} exists already")
        if not new.allow_shared_key:
            _refuse_shared(tx, cipher, new.app_id, new.name, api_key, rules.check_events(new.events))
        added = tx.execute(
            sa.insert(tables.integrations).values(
                app_id=new.app_id,
                name=new.name,
                api_key=cipher.encrypt(api_key),
                secret_key=cipher.encrypt(secret_key) if secret_key is not None else None,
                hash_salt=_new_salt(cipher) if new.hashed else None,
                start_from=new.start_from,
                enabled=new.enabled,
                created_at=micros(store.clock),
                **values,
            )
        )
        assert added.inserted_primary_key is not None
        _read_from(tx, int(added.inserted_primary_key[0]), new.app_id, new.start_from)
        _note(store, tx, key, 1, by, {"added": (False, True)})
    return get(store, key)


def change(
    store: Store, cipher: Cipher, key: str, wanted: IntegrationChange, *, by: str = "", if_version: int | None = None
) -> Integration:
    """Changes settings of an integration; each change raises its version and is recorded.

    It holds for what is in no outbox yet; keys and endpoint for all that is still to be posted. A run that is under way
    goes on with what it began with. A halt stays until :func:`set_enabled`.

    Args:
        store: where it is.
        cipher: for the keys.
        key: ``<app_id>/<name>``.
        wanted: what to change.
        by: who changes it.
        if_version: the version that the change was made for.

    Raises:
        Misconfigured: there is none of that name, a value cannot be used, or somebody else changed it since.
        Busy: a run works for it, and its start is to move back.
    """
    one = get(store, key)
    held = {}
    if not isinstance(wanted.start_from, Unchanged) and _is_earlier(wanted.start_from, one.start_from):
        held = store.acquire([f"integration:{one.id}"])
        if not held:
            raise Busy(f"a run works for {key} right now: move its start when that has ended")
    try:
        with store.begin(under=held.values()) as tx:
            hold_keys(store, tx)
            _change(store, tx, cipher, _locked(tx, key), wanted, by, if_version)
    finally:
        store.release(held.values())
    return get(store, key)


def _change(
    store: Store,
    tx: Transaction,
    cipher: Cipher,
    one: Integration,
    wanted: IntegrationChange,
    by: str,
    if_version: int | None,
) -> None:
    if if_version is not None and if_version != one.version:
        raise Misconfigured(_changed_since(tx, one, if_version))
    values, what = _differences(cipher, one, wanted)
    if not what:
        return
    if wanted.enabled is True and not one.enabled and _plan(tx, one.app_id) == "free":
        raise _not_paid(one.app_id)
    if not wanted.allow_shared_key and ("api_key" in what or "events" in what):
        api_key = cipher.decrypt(one.api_key) if isinstance(wanted.api_key, Unchanged) else wanted.api_key
        _refuse_shared(tx, cipher, one.app_id, one.name, api_key, _given(wanted.events, one.patterns))
    if "start_from" in what and _is_earlier(values["start_from"], one.start_from):
        _start_earlier(tx, one, values)
    tx.execute(
        sa.update(tables.integrations)
        .where(tables.integrations.c.id == one.id)
        .values(version=one.version + 1, **values)
    )
    _note(store, tx, one.key, one.version + 1, by, what)


def _locked(tx: Transaction, key: str) -> Integration:
    """An integration that nobody else changes before the transaction ends."""
    app_id, _, name = key.partition("/")
    table = tables.integrations
    tx.execute(sa.select(table.c.id).where(table.c.app_id == app_id, table.c.name == name).with_for_update())
    for one in read_all(tx):
        if one.key == key:
            return one
    raise Misconfigured(f"there is no integration {key}; 'nami-amp integrations list' shows those there are")


def _differences(
    cipher: Cipher, one: Integration, wanted: IntegrationChange
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The columns to write, and what is recorded of it, of what is not as it is wanted."""
    before = NewIntegration(
        one.app_id,
        one.name,
        one.endpoint,
        Secret(""),
        user_id_kind=one.user_id_kind,
        anonymous=one.anonymous,
        events=one.patterns,
        rename=one.rename,
        sandbox=one.sandbox,
        exclude=one.exclude,
        hashed=one.hashed,
        revenue=one.revenue,
        store_fees=one.store_fees,
        allow_custom_endpoint=True,
    )
    after = NewIntegration(
        one.app_id,
        one.name,
        _given(wanted.endpoint, one.endpoint),
        Secret(""),
        user_id_kind=_given(wanted.user_id_kind, one.user_id_kind),
        anonymous=_given(wanted.anonymous, one.anonymous),
        events=_given(wanted.events, one.patterns),
        rename=_given(wanted.rename, one.rename),
        sandbox=_given(wanted.sandbox, one.sandbox),
        exclude=_given(wanted.exclude, one.exclude),
        hashed=_given(wanted.hashed, one.hashed),
        revenue=_given(wanted.revenue, one.revenue),
        store_fees=_given(wanted.store_fees, one.store_fees),
        allow_custom_endpoint=wanted.allow_custom_endpoint or isinstance(wanted.endpoint, Unchanged),
    )
    old, new = _checked(before, known=True), _checked(after)
    values = {name: value for name, value in new.items() if value != old[name]}
    what = {_FIELDS.get(name, name): (_plain(name, old[name]), _plain(name, new[name])) for name in values}
    for name, moved, is_now in (
        ("enabled", wanted.enabled, one.enabled),
        ("start_from", wanted.start_from, one.start_from),
    ):
        if not isinstance(moved, Unchanged) and moved != is_now:
            values[name] = moved
            what[name] = (_plain(name, is_now), _plain(name, moved))
    values |= _keys(cipher, one, wanted, what)
    if new["hash"] != "[]" and one.hash_salt is None:
        values["hash_salt"] = _new_salt(cipher)
    return values, what


def _keys(
    cipher: Cipher, one: Integration, wanted: IntegrationChange, what: dict[str, tuple[Any, Any]]
) -> dict[str, str | None]:
    """The keys that change, encrypted; adds to what is recorded that they did."""
    values: dict[str, str | None] = {}
    if not isinstance(wanted.api_key, Unchanged):
        values["api_key"] = cipher.encrypt(rules.check_key(wanted.api_key, "API key"))
        what["api_key"] = ("set", "changed")
    if isinstance(wanted.secret_key, Secret):
        values["secret_key"] = cipher.encrypt(rules.check_key(wanted.secret_key, "secret key"))
        what["secret_key"] = ("set", "changed") if one.secret_key else ("not set", "set")
    elif wanted.secret_key is None and one.secret_key is not None:
        values["secret_key"] = None
        what["secret_key"] = ("set", "not set")
    return values


_FIELDS = {"user_id_kind": "user_id"}
"""What people call a column of another name."""

_JSON = ("events", "rename", "exclude", "hash", "store_fees")


def _checked(given: NewIntegration, *, known: bool = False) -> dict[str, Any]:
    """The columns of all that is given but keys, start and switch.

    Args:
        given: what was given.
        known: whether it stands in the store already, so that it is not to be judged again.

    Raises:
        Misconfigured: a value cannot be used.
    """
    values: dict[str, Any] = {
        name: getattr(given, name) for name in ("user_id_kind", "anonymous", "sandbox", "revenue", "endpoint")
    }
    structured: dict[str, Any] = {
        "events": tuple(given.events),
        "rename": dict(given.rename),
        "exclude": tuple(given.exclude),
        "hash": tuple(given.hashed),
        "store_fees": dict(given.store_fees),
    }
    if not known:
        rules.check_choice(given.user_id_kind, contract.USER_ID_KINDS, "the user id")
        rules.check_choice(given.anonymous, contract.ANONYMOUS_POLICIES, "what to do with anonymous users")
        rules.check_choice(given.sandbox, contract.SANDBOX_POLICIES, "what to do with sandbox events")
        rules.check_choice(given.revenue, contract.REVENUE_KINDS, "the revenue")
        values["endpoint"] = rules.check_endpoint(given.endpoint, allow_custom=given.allow_custom_endpoint)
        exclude, hashed = rules.check_fields(given.exclude, given.hashed)
        structured = {
            "events": rules.check_events(given.events),
            "rename": rules.check_rename(given.rename),
            "exclude": exclude,
            "hash": hashed,
            "store_fees": rules.check_fees(given.store_fees),
        }
        if given.user_id_kind == "external_id" and "external_ids" in (*exclude, *hashed):
            raise Misconfigured("'external_ids' cannot be excluded or hashed while users go by their External ID")
    return values | {name: orjson.dumps(value).decode() for name, value in structured.items()}


def _plain(name: str, value: Any) -> Any:
    """A value as it is recorded."""
    if name == "start_from":
        return to_text(value) or "beginning"
    return orjson.loads(value) if name in _JSON else value


def _given(value: T | Unchanged, otherwise: T) -> T:
    return otherwise if isinstance(value, Unchanged) else value


def _new_salt(cipher: Cipher) -> str:
    return cipher.encrypt(Secret(secrets.token_hex(_SALT_BYTES)))


def _is_earlier(start: int | None, than: int | None) -> bool:
    return than is not None and (start is None or start < than)


def _start_earlier(tx: Transaction, one: Integration, values: dict[str, Any]) -> None:
    """Moves the start of an integration back that nothing was captured for: as if it were added now.

    Raises:
        Misconfigured: what it has in outboxes, or what younger integrations have, could come a second time.
    """
    counts, table = tables.counts, tables.integrations
    captured = tx.execute(
        sa.select(counts.c.events).where(counts.c.integration_id == one.id, counts.c.state == "captured")
    ).scalar()
    if captured:
        raise Misconfigured(
            f"{one.key} has events already, so its start can move to a later time only: earlier events would be sent "
            "out of order, and some twice"
        )
    youngest = tx.execute(sa.select(sa.func.max(table.c.id)).where(table.c.app_id == one.app_id)).scalar()
    if youngest != one.id:
        raise Misconfigured(
            f"{one.key} is not the newest integration of its app, so its start can move to a later time only: nothing "
            "was captured for it yet, so remove it and add it again"
        )
    values["prepared_through"] = 0
    tx.execute(sa.delete(tables.rereads).where(tables.rereads.c.integration_id == one.id))
    _read_from(tx, one.id, one.app_id, values["start_from"])


def _changed_since(tx: Transaction, one: Integration, version: int) -> str:
    """Who changed what since a version, in one line."""
    later = [record for record in _records(tx, one.key) if record.version > version]
    told = "; ".join(
        f"version {record.version} by {record.by or 'somebody'} at {to_text(record.at)}: {', '.join(record.what)}"
        for record in later[-3:]
    )
    return (
        f"{one.key} has version {one.version}, not {version}{f' ({told})' if told else ''}: look at it again "
        f"('nami-amp integrations show {one.key}'), then change it"
    )


def history(store: Store, key: str) -> list[ChangeRecord]:
    """The changes of an integration, the oldest first; those of one that was removed stay."""
    with store.begin() as tx:
        return _records(tx, key)


def removed_since(store: Store, seen: int, limit: int) -> tuple[list[str], int]:
    """Integrations that were removed since somebody looked last.

    Args:
        store: the store.
        seen: the number of the last change that was looked at; 0 at first.
        limit: how many changes are looked at.

    Returns:
        ``<app_id>/<name>`` of those that are gone, and the number of the last change.

    Raises:
        StoreUnavailable: the store cannot be read.
    """
    table = tables.integration_changes
    query = sa.select(table.c.id, table.c.integration, table.c.what).where(table.c.id > seen)
    with store.reading() as tx:
        rows = tx.execute(query.order_by(table.c.id).limit(limit)).all()
    return [row.integration for row in rows if "removed" in orjson.loads(row.what)], rows[-1].id if rows else seen


def _records(tx: Transaction, key: str) -> list[ChangeRecord]:
    table = tables.integration_changes
    rows = tx.execute(sa.select(table).where(table.c.integration == key).order_by(table.c.id))
    return [
        ChangeRecord(row.version, row.at, row.by, {name: tuple(pair) for name, pair in orjson.loads(row.what).items()})
        for row in rows
    ]


def _note(store: Store, tx: Transaction, key: str, version: int, by: str, what: Mapping[str, tuple[Any, Any]]) -> None:
    tx.execute(
        sa.insert(tables.integration_changes).values(
            integration=key, version=version, at=micros(store.clock), by=by, what=orjson.dumps(dict(what)).decode()
        )
    )


def sharing_a_key(integrations: Sequence[Integration], cipher: Cipher) -> list[tuple[Integration, Integration]]:
    """Pairs of integrations of one app with one API key and event types in common.

    Amplitude knows an event by its ``insert_id`` in a project: of the two copies it drops the second, after a 200.
    Integrations of which the key cannot be decrypted are left aside.
    """
    seen: dict[tuple[str, str], list[Integration]] = {}
    pairs = []
    for one in integrations:
        try:
            key = cipher.decrypt(one.api_key).reveal()
        except Misconfigured:
            continue
        others = seen.setdefault((one.app_id, key), [])
        pairs += [(other, one) for other in others if set(other.events) & set(one.events)]
        others.append(one)
    return pairs


def _refuse_shared(
    tx: Transaction, cipher: Cipher, app_id: str, name: str, api_key: Secret, patterns: Sequence[str]
) -> None:
    events = {one.name for one in contract.select_events(patterns)}
    for other in read_all(tx):
        if other.app_id != app_id or other.name == name or not events & set(other.events):
            continue
        try:
            same = cipher.decrypt(other.api_key).reveal() == api_key.reveal().strip()
        except Misconfigured:
            continue
        if same:
            raise Misconfigured(
                f"{other.key} has the same API key and event types in common with it: Amplitude would keep one of two "
                "copies of an event; select other events, or give --allow-shared-key"
            )


def hold_keys(store: Store, tx: Transaction, *, alone: bool = False) -> None:
    """Keeps the encryption keys from being rotated until the transaction ends; on SQLite writing alone does that.

    Args:
        store: for its kind.
        tx: the transaction.
        alone: to rotate them: waits for all who encrypt, and keeps others from it.
    """
    if not store.is_sqlite:
        lock = sa.func.pg_advisory_xact_lock if alone else sa.func.pg_advisory_xact_lock_shared
        tx.execute(sa.select(lock(_ENCRYPTING)))


def _read_from(tx: Transaction, integration_id: int, app_id: str, start_from: int | None) -> None:
    """Lets an app that has been read further already be read from the start of a new integration.

    What the ledger has forgotten by now is captured once more then; that is noted, for the app's other integrations.
    """
    apps = tables.apps
    frontier = tx.execute(sa.select(apps.c.frontier).where(apps.c.app_id == app_id)).scalar()
    if frontier is not None and (start_from is None or start_from < frontier):
        # NULL would make the app begin at the earliest start of its integrations, which this one now is.
        tx.execute(sa.update(apps).where(apps.c.app_id == app_id).values(frontier=start_from))
        newest = tx.execute(sa.select(sa.func.coalesce(sa.func.max(tables.segments.c.id), 0))).scalar_one()
        tx.execute(
            sa.insert(tables.rereads).values(
                integration_id=integration_id, app_id=app_id, frontier=frontier, after_segment=newest
            )
        )


def _not_paid(app_id: str) -> Misconfigured:
    return Misconfigured(f"app {app_id} is not on a paid plan: its organisation needs one to enable an integration")


def _plan(tx: Transaction, app_id: str) -> str | None:
    plan: str | None = tx.execute(sa.select(tables.apps.c.plan).where(tables.apps.c.app_id == app_id)).scalar()
    return plan


def set_enabled(store: Store, key: str, *, enabled: bool, by: str = "") -> Integration:
    """Switches an integration on or off; on again it goes on where it stopped, and a halt is forgotten.

    Raises:
        Misconfigured: there is none of that name, or its app is not on a paid plan.
    """
    with store.begin() as tx:
        one = _locked(tx, key)
        if enabled and _plan(tx, one.app_id) == "free":
            raise _not_paid(one.app_id)
        values: dict[str, Any] = {}
        if enabled != one.enabled:
            values |= {"enabled": enabled, "version": one.version + 1}
            _note(store, tx, key, one.version + 1, by, {"enabled": (one.enabled, enabled)})
        if enabled:
            values |= {"halted_reason": None, "halted_at": None, "last_error": None}
        if values:
            tx.execute(sa.update(tables.integrations).where(tables.integrations.c.id == one.id).values(**values))
    return get(store, key)


def remove(store: Store, key: str, *, by: str = "") -> list[str]:
    """Removes an integration with its outboxes, receipts and dead letters; what it sent stays in Amplitude.

    Returns:
        Files that nothing refers to any more, relative to the data folder.

    Raises:
        Misconfigured: there is none of that name.
    """
    integration = get(store, key)
    table = tables.outboxes
    with store.begin() as tx:
        files = set(tx.execute(sa.select(table.c.file).where(table.c.integration_id == integration.id)).scalars())
        receipts = tx.execute(
            sa.select(table.c.receipts_file).where(
                table.c.integration_id == integration.id, table.c.receipts_file.is_not(None)
            )
        ).scalars()
        gone = set(receipts)
        tx.execute(sa.delete(tables.integrations).where(tables.integrations.c.id == integration.id))
        # Whoever works for it learns that it is gone as if another process had taken it over, and goes on with others.
        store.take_away(tx, [f"integration:{integration.id}"])
        _note(store, tx, key, integration.version + 1, by, {"removed": (False, True)})
        kept = set(tx.execute(sa.select(table.c.file).where(table.c.file.in_(files))).scalars())
    return sorted((files - kept) | gone)


def halt(tx: Transaction, integration_id: int, reason: str, now: int) -> None:
    """Stops an integration until a person enables it again; what is pending stays pending."""
    table = tables.integrations
    tx.execute(
        sa.update(table)
        .where(table.c.id == integration_id)
        .values(halted_reason=reason, halted_at=now, last_error=reason)
    )


def set_plan(store: Store, app_id: str, plan: str) -> None:
    """Registers the plan (``paid`` or ``free``) of the organisation of an app."""
    with store.begin() as tx:
        store.upsert(tx, tables.apps, [{"app_id": app_id, "plan": plan}], ["app_id"], update=["plan"])
