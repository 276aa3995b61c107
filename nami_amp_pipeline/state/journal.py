"""What happened that is no change of an integration: halts and their ends, quotas, people and their sign-ins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Transaction

Kind = Literal[
    "halted",
    "resumed",
    "plan",
    "quota",
    "person_added",
    "person_removed",
    "role_changed",
    "password_changed",
    "signed_in",
    "signed_out",
]
"""What an entry is of."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

SIGN_INS: Final[tuple[Kind, ...]] = ("signed_in", "signed_out")
"""Those that come every day; retention removes old ones."""


@dataclass(frozen=True)
class Entry:
    """Something that happened.

    Attributes:
        id: grows with each entry.
        at: when, in µs since the epoch.
        app_id: the app that it is of; None of what is of all apps.
        integration: ``<app_id>/<name>``; None if it is of none.
        kind: see :data:`Kind`.
        by: who did it; empty for the pipeline itself.
        what: what there is to say, by name.
    """

    id: int
    at: int
    app_id: str | None
    integration: str | None
    kind: Kind
    by: str
    what: Mapping[str, Any]


def note(tx: Transaction, kind: Kind, at: int, *, by: str = "", app_id: str | None = None, **what: Any) -> None:
    """Records something, in the transaction in which it happens."""
    tx.execute(
        sa.insert(tables.journal).values(
            at=at, app_id=app_id, kind=kind, by=by, what=orjson.dumps(what).decode(), integration=None
        )
    )


def note_of_integration(
    tx: Transaction, kind: Kind, at: int, integration_id: int, *, by: str = "", **what: Any
) -> None:
    """The same of an integration; what happens to a backfill's own row is told by the backfill."""
    table = tables.integrations
    values = sa.select(
        sa.literal(at, sa.BigInteger),
        table.c.app_id,
        table.c.app_id + "/" + table.c.name,
        sa.literal(kind, sa.Text),
        sa.literal(by, sa.Text),
        sa.literal(orjson.dumps(what).decode(), sa.Text),
    ).where(table.c.id == integration_id, table.c.backfill_of.is_(None))
    columns = ["at", "app_id", "integration", "kind", "by", "what"]
    tx.execute(sa.insert(tables.journal).from_select(columns, values))


def entry_of(row: Any) -> Entry:
    """A row of the table as an entry."""
    return Entry(row.id, row.at, row.app_id, row.integration, row.kind, row.by, orjson.loads(row.what))


def halts(tx: Transaction, key: str, since: int) -> list[Entry]:
    """The halts of an integration from a time on, and their ends; the oldest first."""
    table = tables.journal
    query = sa.select(table).where(
        table.c.integration == key, table.c.at >= since, table.c.kind.in_(("halted", "resumed"))
    )
    return [entry_of(row) for row in tx.execute(query.order_by(table.c.at, table.c.id))]
