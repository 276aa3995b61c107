"""Who waits, why, and until when: the events that have no end yet, by integration and user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline.clock import from_datetime, to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.queued_users import queued_users
from nami_amp_pipeline.operations.standing import Standing, standings
from nami_amp_pipeline.operations.status import WAITING
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration, read_all, refreshed

_DAY: Final = 86_400_000_000


@dataclass(frozen=True)
class PendingUser:
    """The pending events of one user with one integration.

    Attributes:
        integration: ``<app_id>/<name>``.
        user: as Amplitude knows them, or will; None where the user has no such id yet.
        nami_user: Nami's id; None where events of several Nami users go to one Amplitude user.
        events: how many are pending.
        oldest: when Nami created the oldest of them, in µs since the epoch.
        reason: a code of :data:`~nami_amp_pipeline.operations.reasons.REASONS`, or the state of the integration.
        why: the same in words.
        until: when they can go at the earliest, in µs since the epoch; None if a person or a login decides.
    """

    integration: str
    user: str | None
    nami_user: str | None
    events: int
    oldest: int
    reason: str
    why: str
    until: int | None

    def to_json(self) -> dict[str, Any]:
        """One object of ``pending list --json``."""
        return {
            "integration": self.integration,
            "user": self.user,
            "nami_user": self.nami_user,
            "events": self.events,
            "oldest_created": to_text(self.oldest),
            "reason": self.reason,
            "why": self.why,
            "until": to_text(self.until),
        }


@dataclass(frozen=True)
class _Group:
    user: str | None
    nami_user: str | None
    events: int
    oldest: int
    reason: str
    until: int | None = None


MOST_QUEUED: Final = 20_000
"""A page looks for the users of so many queued events of an integration: they are read from files."""


def pending(
    context: Context, integrations: Sequence[Integration] | None = None, *, most_queued: int | None = None
) -> list[PendingUser]:
    """Who waits with which integration; who has waited longest comes first.

    Reads the files of what is queued: it takes time where millions of events are.

    Args:
        context: the process at work.
        integrations: those to look at; all by default.
        most_queued: where more events than that are queued, their users are left out.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    with context.store.reading() as tx:
        chosen = read_all(tx) if integrations is None else refreshed(tx, integrations)
    stands = {standing.integration: standing for standing in standings(context, integrations=chosen)}
    found = []
    for integration in chosen:
        standing = stands.get(integration.key)
        if standing is not None and standing.pending:
            is_long = most_queued is not None and standing.numbers.pending_by.get("queued", 0) > most_queued
            groups = [*_excepted(context, integration), *(() if is_long else _queued(context, integration))]
            found += [_told(context, standing, group) for group in groups]
    return sorted(found, key=lambda user: (user.integration, user.oldest, user.user or "", user.nami_user or ""))


def _told(context: Context, standing: Standing, group: _Group) -> PendingUser:
    """Why a user waits: for its own reason, unless the whole integration stands."""
    reason, why, until = group.reason, reasons.means(group.reason), group.until
    following = _micros(standing.next_try)
    if reason == WAITING:
        until = group.until
        why = f"{why}; given up {to_text(until)}" if until else why
        until = None
    elif standing.state in ("off", "halted", "unreachable") or standing.code in ("project_throttled", "no_run"):
        reason = standing.code or standing.state
        why = f"{standing.state}: {standing.why}" if standing.state != "waiting" else standing.why
        until = following
    else:
        until = max((at for at in (until, following) if at is not None), default=None)
    return PendingUser(
        standing.integration, group.user, group.nami_user, group.events, group.oldest, reason, why, until
    )


def _excepted(context: Context, integration: Integration) -> Iterator[_Group]:
    """Those of whom the store has each event: held, and waiting for a login."""
    table, pauses = tables.exceptions, tables.pauses
    query = (
        sa.select(
            table.c.state,
            table.c.identity,
            sa.func.min(table.c.user_id),
            sa.func.count(sa.distinct(table.c.user_id)),
            sa.func.count(),
            sa.func.min(table.c.created_date),
            sa.func.min(table.c.at),
            pauses.c.reason,
            pauses.c.until,
        )
        .outerjoin(
            pauses, sa.and_(pauses.c.integration_id == table.c.integration_id, pauses.c.identity == table.c.identity)
        )
        .where(table.c.integration_id == integration.id, table.c.state.in_(("held", "waiting")))
        # Who waits for a login has no identity yet: each Nami user waits for its own.
        .group_by(
            table.c.state,
            table.c.identity,
            sa.case((table.c.state == "waiting", table.c.user_id), else_=""),
            pauses.c.reason,
            pauses.c.until,
        )
    )
    with context.store.reading() as tx:
        rows = tx.execute(query).all()
    for state, identity, nami_user, users, events, oldest, since, reason, until in rows:
        user, nami = _name(identity), nami_user if users == 1 else None
        if state == "waiting":
            yield _Group(user, nami, events, oldest, WAITING, since + context.settings.hold_days * _DAY)
        else:
            yield _Group(user, nami, events, oldest, reason or "held", until)


def _queued(context: Context, integration: Integration) -> Iterator[_Group]:
    """Those whose events are in outboxes, or in segments from which no outbox was made yet."""
    for user, nami_user, events, oldest in queued_users(context, integration):
        yield _Group(user, nami_user, events, oldest, "queued")


def _name(identity: str) -> str | None:
    return identity.partition(":")[2] or None


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else from_datetime(moment)
