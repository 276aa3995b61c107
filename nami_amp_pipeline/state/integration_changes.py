"""Changes of an integration: every setting, with a version that each change raises, and a record of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.contract import AnonymousPolicy, RevenueKind, SandboxPolicy, UserIdKind
from nami_amp_pipeline.errors import Busy, Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import integration_rules as rules
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_history import note, records_of
from nami_amp_pipeline.state.integration_keys import hold_keys, new_salt, refuse_shared
from nami_amp_pipeline.state.integration_rows import Integration, get
from nami_amp_pipeline.state.integrations import NewIntegration, checked, locked, not_paid, plan_of, read_from
from nami_amp_pipeline.state.store import Store, Transaction

T = TypeVar("T")

_CALLED: Final = {"user_id_kind": "user_id"}
"""What people call a column of another name."""

_JSON: Final = ("events", "rename", "exclude", "hash", "store_fees")


class Unchanged(Enum):
    """The type of :data:`UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""In place of a value that stays as it is."""


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


def change(
    store: Store, cipher: Cipher, key: str, wanted: IntegrationChange, *, by: str = "", if_version: int | None = None
) -> Integration:
    """Changes settings of an integration; each change raises its version and is recorded.

    It holds for what is in no outbox yet; keys and endpoint for all that is still to be posted. A run that is under way
    goes on with what it began with. A halt stays until ``set_enabled``.

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
            _change(store, tx, cipher, locked(tx, key), wanted, by, if_version)
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
    if wanted.enabled is True and not one.enabled and plan_of(tx, one.app_id) == "free":
        raise not_paid(one.app_id)
    if not wanted.allow_shared_key and ("api_key" in what or "events" in what):
        api_key = cipher.decrypt(one.api_key) if isinstance(wanted.api_key, Unchanged) else wanted.api_key
        refuse_shared(tx, cipher, one.app_id, one.name, api_key, _given(wanted.events, one.patterns))
    if "start_from" in what and _is_earlier(values["start_from"], one.start_from):
        _start_earlier(tx, one, values)
    tx.execute(
        sa.update(tables.integrations)
        .where(tables.integrations.c.id == one.id)
        .values(version=one.version + 1, **values)
    )
    note(store, tx, one.key, one.version + 1, by, what)


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
    old, new = checked(before, known=True), checked(after)
    values = {name: value for name, value in new.items() if value != old[name]}
    what = {_CALLED.get(name, name): (_plain(name, old[name]), _plain(name, new[name])) for name in values}
    for name, moved, is_now in (
        ("enabled", wanted.enabled, one.enabled),
        ("start_from", wanted.start_from, one.start_from),
    ):
        if not isinstance(moved, Unchanged) and moved != is_now:
            values[name] = moved
            what[name] = (_plain(name, is_now), _plain(name, moved))
    values |= _keys(cipher, one, wanted, what)
    if new["hash"] != "[]" and one.hash_salt is None:
        values["hash_salt"] = new_salt(cipher)
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


def _plain(name: str, value: Any) -> Any:
    """A value as it is recorded."""
    if name == "start_from":
        return to_text(value) or "beginning"
    return orjson.loads(value) if name in _JSON else value


def _given(value: T | Unchanged, otherwise: T) -> T:
    return otherwise if isinstance(value, Unchanged) else value


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
    read_from(tx, one.id, one.app_id, values["start_from"])


def _changed_since(tx: Transaction, one: Integration, version: int) -> str:
    """Who changed what since a version, in one line."""
    later = [record for record in records_of(tx, one.key) if record.version > version]
    told = "; ".join(
        f"version {record.version} by {record.by or 'somebody'} at {to_text(record.at)}: {', '.join(record.what)}"
        for record in later[-3:]
    )
    return (
        f"{one.key} has version {one.version}, not {version}{f' ({told})' if told else ''}: look at it again "
        f"('nami-amp integrations show {one.key}'), then change it"
    )
