"""The integrations, as the Control Center configures them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.contract import AnonymousPolicy, UserIdKind, select_events
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Store, Transaction

_ENCRYPTING = 7_263_104_286  # any number that is ours alone


@dataclass(frozen=True)
class Integration:
    """One Amplitude project that an app's events go to.

    Attributes:
        id: of the store; never used again.
        app_id: the Nami app.
        name: unique in its app.
        enabled: whether anything is sent.
        endpoint: the URL that events are posted to.
        api_key: encrypted.
        secret_key: encrypted; for reconciliation only.
        user_id_kind: what becomes Amplitude's ``user_id``.
        anonymous: what happens to events of users without an External ID.
        events: the selected event types.
        rename: Nami's event type to the name in Amplitude.
        start_from: the first ``ingested_at`` that counts, in µs since the epoch; None for the beginning.
        created_at: in µs since the epoch.
        prepared_through: the newest segment that is in an outbox.
        halted_reason: why delivery stopped, until a person says go on.
        last_error: what went wrong last, for people.
        halted_at: when that was, in µs since the epoch.
        rereads: (segment, ``ingested_at`` in µs) for each time that the app was read once more from further back:
            events from before that time, in segments after that one, had been read for this integration before.
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
    events: tuple[str, ...]
    rename: Mapping[str, str]
    start_from: int | None
    created_at: int
    prepared_through: int
    halted_reason: str | None
    last_error: str | None
    halted_at: int | None = None
    rereads: tuple[tuple[int, int], ...] = ()

    def start_in(self, segment_id: int) -> int | None:
        """The first ``ingested_at`` in a segment that counts, in µs since the epoch; None if all of it does."""
        starts = [frontier for after, frontier in self.rereads if segment_id > after]
        return max([*starts, *([] if self.start_from is None else [self.start_from])], default=None)

    @property
    def key(self) -> str:
        """``<app_id>/<name>``, as people name it."""
        return f"{self.app_id}/{self.name}"

    @property
    def partition_key(self) -> str:
        """``<app_id>|<name>``, as Dagster names it."""
        return f"{self.app_id}|{self.name}"


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
    allow_custom_endpoint: bool = False


def add(store: Store, cipher: Cipher, new: NewIntegration) -> Integration:
    """Adds an integration, and its app where that is new.

    Raises:
        Misconfigured: a value cannot be used, the name is taken, or the app is not on a paid plan.
    """
    if not contract.APP_ID.fullmatch(new.app_id):
        raise Misconfigured(f"app id {new.app_id!r} must be of letters, digits, '.', '_' and '-'")
    if not contract.INTEGRATION_NAME.fullmatch(new.name):
        raise Misconfigured(f"integration name {new.name!r} must be of letters, digits, '-' and '_'")
    endpoint = check_endpoint(new.endpoint, allow_custom=new.allow_custom_endpoint)
    api_key = _clean(new.api_key, "API key")
    secret_key = _clean(new.secret_key, "secret key") if new.secret_key is not None else None
    try:
        events = contract.select_events(new.events)
    except ValueError as error:
        raise Misconfigured(str(error)) from None
    for old, name in new.rename.items():
        if old not in contract.EVENT_TYPES:
            raise Misconfigured(f"cannot rename {old!r}: it is not one of the event types")
        if not name.strip():
            raise Misconfigured(f"cannot rename {old!r} to an empty name")
        if name.startswith(("[Amplitude]", "$")):
            raise Misconfigured(f"cannot rename {old!r} to {name!r}: Amplitude reserves names that begin so")
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
            raise Misconfigured(f"integration {new.app_id}/{new.name} exists already")
        added = tx.execute(
            sa.insert(tables.integrations).values(
                app_id=new.app_id,
                name=new.name,
                enabled=new.enabled,
                endpoint=endpoint,
                api_key=cipher.encrypt(api_key),
                secret_key=cipher.encrypt(secret_key) if secret_key is not None else None,
                user_id_kind=new.user_id_kind,
                anonymous=new.anonymous,
                events=orjson.dumps(events).decode(),
                rename=orjson.dumps(dict(new.rename)).decode(),
                start_from=new.start_from,
                created_at=micros(store.clock),
            )
        )
        assert added.inserted_primary_key is not None
        _read_from(tx, int(added.inserted_primary_key[0]), new)
    return get(store, f"{new.app_id}/{new.name}")


def update(
    store: Store,
    cipher: Cipher,
    key: str,
    *,
    api_key: Secret | None = None,
    secret_key: Secret | None = None,
    endpoint: str | None = None,
    allow_custom_endpoint: bool = False,
) -> Integration:
    """Replaces the keys or the endpoint of an integration; what is not given stays as it is.

    A run that is under way goes on with what it began with. A halt stays until :func:`set_enabled`.

    Raises:
        Misconfigured: there is none of that name, or a value cannot be used.
    """
    integration = get(store, key)
    values: dict[str, str] = {}
    if endpoint is not None:
        values["endpoint"] = check_endpoint(endpoint, allow_custom=allow_custom_endpoint)
    api_key = _clean(api_key, "API key") if api_key is not None else None
    secret_key = _clean(secret_key, "secret key") if secret_key is not None else None
    table = tables.integrations
    with store.begin() as tx:
        hold_keys(store, tx)
        if api_key is not None:
            values["api_key"] = cipher.encrypt(api_key)
        if secret_key is not None:
            values["secret_key"] = cipher.encrypt(secret_key)
        if values:
            tx.execute(sa.update(table).where(table.c.id == integration.id).values(**values))
    return get(store, key)


def _clean(secret: Secret, what: str) -> Secret:
    text = secret.reveal().strip()
    if not text:
        raise Misconfigured(f"the {what} is empty")
    return Secret(text)


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


def _read_from(tx: Transaction, integration_id: int, new: NewIntegration) -> None:
    """Lets an app that has been read further already be read from the start of a new integration.

    What the ledger has forgotten by now is captured once more then; that is noted, for the app's other integrations.
    """
    apps = tables.apps
    frontier = tx.execute(sa.select(apps.c.frontier).where(apps.c.app_id == new.app_id)).scalar()
    if frontier is not None and (new.start_from is None or new.start_from < frontier):
        # NULL would make the app begin at the earliest start of its integrations, which this one now is.
        tx.execute(sa.update(apps).where(apps.c.app_id == new.app_id).values(frontier=new.start_from))
        newest = tx.execute(sa.select(sa.func.coalesce(sa.func.max(tables.segments.c.id), 0))).scalar_one()
        tx.execute(
            sa.insert(tables.rereads).values(
                integration_id=integration_id, app_id=new.app_id, frontier=frontier, after_segment=newest
            )
        )


def check_endpoint(endpoint: str, *, allow_custom: bool) -> str:
    """The URL of an endpoint: ``us``, ``eu``, or a URL that was allowed.

    Raises:
        Misconfigured: it may not be used; the message says why.
    """
    if endpoint in contract.ENDPOINTS:
        return contract.ENDPOINTS[endpoint]
    if endpoint in contract.ENDPOINTS.values():
        return endpoint
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise Misconfigured("the endpoint must be 'us', 'eu', or a URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Misconfigured(f"endpoint {endpoint!r} must be 'us', 'eu', or a URL such as https://host/2/httpapi")
    if parts.username or parts.password:
        raise Misconfigured("the endpoint must not hold a user name or password")
    if not allow_custom:
        raise Misconfigured(f"{host} is not Amplitude's: give --allow-custom-endpoint if events shall go there")
    if parts.scheme == "http" and not _is_loopback(host):
        raise Misconfigured(f"plain http goes to a loopback address only: use https for {host}")
    return endpoint


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _not_paid(app_id: str) -> Misconfigured:
    return Misconfigured(f"app {app_id} is not on a paid plan: its organisation needs one to enable an integration")


def apps_with_integrations(store: Store) -> list[str]:
    """The apps that have an integration switched on."""
    with store.begin() as tx:
        query = sa.select(tables.integrations.c.app_id).where(tables.integrations.c.enabled).distinct()
        return sorted(tx.execute(query).scalars())


def all_integrations(store: Store, keys: Sequence[str] | None = None) -> list[Integration]:
    """The integrations by key, or those named.

    Raises:
        Misconfigured: one of the names is unknown.
    """
    table = tables.integrations
    with store.begin() as tx:
        rows = tx.execute(sa.select(table).order_by(table.c.app_id, table.c.name)).all()
        rereads = _rereads(tx)
    found = [_from_row(row, rereads) for row in rows]
    if keys is None:
        return found
    known = {integration.key: integration for integration in found}
    for key in keys:
        if key not in known:
            raise Misconfigured(f"there is no integration {key}; 'nami-amp integrations list' shows those there are")
    return [known[key] for key in dict.fromkeys(keys)]


def reread(tx: Transaction, integrations: Sequence[Integration]) -> list[Integration]:
    """The same integrations as they are now; those that were removed meanwhile are left out."""
    table = tables.integrations
    rows = {row.id: row for row in tx.execute(sa.select(table))}
    rereads = _rereads(tx)
    return [_from_row(rows[one.id], rereads) for one in integrations if one.id in rows]


def get(store: Store, key: str) -> Integration:
    """One integration by ``<app_id>/<name>``.

    Raises:
        Misconfigured: there is none of that name.
    """
    return all_integrations(store, [key])[0]


def set_enabled(store: Store, key: str, *, enabled: bool) -> Integration:
    """Switches an integration on or off; on again it goes on where it stopped, and a halt is forgotten.

    Raises:
        Misconfigured: there is none of that name, or its app is not on a paid plan.
    """
    integration = get(store, key)
    table = tables.integrations
    with store.begin() as tx:
        plan = tx.execute(sa.select(tables.apps.c.plan).where(tables.apps.c.app_id == integration.app_id)).scalar()
        if enabled and plan == "free":
            raise _not_paid(integration.app_id)
        values: dict[str, Any] = {"enabled": enabled}
        if enabled:
            values |= {"halted_reason": None, "halted_at": None, "last_error": None}
        tx.execute(sa.update(table).where(table.c.id == integration.id).values(**values))
    return get(store, key)


def remove(store: Store, key: str) -> list[str]:
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


def _rereads(tx: Transaction) -> list[Any]:
    return list(tx.execute(sa.select(tables.rereads)))


@lru_cache(64)
def _events(text: str) -> tuple[str, ...]:
    """Event types of a selection, from their JSON text; few texts are shared by all integrations."""
    return select_events(orjson.loads(text))


def _from_row(row: Any, rereads: Sequence[Any]) -> Integration:
    return Integration(
        id=row.id,
        app_id=row.app_id,
        name=row.name,
        enabled=bool(row.enabled),
        endpoint=row.endpoint,
        api_key=row.api_key,
        secret_key=row.secret_key,
        user_id_kind=row.user_id_kind,
        anonymous=row.anonymous,
        events=_events(row.events),
        rename=orjson.loads(row.rename),
        start_from=row.start_from,
        created_at=row.created_at,
        prepared_through=row.prepared_through,
        halted_reason=row.halted_reason,
        last_error=row.last_error,
        halted_at=row.halted_at,
        rereads=tuple(
            (one.after_segment, one.frontier)
            for one in rereads
            if one.app_id == row.app_id and one.integration_id > row.id
        ),
    )
