"""Rotates the encryption key: re-encrypts all stored API keys, and loses none if it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_keys import hold_keys
from nami_amp_pipeline.state.store import Store, Transaction

_COLUMNS = ("api_key", "secret_key", "hash_salt")
_FIELDS = "secret_fields"
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
        begun_before = cipher.uses_file and cipher.older_keys() and not any(map(cipher.is_current, _all_of(tokens)))
        if cipher.uses_file and not begun_before:
            step("rotate.key")
            cipher.add_key_to_file()
        step("rotate.encrypt")
        table = tables.integrations
        for (integration_id, column), found in tokens.items():
            older = {name: token for name, token in found.items() if not cipher.is_current(token)}
            current += len(found) - len(older)
            if not older:
                continue
            again = found | {name: cipher.encrypt(cipher.decrypt(token)) for name, token in older.items()}
            value = orjson.dumps(again).decode() if column == _FIELDS else again[column]
            tx.execute(sa.update(table).where(table.c.id == integration_id).values({column: value}))
            encrypted += len(older)
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
        if not all(map(cipher.is_current, _all_of(_tokens(tx)))):
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
            for tokens in _of_row(row).values():
                for token in tokens.values():
                    cipher.decrypt(token)
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


def _tokens(tx: Transaction) -> dict[tuple[int, str], dict[str, str]]:
    """What is encrypted, by integration and column; a column holds some by name, or one by the column's name."""
    table = tables.integrations
    columns = sa.select(table.c.id, *(table.c[column] for column in (*_COLUMNS, _FIELDS)))
    # The row of a backfill has no keys.
    rows = tx.execute(columns.where(table.c.backfill_of.is_(None)).order_by(table.c.id)).mappings()
    return {(row["id"], column): found for row in rows for column, found in _of_row(row).items()}


def _of_row(row: Any) -> dict[str, dict[str, str]]:
    found = {column: {column: row[column]} for column in _COLUMNS if row[column] is not None}
    return found | {_FIELDS: orjson.loads(row[_FIELDS])}


def _all_of(tokens: Mapping[tuple[int, str], Mapping[str, str]]) -> list[str]:
    return [token for found in tokens.values() for token in found.values()]
