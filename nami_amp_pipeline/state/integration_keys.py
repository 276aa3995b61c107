"""The keys of integrations: encrypted, protected from a rotation meanwhile, and not shared by accident."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.destinations import destination_of, title_of
from nami_amp_pipeline.errors import Misconfigured, SharedKey
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state.integration_rows import Integration, read_all
from nami_amp_pipeline.state.store import Store, Transaction

_ENCRYPTING = 7_263_104_286  # any number that is ours alone
_SALT_BYTES = 32


def hold_keys(store: Store, tx: Transaction, *, alone: bool = False) -> None:
    """Prevents a rotation of the encryption keys until the transaction ends; on SQLite, any write does that.

    Args:
        store: for its kind.
        tx: the transaction.
        alone: exclusive, for the rotation: waits for all that encrypt, and blocks others.
    """
    if not store.is_sqlite:
        lock = sa.func.pg_advisory_xact_lock if alone else sa.func.pg_advisory_xact_lock_shared
        tx.execute(sa.select(lock(_ENCRYPTING)))


def new_salt(cipher: Cipher) -> str:
    """A random salt for hashes, encrypted."""
    return cipher.encrypt(Secret(secrets.token_hex(_SALT_BYTES)))


def place_of(destination: str, endpoint: str) -> str:
    """Where a key names one place that keeps events: a project at any of a destination's own addresses.

    Elsewhere, and of a destination that cannot be used any more, a key is known at one address only.
    """
    try:
        return destination if destination_of(destination).endpoints else endpoint
    except Misconfigured:
        return endpoint


def sharing_a_key(integrations: Sequence[Integration], cipher: Cipher) -> list[tuple[Integration, Integration]]:
    """Pairs of integrations of one app with one API key at one place and event types in common.

    Amplitude knows an event by its ``insert_id`` in a project: it answers the second copy with 200 and drops it.
    Integrations whose key cannot be decrypted are ignored.
    """
    seen: dict[tuple[str, str, str], list[Integration]] = {}
    pairs = []
    for integration in integrations:
        try:
            key = cipher.decrypt(integration.api_key).reveal()
        except Misconfigured:
            continue
        others = seen.setdefault((integration.app_id, place_of(integration.destination, integration.endpoint), key), [])
        pairs += [(other, integration) for other in others if set(other.events) & set(integration.events)]
        others.append(integration)
    return pairs


def refuse_shared(
    tx: Transaction, cipher: Cipher, app_id: str, name: str, key: tuple[str, Secret], patterns: Sequence[str]
) -> None:
    """Checks that no other integration of an app has this key and some of the same event types.

    Args:
        tx: the transaction to read in.
        cipher: for the keys.
        app_id: the app.
        name: of the integration that is to have it.
        key: its place (:func:`place_of`) and the key.
        patterns: its event types.

    Raises:
        SharedKey: one has.
    """
    place, api_key = key
    events = {event_type.name for event_type in contract.select_events(patterns)}
    for other in read_all(tx):
        if other.app_id != app_id or other.name == name or not events & set(other.events):
            continue
        if place != place_of(other.destination, other.endpoint):
            continue
        try:
            same = cipher.decrypt(other.api_key).reveal() == api_key.reveal().strip()
        except Misconfigured:
            continue
        if same:
            raise SharedKey(
                f"{other.key} has the same API key and some of the same event types: {title_of(other.destination)} "
                "would keep only one copy of such an event. Select other events, or give --allow-shared-key"
            )
