"""Rotates the encryption key: re-encrypts all stored API keys, and loses none if it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_keys import hold_keys
from nami_amp_pipeline.state.store import Store, Transaction

_COLUMNS = ("api_key", "secret_key", "hash_salt")
_NAMED = 5


@dataclass(frozen=True)
class Rotated:
    """What a rotation did.

    Attributes:
        encrypted: keys that were re-encrypted.
        current: keys that already used the newest encryption key.
        older: encryption keys that are still accepted but no longer needed by the store.
        key_file: where the keys are; None if they come from the environment.
    """

    encrypted: int
    current: int
    older: int
    key_file: Path | None = field(default=None, compare=False)


def rotate(store: Store, cipher: Cipher, step: Callable[[str], None] = lambda _step: None) -> Rotated:
    """Encrypts all stored keys with the newest encryption key.

    If the keys are in a file, a new key is made first. It is on the disk before anything is encrypted with it, and the
    older keys stay in the file, so a rotation can be stopped at any moment and started again.

    Args:
        store: the store.
        cipher: of the keys.
        step: called just before each step takes effect, for kill tests.

    Raises:
        Misconfigured: the encryption key of a stored key is missing; nothing was changed.
    """
    encrypted = current = 0
    with store.begin() as tx:
        hold_keys(store, tx, alone=True)
        _check(tx, cipher)
        tokens = _tokens(tx)
        begun_before = cipher.uses_file and cipher.older_keys() and not any(map(cipher.is_current, tokens.values()))
        if cipher.uses_file and not begun_before:
            step("rotate.key")
            cipher.add_key_to_file()
        step("rotate.encrypt")
        table = tables.integrations
        for (integration_id, column), token in tokens.items():
            if cipher.is_current(token):
                current += 1
                continue
            again = cipher.encrypt(cipher.decrypt(token))
            tx.execute(sa.update(table).where(table.c.id == integration_id).values({column: again}))
            encrypted += 1
        step("rotate.commit")
    step("rotate.committed")
    return Rotated(encrypted, current, cipher.older_keys(), cipher.key_file if cipher.uses_file else None)


def forget(store: Store, cipher: Cipher) -> int:
    """Drops the older keys of the key file if nothing in the store needs them; returns how many.

    Raises:
        Misconfigured: the keys do not come from a file, or something still needs an older key.
    """
    if not cipher.uses_file:
        raise Misconfigured("the keys come from NAMI_AMP_ENCRYPTION_KEY: remove the older keys there")
    with store.begin() as tx:
        hold_keys(store, tx, alone=True)
        older = cipher.older_keys()
        if not all(map(cipher.is_current, _tokens(tx).values())):
            raise Misconfigured(
                "stored API keys are still encrypted with an older key: run 'nami-amp keys rotate' first"
            )
        if older:
            cipher.forget_older_keys_of_file()
    return older


def unreadable(tx: Transaction, cipher: Cipher) -> list[str]:
    """The keys of the integrations with a stored key that cannot be decrypted."""
    table = tables.integrations
    found = []
    for row in tx.execute(sa.select(table).where(table.c.backfill_of.is_(None)).order_by(table.c.id)).mappings():
        try:
            for column in _COLUMNS:
                if row[column] is not None:
                    cipher.decrypt(row[column])
        except Misconfigured:
            found.append(f"{row['app_id']}/{row['name']}")
    return found


def _check(tx: Transaction, cipher: Cipher) -> None:
    if names := unreadable(tx, cipher):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise Misconfigured(
            f"the keys of {', '.join(names[:_NAMED])}{more} were encrypted with a key that is missing: append it to "
            "NAMI_AMP_ENCRYPTION_KEY after a comma, or set the API keys again with 'nami-amp integrations update'"
        )


def _tokens(tx: Transaction) -> dict[tuple[int, str], str]:
    table = tables.integrations
    columns = sa.select(table.c.id, *(table.c[column] for column in _COLUMNS))
    # The row of a backfill has no keys.
    rows = tx.execute(columns.where(table.c.backfill_of.is_(None)).order_by(table.c.id)).mappings()
    return {(row["id"], column): row[column] for row in rows for column in _COLUMNS if row[column] is not None}
