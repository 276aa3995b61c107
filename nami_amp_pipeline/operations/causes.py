"""Dead letters by cause: how many, since when, which fields were named, and how many can be sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros, to_text
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.dead_letters import Filter, check_reasons, condition_of, first_sent_of, joined
from nami_amp_pipeline.operations.named_fields import error_of, named_fields
from nami_amp_pipeline.state import Store, Transaction, tables

_WINDOW: Final = int(contract.DEDUPLICATION_WINDOW.total_seconds()) * 1_000_000

MOST_ANSWERS: Final = 50
"""So many different answers of a cause are read for the fields that they name."""


@dataclass(frozen=True)
class Cause:
    """The dead letters of an integration with one reason.

    Attributes:
        integration: ``<app_id>/<name>``.
        reason: as a code.
        events: how many.
        since, newest: when the first and the last of them became one, in µs since the epoch.
        sendable: how many can be sent again, and Amplitude would recognise a repeat.
        old: how many can be sent again, and Amplitude may count them twice: sent first more than 7 days ago.
        named: what Amplitude named, such as ``time is invalid``, with how many events; of the most frequent answers.
    """

    integration: str
    reason: str
    events: int
    since: int
    newest: int
    sendable: int
    old: int
    named: Mapping[str, int] = field(default_factory=dict)

    @property
    def means(self) -> str:
        """The reason in words."""
        return reasons.means(self.reason)

    @property
    def what_to_do(self) -> str | None:
        """A sentence without a full stop; None if there is nothing to do."""
        known = reasons.reason(self.reason)
        return known.action if known else None

    def to_json(self) -> dict[str, Any]:
        """An object of ``dead-letters causes --json``."""
        return {
            "integration": self.integration,
            "reason": self.reason,
            "means": self.means,
            "events": self.events,
            "since": to_text(self.since),
            "newest": to_text(self.newest),
            "can_be_sent_again": self.sendable,
            "older_than_7_days": self.old,
            "named": dict(self.named),
        }


def causes(store: Store, which: Filter) -> list[Cause]:
    """The causes of some dead letters, the largest first.

    Raises:
        Misconfigured: one of the reasons cannot be one.
    """
    table, integrations = tables.exceptions, tables.integrations
    first_sent = first_sent_of()
    now = micros(store.clock)
    has_body = table.c.body.is_not(None)
    is_old = sa.and_(has_body, first_sent.is_not(None), first_sent < now - _WINDOW)
    query = (
        sa.select(
            integrations.c.app_id + "/" + integrations.c.name,
            table.c.integration_id,
            table.c.reason,
            sa.func.count(),
            sa.func.min(table.c.at),
            sa.func.max(table.c.at),
            sa.func.sum(sa.case((has_body, 1), else_=0)),
            sa.func.sum(sa.case((is_old, 1), else_=0)),
        )
        .select_from(joined())
        .where(condition_of(which))
        .group_by(integrations.c.app_id, integrations.c.name, table.c.integration_id, table.c.reason)
    )
    with store.reading() as tx:
        check_reasons(which.reasons, tx)
        return sorted(
            (
                Cause(key, reason, events, since, newest, bodies - old, old, _named(tx, which, integration_id, reason))
                for key, integration_id, reason, events, since, newest, bodies, old in tx.execute(query).all()
            ),
            key=lambda cause: (-cause.events, cause.integration, cause.reason),
        )


def _named(tx: Transaction, which: Filter, integration_id: int, reason: str) -> dict[str, int]:
    if reason not in reasons.RETRYABLE:
        return {}
    table = tables.exceptions
    query = (
        sa.select(table.c.answer, sa.func.count().label("events"))
        .select_from(joined())
        .where(condition_of(which), table.c.integration_id == integration_id, table.c.reason == reason)
        .group_by(table.c.answer)
        .order_by(sa.desc("events"), table.c.answer)
        .limit(MOST_ANSWERS)
    )
    named: Counter[str] = Counter()
    for answer, events in tx.execute(query):
        fields = {f"{field.name} {field.how}" for field in named_fields(answer, None)}
        for said in fields or {error_of(answer) or ""}:
            if said:
                named[said] += events
    return dict(named.most_common())
