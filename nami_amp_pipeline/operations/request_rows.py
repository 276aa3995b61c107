"""The requests of an integration with their answers, the newest first, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration


@dataclass(frozen=True)
class RequestRow:
    """A request.

    Attributes:
        id: of the store.
        sent_at: when, in µs since the epoch.
        millis: until its answer, in ms.
        events: how many it had.
        size: bytes of its body.
        status: HTTP; 0 without an answer.
        outcome: as a code.
        answer: what it said, where there is something to say.
        run_id: of the run that sent it.
    """

    id: int
    sent_at: int
    millis: int
    events: int
    size: int
    status: int
    outcome: str
    answer: str | None
    run_id: str

    @property
    def said(self) -> str:
        """The outcome in words."""
        return "delivered" if self.outcome == "delivered" else reasons.means(self.outcome)

    @property
    def place(self) -> str:
        """Its key in the list."""
        return f"{self.sent_at}.{self.id}"

    def to_json(self) -> dict[str, Any]:
        """An object of ``deliveries --requests --json``."""
        return {
            "id": self.id,
            "sent_at": to_text(self.sent_at),
            "milliseconds": self.millis,
            "events": self.events,
            "bytes": self.size,
            "status": self.status,
            "outcome": self.outcome,
            "answer": self.answer,
            "run_id": self.run_id,
        }


def request_rows(
    context: Context,
    integration: Integration,
    *,
    since: int | None = None,
    only_failed: bool = False,
    after: str = "",
    limit: int = 50,
) -> tuple[list[RequestRow], str | None]:
    """Requests of an integration, and the key of the next page; None if there are no more.

    Args:
        context: the process at work.
        integration: whose.
        since: sent at or after this, in µs since the epoch.
        only_failed: without those that were delivered.
        after: the key of a page, as the page before has it.
        limit: so many at most.

    Raises:
        Misconfigured: there is no such page.
    """
    table = tables.requests
    query = sa.select(table).where(table.c.integration_id == integration.id)
    if since is not None:
        query = query.where(table.c.sent_at >= since)
    if only_failed:
        query = query.where(table.c.outcome != "delivered")
    if after:
        at, _, number = after.partition(".")
        if not (at.isascii() and at.isdecimal() and number.isascii() and number.isdecimal() and len(after) < 40):
            raise Misconfigured("this address names no page of the list: begin at its first page")
        before = sa.and_(table.c.sent_at == int(at), table.c.id < int(number))
        query = query.where(table.c.sent_at <= int(at), sa.or_(table.c.sent_at < int(at), before))
    query = query.order_by(table.c.sent_at.desc(), table.c.id.desc()).limit(limit + 1)
    with context.store.reading() as tx:
        rows = tx.execute(query).all()
    found = [
        RequestRow(
            row.id,
            row.sent_at,
            max(0, row.answered_at - row.sent_at) // 1_000,
            row.events,
            row.bytes,
            row.status,
            row.outcome,
            row.answer,
            row.run_id,
        )
        for row in rows[:limit]
    ]
    return found, found[-1].place if len(rows) > limit else None
