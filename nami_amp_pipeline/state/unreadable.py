"""Rows of the warehouse that cannot be captured: how many, of which app, why, and an example."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.among import among
from nami_amp_pipeline.state.store import Store, Transaction

PLACED: Final = ("no_id", "long_id", "odd_row")
"""Reasons of rows whose position is known: rows before an app's frontier count once, later rows at each reading."""

_AFTER: Final = "/recent"
_EXAMPLE_CHARACTERS: Final = 300


@dataclass(frozen=True)
class Unreadable:
    """Rows of one app that cannot be captured for one reason.

    Attributes:
        app_id: empty if the rows name no app.
        reason: one of :data:`~nami_amp_pipeline.contract.UNREADABLE`.
        rows: how many.
        example: names one of them.
        first_at, last_at: when the first row was seen, and when their number last changed; in µs since the epoch.
    """

    app_id: str
    reason: str
    rows: int
    example: str = ""
    first_at: int = 0
    last_at: int = 0

    def __str__(self) -> str:
        return contract.unreadable_text(self.app_id, self.reason, self.rows, self.example)


def unreadable(store: Store) -> list[Unreadable]:
    """The rows that cannot be captured, by app and reason."""
    with store.reading() as tx:
        return _all(tx)


def note(
    store: Store,
    tx: Transaction,
    app_ids: Collection[str],
    now: int,
    *,
    unplaced: Sequence[Unreadable],
    settled: Sequence[Unreadable],
    recent: Sequence[Unreadable],
) -> list[Unreadable]:
    """Notes the rows that one reading of the warehouse could not capture.

    Args:
        store: of the transaction.
        tx: the transaction that moves the apps' frontiers.
        app_ids: the apps that were read.
        now: in µs since the epoch.
        unplaced: all rows whose position in the reading is unknown.
        settled: rows that the frontier passed in this reading.
        recent: rows that the next reading will see again.

    Returns:
        The findings whose number has grown.
    """
    table = tables.unreadable_rows
    before = {(finding.app_id, finding.reason): finding.rows for finding in _all(tx)}
    mine = among(store, table.c.app_id, [*app_ids, ""])
    stored = {(row.app_id, row.reason): row for row in tx.execute(sa.select(table).where(mine))}
    wanted: dict[tuple[str, str], Unreadable] = {
        (finding.app_id, finding.reason + after): finding
        for some, after in ((unplaced, ""), (recent, _AFTER))
        for finding in some
    }
    for finding in settled:
        old = stored.get((finding.app_id, finding.reason))
        wanted[finding.app_id, finding.reason] = (
            Unreadable(finding.app_id, finding.reason, finding.rows + old.rows, old.example)
            if old is not None
            else finding
        )
    kept = {key for key in stored if key[1] in PLACED}
    for key in stored.keys() - wanted.keys() - kept:
        tx.execute(sa.delete(table).where(table.c.app_id == key[0], table.c.reason == key[1]))
    rows = []
    for (app_id, reason), finding in wanted.items():
        old = stored.get((app_id, reason))
        if old is None or old.rows != finding.rows:
            example = finding.example.replace("\0", "")[:_EXAMPLE_CHARACTERS]
            first = now if old is None else old.first_at
            rows.append({"app_id": app_id, "reason": reason, "rows": finding.rows, "example": example,
                         "first_at": first, "last_at": now})  # fmt: skip
    store.upsert(tx, table, rows, ["app_id", "reason"], update=["rows", "example", "first_at", "last_at"])
    if not rows:
        return []
    return [finding for finding in _all(tx) if finding.rows > before.get((finding.app_id, finding.reason), 0)]


def _all(tx: Transaction) -> list[Unreadable]:
    found: dict[tuple[str, str], Unreadable] = {}
    table = tables.unreadable_rows
    for row in tx.execute(sa.select(table).order_by(table.c.app_id, table.c.reason)):
        key = row.app_id, row.reason.removesuffix(_AFTER)
        earlier = found.get(key)
        found[key] = Unreadable(
            *key,
            rows=row.rows + (earlier.rows if earlier else 0),
            example=earlier.example if earlier else row.example,
            first_at=min(row.first_at, earlier.first_at) if earlier else row.first_at,
            last_at=max(row.last_at, earlier.last_at) if earlier else row.last_at,
        )
    return list(found.values())
