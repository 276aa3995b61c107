"""Which integrations post to the same project: with the same API key to the same address. Keys are not compared."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from secrets import token_bytes
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline.destinations import destination_of
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Transaction

_OWN: Final = token_bytes(32)
"""Makes this process's fingerprints, which nobody else can compare with anything."""


class Projects:
    """Tells projects apart by fingerprints of their API keys, which are compared within this process and kept nowhere.

    Args:
        cipher: of the API keys.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher
        self._known: dict[str, str] = {}

    @staticmethod
    def of(api_key: Secret) -> str:
        """The fingerprint of an API key."""
        return hmac.digest(_OWN, api_key.reveal().encode(), "sha256").hex()

    def fingerprint(self, token: str) -> str:
        """The fingerprint of an encrypted API key.

        Raises:
            Misconfigured: it cannot be decrypted.
        """
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self.of(self._cipher.decrypt(token))
        return known

    def pauses(self, tx: Transaction, now: int) -> dict[tuple[str, str], int]:
        """Until when live integrations were told to leave their project alone.

        Returns:
            Times in µs since the epoch, by endpoint and fingerprint. Keys that cannot be decrypted are left out.
        """
        table, pauses = tables.integrations, tables.pauses
        rows = tx.execute(
            sa.select(table.c.endpoint, table.c.api_key, pauses.c.until)
            .join(pauses, pauses.c.integration_id == table.c.id)
            .where(pauses.c.identity == "", pauses.c.until > now, table.c.backfill_of.is_(None))
        ).all()
        found: dict[tuple[str, str], int] = {}
        for row in rows:
            try:
                project = row.endpoint, self.fingerprint(row.api_key)
            except Misconfigured:
                continue
            found[project] = max(found.get(project, 0), row.until)
        return found

    def others(self, tx: Transaction, integration: Integration) -> Sequence[int]:
        """The other integrations, people's own and enabled, that post to the project of one, whichever of its APIs."""
        table = tables.integrations
        rows = tx.execute(
            sa.select(table.c.id, table.c.endpoint, table.c.api_key).where(
                table.c.id != integration.id,
                table.c.destination == integration.destination,
                table.c.enabled,
                table.c.backfill_of.is_(None),
            )
        ).all()
        address = destination_of(integration.destination).endpoint_for_many
        mine = address(integration.endpoint)
        found = []
        for row in rows:
            try:
                is_same = address(row.endpoint) == mine and self.fingerprint(row.api_key) == self.fingerprint(
                    integration.api_key
                )
            except Misconfigured:
                continue
            if is_same:
                found.append(row.id)
        return found
