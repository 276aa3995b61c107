"""Changes an integration's settings: each change raises its version and is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.contract import AnonymousPolicy, RevenueKind, SandboxPolicy, UserIdKind
from nami_amp_pipeline.destinations import destination_of
from nami_amp_pipeline.errors import Busy, Conflict, Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import backfills, live_first, own_fields, tables
from nami_amp_pipeline.state import integration_rules as rules
from nami_amp_pipeline.state.integration_history import note, records_of
from nami_amp_pipeline.state.integration_keys import hold_keys, new_salt, place_of, refuse_shared
from nami_amp_pipeline.state.integration_rows import Integration, get
from nami_amp_pipeline.state.integrations import (
    NewIntegration,
    checked,
    locked,
    not_paid,
    plan_of,
    read_from,
    refuse_managed,
)
from nami_amp_pipeline.state.store import Store, Transaction

T = TypeVar("T")

_CALLED: Final = {"user_id_kind": "user_id"}
"""The names that people use for columns."""

_JSON: Final = ("events", "rename", "exclude", "hash", "store_fees", "fields")


class Unchanged(Enum):
    """The type of :data:`UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""Stands for a value that does not change."""


@dataclass(frozen=True)
class IntegrationChange:
    """The changes that a person makes to an integration; :data:`UNCHANGED` values stay.

    ``secret_key=None`` removes the secret key; ``start_from=None`` is the beginning; ``managed_by=None`` ends the
    management by a file. Of ``fields`` and ``secret_fields`` those that are named change; None takes one away. See
    :class:`Integration`.
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
    managed_by: str | Unchanged | None = UNCHANGED
    fields: Mapping[str, str | None] = field(default_factory=dict)
    secret_fields: Mapping[str, Secret | None] = field(default_factory=dict)
    allow_custom_endpoint: bool = False
    allow_shared_key: bool = False


def change(
    store: Store, cipher: Cipher, key: str, wanted: IntegrationChange, *, by: str = "", if_version: int | None = None
) -> Integration:
    """Changes settings of an integration; each change raises its version and is recorded.

    It applies to events that are in no outbox yet; a key or endpoint applies to all pending events. A run under way
    keeps the old settings. A halted integration stays halted until ``set_enabled``.

    Args:
        store: where it is.
        cipher: for the keys.
        key: ``<app_id>/<name>``.
        wanted: what to change.
        by: who changes it.
        if_version: the version that the change is based on.

    Raises:
        Misconfigured: it does not exist, a value is not valid, or a file manages it.
        Conflict: somebody else changed it since that version.
        SharedKey: another integration has its key and some of its event types.
        Busy: a run works for it, so its start cannot move back.
    """
    integration = get(store, key)
    held = {}
    if moves_back(wanted, integration):
        held = live_first.acquire(store, [f"{live_first.INTEGRATION}{integration.id}"])
        if not held:
            raise Busy(f"a run is working for {key}: move its start when the run has ended")
    try:
        with store.begin(under=held.values()) as tx:
            hold_keys(store, tx)
            alter(store, tx, cipher, locked(tx, key), wanted, by=by, if_version=if_version)
    finally:
        store.release(held.values())
    return get(store, key)


def moves_back(wanted: IntegrationChange, integration: Integration) -> bool:
    """Whether a change moves the start of an integration to an earlier time, for which its lease is needed."""
    return not isinstance(wanted.start_from, Unchanged) and _is_earlier(wanted.start_from, integration.start_from)


def release(store: Store, key: str, *, by: str = "") -> str | None:
    """Ends the management of an integration by a file: its settings stay, and people may change them again.

    Returns:
        The name of the file; None if no file managed it.

    Raises:
        Misconfigured: there is none of that name.
    """
    with store.begin() as tx:
        integration = locked(tx, key)
        file = integration.managed_by
        if file is not None:
            values = {"managed_by": None, "version": integration.version + 1}
            tx.execute(
                sa.update(tables.integrations).where(tables.integrations.c.id == integration.id).values(**values)
            )
            note(store, tx, key, integration.version + 1, by, {"managed_by": (file, None)})
    return file


def alter(
    store: Store,
    tx: Transaction,
    cipher: Cipher,
    integration: Integration,
    wanted: IntegrationChange,
    *,
    by: str = "",
    if_version: int | None = None,
    file: str | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Changes settings in a transaction that is open already; see :func:`change`.

    Args:
        store: where it is.
        tx: the transaction; :func:`hold_keys` was called in it.
        cipher: for the keys.
        integration: as it is, locked. If its start moves back, its lease is ours.
        wanted: what to change.
        by: who changes it.
        if_version: the version that the change is based on.
        file: the name of the file that the change comes from.

    Returns:
        By field, the value before and after; of keys only that they changed.

    Raises:
        Misconfigured: as for :func:`change`; nothing was written then.
    """
    if if_version is not None and if_version != integration.version:
        raise Conflict(
            f"{changed_since(tx, integration, if_version)}: look at its settings ('nami-amp integrations show "
            f"{integration.key}'), then change them"
        )
    refuse_managed(integration, file)
    if wanted.fields or wanted.secret_fields:
        _check_own_fields(integration, wanted)
    values, what = differences(cipher, integration, wanted)
    if not what:
        return what
    if wanted.enabled is True and not integration.enabled and plan_of(tx, integration.app_id) == "free":
        raise not_paid(integration.app_id)
    endpoint = values.get("endpoint", integration.endpoint)
    place = place_of(integration.destination, endpoint)
    has_moved = "endpoint" in what and place == endpoint
    if not wanted.allow_shared_key and ("api_key" in what or "events" in what or has_moved):
        api_key = cipher.decrypt(integration.api_key) if isinstance(wanted.api_key, Unchanged) else wanted.api_key
        events = _given(wanted.events, integration.patterns)
        refuse_shared(tx, cipher, integration.app_id, integration.name, (place, api_key), events)
    if "start_from" in what and _is_earlier(values["start_from"], integration.start_from):
        _start_earlier(tx, integration, values)
    tx.execute(
        sa.update(tables.integrations)
        .where(tables.integrations.c.id == integration.id)
        .values(version=integration.version + 1, **values)
    )
    note(store, tx, integration.key, integration.version + 1, by, what)
    return what


def differences(
    cipher: Cipher, integration: Integration, wanted: IntegrationChange
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The columns to write and the changes to record, for all values that differ."""
    before = NewIntegration(
        integration.app_id,
        integration.name,
        integration.endpoint,
        Secret(""),
        user_id_kind=integration.user_id_kind,
        anonymous=integration.anonymous,
        events=integration.patterns,
        rename=integration.rename,
        sandbox=integration.sandbox,
        exclude=integration.exclude,
        hashed=integration.hashed,
        revenue=integration.revenue,
        store_fees=integration.store_fees,
        allow_custom_endpoint=True,
        destination=integration.destination,
        fields=integration.fields,
    )
    after = NewIntegration(
        integration.app_id,
        integration.name,
        _given(wanted.endpoint, integration.endpoint),
        Secret(""),
        user_id_kind=_given(wanted.user_id_kind, integration.user_id_kind),
        anonymous=_given(wanted.anonymous, integration.anonymous),
        events=_given(wanted.events, integration.patterns),
        rename=_given(wanted.rename, integration.rename),
        sandbox=_given(wanted.sandbox, integration.sandbox),
        exclude=_given(wanted.exclude, integration.exclude),
        hashed=_given(wanted.hashed, integration.hashed),
        revenue=_given(wanted.revenue, integration.revenue),
        store_fees=_given(wanted.store_fees, integration.store_fees),
        allow_custom_endpoint=wanted.allow_custom_endpoint or isinstance(wanted.endpoint, Unchanged),
        destination=integration.destination,
        secret_key=wanted.secret_key if isinstance(wanted.secret_key, Secret) else None,
        fields=_merged(integration.fields, wanted.fields),
        secret_fields=_secret_fields(integration, wanted),
    )
    old, new = checked(before, known=True), checked(after)
    values = {name: value for name, value in new.items() if value != old[name]}
    what = {_CALLED.get(name, name): (_plain(name, old[name]), _plain(name, new[name])) for name in values}
    for name, moved, is_now in (
        ("enabled", wanted.enabled, integration.enabled),
        ("start_from", wanted.start_from, integration.start_from),
        ("managed_by", wanted.managed_by, integration.managed_by),
    ):
        if not isinstance(moved, Unchanged) and moved != is_now:
            values[name] = moved
            what[name] = (_plain(name, is_now), _plain(name, moved))
    values |= _keys(cipher, integration, wanted, what)
    if new["hash"] != "[]" and integration.hash_salt is None:
        values["hash_salt"] = new_salt(cipher)
    return values, what


def _keys(
    cipher: Cipher, integration: Integration, wanted: IntegrationChange, what: dict[str, tuple[Any, Any]]
) -> dict[str, str | None]:
    """The changed keys, encrypted; records that they changed."""
    values: dict[str, str | None] = {}
    if not isinstance(wanted.api_key, Unchanged):
        values["api_key"] = cipher.encrypt(rules.check_key(wanted.api_key, "API key"))
        what["api_key"] = ("set", "changed")
    if isinstance(wanted.secret_key, Secret):
        values["secret_key"] = cipher.encrypt(rules.check_key(wanted.secret_key, "secret key"))
        what["secret_key"] = ("set", "changed") if integration.secret_key else ("not set", "set")
    elif wanted.secret_key is None and integration.secret_key is not None:
        values["secret_key"] = None
        what["secret_key"] = ("set", "not set")
    stored = integration.secret_fields
    if given := {name: secret for name, secret in wanted.secret_fields.items() if secret is not None or name in stored}:
        values["secret_fields"] = own_fields.encrypted(stored, given, cipher)
        what["secret_fields"] = own_fields.recorded(stored, given)
    return values


def _check_own_fields(integration: Integration, wanted: IntegrationChange) -> None:
    """Checks the names of what is given; what is taken away need not be declared any more.

    Raises:
        Misconfigured: one is unknown, or a secret is given in clear.
    """
    own_fields.check_given(
        destination_of(integration.destination),
        [name for name, value in wanted.fields.items() if value is not None],
        [name for name, secret in wanted.secret_fields.items() if secret is not None],
    )


def _merged(before: Mapping[str, str], wanted: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in (dict(before) | dict(wanted)).items() if value is not None}


def _secret_fields(integration: Integration, wanted: IntegrationChange) -> dict[str, Secret | None]:
    """The secrets that there will be; None of those that are stored already."""
    stored: dict[str, Secret | None] = dict.fromkeys(integration.secret_fields.keys() - wanted.secret_fields.keys())
    return stored | {name: secret for name, secret in wanted.secret_fields.items() if secret is not None}


def _plain(name: str, value: Any) -> Any:
    """A value in the form that is recorded."""
    if name == "start_from":
        return to_text(value) or "beginning"
    return orjson.loads(value) if name in _JSON else value


def _given(value: T | Unchanged, otherwise: T) -> T:
    return otherwise if isinstance(value, Unchanged) else value


def _is_earlier(start: int | None, than: int | None) -> bool:
    return than is not None and (start is None or start < than)


def _start_earlier(tx: Transaction, integration: Integration, values: dict[str, Any]) -> None:
    """Moves back the start of an integration without captured events, as if it were added now.

    Raises:
        Misconfigured: events of it, of its backfills, or of younger integrations could be sent a second time.
    """
    counts, table = tables.counts, tables.integrations
    captured = tx.execute(
        sa.select(counts.c.events).where(counts.c.integration_id == integration.id, counts.c.state == "captured")
    ).scalar()
    if captured:
        raise Misconfigured(
            f"{integration.key} has events already, so its start can only move to a later time: earlier events "
            "would be sent out of order, and some twice"
        )
    if any(backfill.started_at is not None for backfill in backfills.of_integration(tx, integration.id, "backfill")):
        raise Misconfigured(
            f"a backfill has sent events from before the start of {integration.key}, which would be sent again: leave "
            f"its start where it is, and send other events with "
            f"'nami-amp backfill {integration.key} --from TIME --to TIME'"
        )
    same_app = sa.and_(table.c.app_id == integration.app_id, table.c.backfill_of.is_(None))
    youngest = tx.execute(sa.select(sa.func.max(table.c.id)).where(same_app)).scalar()
    if youngest != integration.id:
        raise Misconfigured(
            f"{integration.key} is not the newest integration of its app, so its start can only move to a later "
            "time. No event was captured for it yet: remove it and add it again"
        )
    values["prepared_through"] = 0
    tx.execute(sa.delete(tables.rereads).where(tables.rereads.c.integration_id == integration.id))
    read_from(tx, integration.id, integration.app_id, values["start_from"])


def changed_since(tx: Transaction, integration: Integration, version: int) -> str:
    """The changes since a version, in one line."""
    later = [record for record in records_of(tx, integration.key) if record.version > version]
    changes = "; ".join(
        f"version {record.version} by {record.by or 'somebody'} at {to_text(record.at)}: {', '.join(record.what)}"
        for record in later[-3:]
    )
    return f"{integration.key} has version {integration.version}, not {version}{f' ({changes})' if changes else ''}"
