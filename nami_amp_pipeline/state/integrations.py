"""The integrations: adding, switching and removing them; see ``integration_changes`` for changing one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.contract import AnonymousPolicy, RevenueKind, SandboxPolicy, UserIdKind
from nami_amp_pipeline.destinations import DEFAULT, destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import integration_rules as rules
from nami_amp_pipeline.state import journal, own_fields, tables
from nami_amp_pipeline.state.integration_history import note
from nami_amp_pipeline.state.integration_keys import hold_keys, new_salt, place_of, refuse_shared
from nami_amp_pipeline.state.integration_rows import (
    Integration,
    all_integrations,
    apps_with_integrations,
    find,
    get,
    read_all,
    refreshed,
    unknown,
)
from nami_amp_pipeline.state.integration_rules import check_endpoint
from nami_amp_pipeline.state.store import Store, Transaction

_ADDING = 7_263_104_287  # any number that is ours alone

__all__ = [
    "Integration",
    "NewIntegration",
    "add",
    "all_integrations",
    "alone",
    "apps_with_integrations",
    "check_endpoint",
    "checked",
    "get",
    "halt",
    "hold_keys",
    "insert",
    "locked",
    "not_paid",
    "plan_of",
    "read_all",
    "read_from",
    "refreshed",
    "refuse_managed",
    "register_plan",
    "remove",
    "set_enabled",
    "set_plan",
    "set_quota",
]


@dataclass(frozen=True)
class NewIntegration:
    """What a person gives to add an integration; see :class:`Integration`.

    A secret field that is None stands for a stored one, which need not be checked again.
    """

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
    destination: str = DEFAULT
    fields: Mapping[str, str] = field(default_factory=dict)
    secret_fields: Mapping[str, Secret | None] = field(default_factory=dict)


def add(store: Store, cipher: Cipher, new: NewIntegration, *, by: str = "") -> Integration:
    """Adds an integration, and its app if it is new.

    Args:
        store: where to.
        cipher: for the keys.
        new: what to add.
        by: who adds it.

    Raises:
        Misconfigured: a value cannot be used, the name is taken, the key is another integration's, or the app is not on
            a paid plan.
    """
    with store.begin() as tx:
        hold_keys(store, tx)
        key = insert(store, tx, cipher, new, by=by)
    return get(store, key)


def insert(
    store: Store, tx: Transaction, cipher: Cipher, new: NewIntegration, *, by: str = "", file: str | None = None
) -> str:
    """Adds an integration in a transaction that is open already; see :func:`add`.

    Args:
        store: where to.
        tx: the transaction; :func:`hold_keys` was called in it.
        cipher: for the keys.
        new: what to add.
        by: who adds it.
        file: the name of the file that it comes from.

    Returns:
        ``<app_id>/<name>``.

    Raises:
        Misconfigured: as for :func:`add`; nothing was written then.
    """
    key = f"{rules.check_app_id(new.app_id)}/{rules.check_name(new.name)}"
    own_fields.check_given(destination_of(new.destination), new.fields, new.secret_fields)
    values = checked(new)
    api_key = rules.check_key(new.api_key, "API key")
    secret_key = rules.check_key(new.secret_key, "secret key") if new.secret_key is not None else None
    alone(store, tx)
    plan = plan_of(tx, new.app_id)
    if plan == "free" and new.enabled:
        raise not_paid(new.app_id)
    if find(tx, key) is not None:
        raise Misconfigured(f"integration {key} exists already")
    if not new.allow_shared_key:
        place = place_of(values["destination"], values["endpoint"])
        refuse_shared(tx, cipher, new.app_id, new.name, (place, api_key), rules.check_events(new.events))
    if plan is None:
        tx.execute(sa.insert(tables.apps).values(app_id=new.app_id))
    added = tx.execute(
        sa.insert(tables.integrations).values(
            app_id=new.app_id,
            name=new.name,
            api_key=cipher.encrypt(api_key),
            secret_key=cipher.encrypt(secret_key) if secret_key is not None else None,
            secret_fields=own_fields.encrypted({}, new.secret_fields, cipher),
            hash_salt=new_salt(cipher) if new.hashed else None,
            start_from=new.start_from,
            enabled=new.enabled,
            created_at=micros(store.clock),
            managed_by=file,
            **values,
        )
    )
    assert added.inserted_primary_key is not None
    read_from(tx, int(added.inserted_primary_key[0]), new.app_id, new.start_from)
    note(store, tx, key, 1, by, {"added": (False, True)} | ({"managed_by": (None, file)} if file else {}))
    return key


def alone(store: Store, tx: Transaction) -> None:
    """Keeps other processes from adding integrations until the transaction ends; on SQLite, any write does that."""
    if not store.is_sqlite:
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADDING)))


def checked(given: NewIntegration, *, known: bool = False) -> dict[str, Any]:
    """The columns of all settings but keys, start and ``enabled``.

    Args:
        given: what was given.
        known: whether the store has it already, so that it need not be checked again.

    Raises:
        Misconfigured: a value cannot be used.
    """
    values: dict[str, Any] = {
        name: getattr(given, name)
        for name in ("user_id_kind", "anonymous", "sandbox", "revenue", "endpoint", "destination")
    }
    structured: dict[str, Any] = {
        "events": tuple(given.events),
        "rename": dict(given.rename),
        "exclude": tuple(given.exclude),
        "hash": tuple(given.hashed),
        "store_fees": dict(given.store_fees),
        "fields": dict(sorted(given.fields.items())),
    }
    if not known:
        rules.check_choice(given.user_id_kind, contract.USER_ID_KINDS, "the user id")
        rules.check_choice(given.anonymous, contract.ANONYMOUS_POLICIES, "what to do with anonymous users")
        rules.check_choice(given.sandbox, contract.SANDBOX_POLICIES, "what to do with sandbox events")
        rules.check_choice(given.revenue, contract.REVENUE_KINDS, "the revenue")
        rules.check_destination(given.destination, has_secret_key=given.secret_key is not None)
        values["endpoint"] = rules.check_endpoint(
            given.endpoint, allow_custom=given.allow_custom_endpoint, destination=given.destination
        )
        exclude, hashed = rules.check_fields(given.exclude, given.hashed)
        structured = {
            "events": rules.check_events(given.events),
            "rename": rules.check_rename(given.rename),
            "exclude": exclude,
            "hash": hashed,
            "store_fees": rules.check_fees(given.store_fees),
            "fields": structured["fields"],
        }
        own_fields.check(destination_of(given.destination), given.fields, given.secret_fields)
        if given.user_id_kind == "external_id" and "external_ids" in (*exclude, *hashed):
            raise Misconfigured("'external_ids' cannot be excluded or hashed while the External ID is the user id")
    return values | {name: orjson.dumps(value).decode() for name, value in structured.items()}


def locked(tx: Transaction, key: str) -> Integration:
    """An integration, locked until the transaction ends."""
    integration = find(tx, key, lock=True)
    if integration is None:
        raise unknown(key, [known.key for known in read_all(tx)])
    return integration


def refuse_managed(integration: Integration, file: str | None = None) -> None:
    """Checks that the settings of an integration may be changed from here.

    Args:
        integration: the integration.
        file: the name of the file that the change comes from; None for a change by hand.

    Raises:
        Misconfigured: they come from a file, or from another one.
    """
    if integration.managed_by not in (None, file):
        key = integration.key
        raise Misconfigured(
            f"{key} is managed by {integration.managed_by}: change it there, or end that with "
            f"'nami-amp integrations release {key}'"
        )


def read_from(tx: Transaction, integration_id: int, app_id: str, start_from: int | None) -> None:
    """Moves an app that was already read further back to the start of a new integration.

    Rows that the ledger has forgotten are then captured again; this is noted for the app's other integrations.
    """
    apps = tables.apps
    query = sa.select(apps.c.frontier).where(apps.c.app_id == app_id)
    frontier = tx.execute(query).scalar()
    if frontier is None:
        # A first reading that ends just now either sees this integration, or is waited for and seen here.
        frontier = tx.execute(query.with_for_update(key_share=True)).scalar()
    if frontier is not None and (start_from is None or start_from < frontier):
        # NULL would make the app begin at the earliest start of its integrations, which is now this integration's.
        tx.execute(sa.update(apps).where(apps.c.app_id == app_id).values(frontier=start_from))
        newest = tx.execute(sa.select(sa.func.coalesce(sa.func.max(tables.segments.c.id), 0))).scalar_one()
        tx.execute(
            sa.insert(tables.rereads).values(
                integration_id=integration_id, app_id=app_id, frontier=frontier, after_segment=newest
            )
        )


def not_paid(app_id: str) -> Misconfigured:
    """The error for enabling an integration of an app on the free plan."""
    return Misconfigured(
        f"app {app_id} is not on a paid plan: its organisation needs a paid plan to enable an integration"
    )


def plan_of(tx: Transaction, app_id: str) -> str | None:
    """The plan of an app; None if it is not known."""
    plan: str | None = tx.execute(sa.select(tables.apps.c.plan).where(tables.apps.c.app_id == app_id)).scalar()
    return plan


def set_enabled(store: Store, key: str, *, enabled: bool, by: str = "") -> Integration:
    """Enables or disables an integration; an enabled one continues where it stopped, and is no longer halted.

    One that is managed by a file and enabled there can be enabled after a halt: no setting changes by it.

    Raises:
        Misconfigured: there is none of that name, its app is not on a paid plan, or a file manages it.
    """
    with store.begin() as tx:
        integration = locked(tx, key)
        if enabled and plan_of(tx, integration.app_id) == "free":
            raise not_paid(integration.app_id)
        values: dict[str, Any] = {}
        if enabled != integration.enabled:
            refuse_managed(integration)
            values |= {"enabled": enabled, "version": integration.version + 1}
            note(store, tx, key, integration.version + 1, by, {"enabled": (integration.enabled, enabled)})
        if enabled:
            values |= {"halted_reason": None, "halted_at": None, "last_error": None}
            if integration.halted_reason:
                journal.note_of_integration(tx, "resumed", micros(store.clock), integration.id, by=by)
        if values:
            tx.execute(
                sa.update(tables.integrations).where(tables.integrations.c.id == integration.id).values(**values)
            )
    return get(store, key)


def remove(store: Store, key: str, *, by: str = "") -> list[str]:
    """Removes an integration with its outboxes, receipts and dead letters; what it sent stays in Amplitude.

    Returns:
        Unused files, relative to the data folder.

    Raises:
        Misconfigured: there is none of that name, or a file manages it.
    """
    integration = get(store, key)
    table, integrations, spooled = tables.outboxes, tables.integrations, tables.backfill_files
    with store.begin() as tx:
        refuse_managed(locked(tx, key))
        channels = tx.execute(
            sa.select(integrations.c.id).where(integrations.c.backfill_of == integration.id)
        ).scalars()
        ids = [integration.id, *channels]
        files = set(tx.execute(sa.select(table.c.file).where(table.c.integration_id.in_(ids))).scalars())
        receipts = tx.execute(
            sa.select(table.c.receipts_file).where(table.c.integration_id.in_(ids), table.c.receipts_file.is_not(None))
        ).scalars()
        gone = set(receipts)
        mine = sa.select(tables.backfills.c.id).where(tables.backfills.c.integration_id == integration.id)
        gone |= set(tx.execute(sa.select(spooled.c.file).where(spooled.c.backfill_id.in_(mine))).scalars())
        tx.execute(sa.delete(integrations).where(integrations.c.id.in_(ids)))
        # A run that works for it loses its lease, as in a takeover, and continues with other integrations.
        store.take_away(tx, [f"integration:{integration.id}"])
        note(store, tx, key, integration.version + 1, by, {"removed": (False, True)})
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
    journal.note_of_integration(tx, "halted", now, integration_id, reason=reason)


def set_plan(store: Store, app_id: str, plan: str, *, by: str = "") -> None:
    """Registers the plan (``paid`` or ``free``) of the organisation of an app."""
    with store.begin() as tx:
        register_plan(store, tx, app_id, plan, by=by)


def register_plan(store: Store, tx: Transaction, app_id: str, plan: str, *, by: str = "") -> None:
    """The same, in a transaction that is open already."""
    _register(store, tx, app_id, "plan", plan, by)


def set_quota(store: Store, app_id: str, quota: int | None, *, by: str = "") -> None:
    """Registers how many events a month Amplitude takes of the organisation of an app; None forgets it."""
    with store.begin() as tx:
        _register(store, tx, app_id, "monthly_quota", quota, by)


def _register(store: Store, tx: Transaction, app_id: str, column: str, value: object, by: str) -> None:
    table = tables.apps
    before = tx.execute(sa.select(table.c[column]).where(table.c.app_id == app_id)).scalar()
    if before == value:
        return
    store.upsert(tx, table, [{"app_id": app_id, column: value}], ["app_id"], update=[column])
    kind: journal.Kind = "plan" if column == "plan" else "quota"
    journal.note(tx, kind, micros(store.clock), by=by, app_id=app_id, before=before, after=value)
