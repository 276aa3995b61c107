"""The facts that decide how integrations stand, read from the state store in a few queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.named_fields import error_of, named_fields
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, refreshed
from nami_amp_pipeline.state.store import Transaction

_WINDOW: Final = int(contract.DEDUPLICATION_WINDOW.total_seconds()) * 1_000_000
_SHOWN_USERS: Final = 3
_LATE_SECONDS: Final = 600.0
"""Events that are queued for longer have somebody ask whose they are."""

_CAPTURE: Final = "nami_events"
"""The asset of the stage that reads the warehouse; the table of the stages would bring all of DuckDB and Arrow."""

_PASSING: Final = ("Busy", "LostLease")
"""Troubles that mean that another process does the work."""


@dataclass(frozen=True)
class Facts:
    """What is known of an integration; times in µs since the epoch.

    Attributes:
        integration: its settings.
        numbers: its counts.
        off_at: when a person switched it off; None if that is not recorded.
        off_by: who did.
        unanswered: the outcome of its newest request and since when no request was answered; None if the newest was.
        project_until: until when Amplitude wants nothing of the project.
        users_until: until when the first of the held users waits.
        held_since: since when the oldest held event is held.
        held_users: how many users have held events.
        whose: some users that wait, as Amplitude knows them.
        rejected: dead letters of the last 7 days that can be posted again.
        rejected_by: the same by reason.
        rejected_since: when the oldest of them became one.
        rejected_for: what Amplitude named of the newest, such as ``time is invalid``; empty if it named nothing.
        trouble: what a stage could not do for it and when, if nothing has moved since.
        last_sign: when any micro-batch last did or read anything.
    """

    integration: Integration
    numbers: IntegrationStatus
    off_at: int | None = None
    off_by: str = ""
    unanswered: tuple[str, int] | None = None
    project_until: int | None = None
    users_until: int | None = None
    held_since: int | None = None
    held_users: int = 0
    whose: tuple[str, ...] = ()
    rejected_by: Mapping[str, int] = field(default_factory=dict)
    rejected_since: int | None = None
    rejected_for: str = ""
    trouble: tuple[str, int] | None = None
    last_sign: int | None = None

    @property
    def rejected(self) -> int:
        """Dead letters of the last 7 days that can be posted again."""
        return sum(self.rejected_by.values())


def facts_of(context: Context, integrations: Sequence[Integration], now: int) -> list[Facts]:
    """The facts of some integrations; those that were removed meanwhile are left out.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    numbers = {count.integration: count for count in status(context, integrations)}
    with context.store.reading() as tx:
        # As they are now: a run that halted one still has it as it was.
        there = [integration for integration in refreshed(tx, integrations) if integration.key in numbers]
        sign = last_sign(tx)
        off = _switched_off(tx, there)
        paused = _project_pauses(tx)
        held = _held(tx)
        rejected = _rejected(tx, now)
        in_trouble = _in_trouble(tx)
        found = []
        for integration in there:
            waits, dead = held.get(integration.id, _Held()), rejected.get(integration.id, _NONE)
            count = numbers[integration.key]
            unanswered = _unanswered(tx, integration) if count.to_post else None
            at, by = off.get(integration.key, (None, ""))
            found.append(
                Facts(
                    integration,
                    count,
                    off_at=at,
                    off_by=by,
                    unanswered=unanswered,
                    project_until=paused.get(integration.id),
                    users_until=waits.until,
                    held_since=waits.since,
                    held_users=waits.users,
                    whose=waits.some,
                    rejected_by=dead.by,
                    rejected_since=dead.since,
                    rejected_for=_named(tx, integration) if dead.by else "",
                    trouble=_trouble(tx, integration, count)
                    if in_trouble & {integration.app_id, integration.partition_key}
                    else None,
                    last_sign=sign,
                )
            )
    return [_with_users(context, integration, now) for integration in found]


def _with_users(context: Context, facts: Facts, now: int) -> Facts:
    """Names some users where events are queued and do not go: reading files is left out where all is well."""
    integration, count = facts.integration, facts.numbers
    stands = integration.halted_reason or not integration.enabled or facts.unanswered or facts.trouble
    late = count.lag_seconds > _LATE_SECONDS or (facts.project_until or 0) > now
    if facts.whose or not count.pending_by.get("queued") or not (stands or late):
        return facts
    from nami_amp_pipeline.operations.queued_users import some_users  # here: it brings Arrow

    return replace(facts, whose=some_users(context, integration, _SHOWN_USERS))


def last_sign(tx: Transaction) -> int | None:
    """When any micro-batch last did, read or failed anything, in µs since the epoch."""
    columns = (
        tables.observations.c.observed_at,
        tables.apps.c.captured_at,
        tables.outboxes.c.prepared_at,
        tables.run_troubles.c.at,
    )
    newest = [tx.execute(sa.select(sa.func.max(column))).scalar() for column in columns]
    request = sa.select(tables.requests.c.answered_at).order_by(tables.requests.c.id.desc()).limit(1)
    newest.append(tx.execute(request).scalar())
    return max((at for at in newest if at is not None), default=None)


def _switched_off(tx: Transaction, integrations: Sequence[Integration]) -> dict[str, tuple[int | None, str]]:
    table = tables.integration_changes
    off = [integration.key for integration in integrations if not integration.enabled]
    found: dict[str, tuple[int | None, str]] = {}
    if off:
        rows = tx.execute(sa.select(table).where(table.c.integration.in_(off)).order_by(table.c.id))
        for row in rows:
            what = orjson.loads(row.what)
            if what.get("enabled", [None, True])[1] is False:
                found[row.integration] = (row.at, row.by)
    for integration in integrations:  # one that was added switched off
        if not integration.enabled:
            found.setdefault(integration.key, (integration.created_at, ""))
    return found


def _project_pauses(tx: Transaction) -> dict[int, int]:
    table = tables.pauses
    query = sa.select(table.c.integration_id, table.c.until).where(table.c.identity == "")
    return dict(tx.execute(query).tuples().all())


@dataclass(frozen=True)
class _Held:
    users: int = 0
    since: int | None = None
    until: int | None = None
    some: tuple[str, ...] = ()


def _held(tx: Transaction) -> dict[int, _Held]:
    """By integration: how many users have events that are held, since when, until when, and the first of them."""
    table, pauses = tables.exceptions, tables.pauses
    held = table.c.state == "held"
    rows = tx.execute(
        sa.select(
            table.c.integration_id,
            sa.func.count(sa.distinct(table.c.identity)),
            sa.func.min(table.c.at),
            sa.func.min(pauses.c.until),
        )
        .outerjoin(
            pauses, sa.and_(pauses.c.integration_id == table.c.integration_id, pauses.c.identity == table.c.identity)
        )
        .where(held)
        .group_by(table.c.integration_id)
    ).all()
    found = {}
    for integration_id, users, since, until in rows:
        some = tx.execute(
            sa.select(table.c.identity)
            .where(held, table.c.integration_id == integration_id)
            .group_by(table.c.identity)
            .order_by(sa.func.min(table.c.at), table.c.identity)
            .limit(_SHOWN_USERS)
        ).scalars()
        found[integration_id] = _Held(users, since, until, tuple(identity.partition(":")[2] for identity in some))
    return found


@dataclass
class _Rejected:
    by: dict[str, int]
    since: int | None


_NONE: Final = _Rejected({}, None)


def _rejected(tx: Transaction, now: int) -> dict[int, _Rejected]:
    table = tables.exceptions
    rows = tx.execute(
        sa.select(table.c.integration_id, table.c.reason, sa.func.count(), sa.func.min(table.c.at))
        .where(
            table.c.state == "dead",
            table.c.reason.in_(reasons.RETRYABLE),
            table.c.body.is_not(None),
            table.c.at > now - _WINDOW,
        )
        .group_by(table.c.integration_id, table.c.reason)
    ).all()
    found: dict[int, _Rejected] = {}
    for integration_id, reason, events, since in rows:
        rejected = found.setdefault(integration_id, _Rejected({}, since))
        rejected.by[reason] = events
        rejected.since = min(since, rejected.since or since)
    return found


def _named(tx: Transaction, integration: Integration) -> str:
    """What Amplitude named of the newest event that it rejected."""
    table = tables.exceptions
    query = sa.select(table.c.answer).where(
        table.c.integration_id == integration.id, table.c.state == "dead", table.c.reason.in_(reasons.RETRYABLE)
    )
    answer = tx.execute(query.order_by(table.c.id.desc()).limit(1)).scalar()
    return ", ".join(f"{field.name} {field.how}" for field in named_fields(answer, None)) or error_of(answer) or ""


def _unanswered(tx: Transaction, integration: Integration) -> tuple[str, int] | None:
    """The outcome of the newest request and since when no request was answered; None if the newest one was."""
    table = tables.requests
    mine = table.c.integration_id == integration.id
    newest = tx.execute(
        sa.select(table.c.outcome).where(mine).order_by(table.c.sent_at.desc(), table.c.id.desc()).limit(1)
    ).scalar()
    if newest is None or not reasons.is_unreachable(newest):
        return None
    no_answer = sa.or_(
        table.c.outcome.in_(reasons.codes("unreachable")),
        *(table.c.outcome.startswith(f"http_{n}") for n in (408, 425, 5)),
    )
    answered = tx.execute(
        sa.select(table.c.sent_at).where(mine, sa.not_(no_answer)).order_by(table.c.sent_at.desc()).limit(1)
    ).scalar()
    first = sa.select(sa.func.min(table.c.sent_at)).where(mine)
    if answered is not None:
        first = first.where(table.c.sent_at > answered)
    since: int = tx.execute(first).scalar_one()
    return newest, since


def _in_trouble(tx: Transaction) -> set[str | None]:
    """The partitions that a stage ever could not be done for: few, so that the others are not asked for one by one."""
    table = tables.run_troubles
    return set(tx.execute(sa.select(table.c.partition).distinct().where(table.c.kind.not_in(_PASSING))).scalars())


def _trouble(tx: Transaction, integration: Integration, numbers: IntegrationStatus) -> tuple[str, int] | None:
    """What a stage could not do for an integration or its app, if nothing has moved since."""
    table, apps, boxes, requests = tables.run_troubles, tables.apps, tables.outboxes, tables.requests
    row = tx.execute(
        sa.select(table)
        .where(table.c.partition.in_((integration.app_id, integration.partition_key)), table.c.kind.not_in(_PASSING))
        .order_by(table.c.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    if row.asset == _CAPTURE:
        moved: sa.Select[Any] | sa.CompoundSelect[Any] = sa.select(apps.c.captured_at).where(
            apps.c.app_id == integration.app_id, apps.c.captured_at > row.at
        )
    elif not numbers.to_post:
        return None
    else:
        moved = sa.union_all(
            sa.select(boxes.c.prepared_at).where(
                boxes.c.integration_id == integration.id, boxes.c.prepared_at > row.at
            ),
            sa.select(requests.c.sent_at).where(
                requests.c.integration_id == integration.id, requests.c.sent_at > row.at
            ),
        )
    return None if tx.execute(moved.limit(1)).first() is not None else (row.message, row.at)
