"""The facts that decide how integrations stand, read from the state store in a few queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.dead_letters import is_dismissed
from nami_amp_pipeline.operations.named_fields import error_of, named_fields
from nami_amp_pipeline.operations.status import IntegrationStatus, numbers_of
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration, by_id, only_of
from nami_amp_pipeline.state.listed import Listed, list_all, listed
from nami_amp_pipeline.state.store import Transaction

_WINDOW: Final = int(contract.DEDUPLICATION_WINDOW.total_seconds()) * 1_000_000
SHOWN_USERS: Final = 3
"""So many of the users that wait are named."""

_LATE_SECONDS: Final = 600.0
"""Events that are queued for longer have somebody ask whose they are."""

MOST_NAMED: Final = 100
"""So many integrations whose users stand in files have them named, those that wait longest: each costs some
milliseconds, and an outage is everybody's."""

_CAPTURE: Final = "nami_events"
"""The asset of the stage that reads the warehouse; the table of the stages would bring all of DuckDB and Arrow."""

_AT_ONCE: Final = 500
"""So many ids in one statement."""

_PASSING: Final = ("Busy", "LostLease")
"""Troubles that mean that another process does the work."""


@dataclass(frozen=True)
class Facts:
    """What is known of an integration; times in µs since the epoch.

    Attributes:
        integration: the integration.
        numbers: its counts.
        off_at: when a person switched it off; None if that is not recorded.
        off_by: who did.
        unanswered: the outcome of its newest request and since when no request was answered; None if the newest was.
        project_until: until when Amplitude wants nothing of the project.
        users_until: until when the first of the held users waits.
        held_since: since when the oldest held event is held.
        held_users: how many users have held events.
        whose: some users that wait, as Amplitude knows them.
        whose_is_all: whether these are known to be all that wait to be posted.
        rejected: dead letters of the last 7 days that can be posted again, without those that a person dismissed.
        rejected_by: the same by reason.
        rejected_since: when the oldest of them became one.
        dismissed: dead letters that a person marked as seen, of any reason and age.
        rejected_for: what Amplitude named of the newest, such as ``time is invalid``; empty if it named nothing.
        trouble: what a stage could not do for it and when, if nothing has moved since.
        last_sign: when any micro-batch last did or read anything.
    """

    integration: Listed
    numbers: IntegrationStatus
    off_at: int | None = None
    off_by: str = ""
    unanswered: tuple[str, int] | None = None
    project_until: int | None = None
    users_until: int | None = None
    held_since: int | None = None
    held_users: int = 0
    whose: tuple[str, ...] = ()
    whose_is_all: bool = True
    rejected_by: Mapping[str, int] = field(default_factory=dict)
    rejected_since: int | None = None
    rejected_for: str = ""
    dismissed: int = 0
    trouble: tuple[str, int] | None = None
    last_sign: int | None = None

    @property
    def rejected(self) -> int:
        """Dead letters of the last 7 days that can be posted again, and that nobody dismissed."""
        return sum(self.rejected_by.values()) if self.rejected_by else 0


def facts_of(context: Context, integrations: Sequence[Integration | Listed] | None, now: int) -> list[Facts]:
    """The facts of some integrations, or of all; those that were removed meanwhile are left out.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    with context.store.reading() as tx:
        # As they are now: a run that halted one still has it as it was.
        there = list_all(tx) if integrations is None else listed(tx, integrations)
        numbers = dict(zip([each.id for each in there], numbers_of(context, tx, there), strict=True))
        sign = last_sign(tx)
        off = _switched_off(tx, there)
        ids = [integration.id for integration in there]
        paused = _project_pauses(tx, ids)
        held = _held(tx, ids)
        rejected = _rejected(tx, now, ids)
        dismissed = _dismissed(tx, ids)
        unanswered = _unanswered(tx, [number for number, count in numbers.items() if count.pending and count.to_post])
        troubles = _troubles(tx, there, numbers)
        special = {*paused, *held, *rejected, *dismissed, *unanswered, *troubles}
        found = []
        for integration in there:
            if integration.enabled and integration.id not in special and not numbers[integration.id].pending:
                found.append(Facts(integration, numbers[integration.id], last_sign=sign))  # as nearly all are
                continue
            waits, dead = held.get(integration.id, _Held()), rejected.get(integration.id, _NONE)
            at, by = off.get(integration.key, (None, ""))
            found.append(
                Facts(
                    integration,
                    numbers[integration.id],
                    off_at=at,
                    off_by=by,
                    unanswered=unanswered.get(integration.id),
                    project_until=paused.get(integration.id),
                    users_until=waits.until,
                    held_since=waits.since,
                    held_users=waits.users,
                    whose=waits.some,
                    whose_is_all=waits.users == len(waits.some)
                    and not numbers[integration.id].pending_by.get("queued"),
                    rejected_by=dead.by,
                    rejected_since=dead.since,
                    rejected_for=dead.named,
                    dismissed=dismissed.get(integration.id, 0),
                    trouble=troubles.get(integration.id),
                    last_sign=sign,
                )
            )
    nameless = [facts for facts in found if _lacks_users(facts, now)]
    nameless.sort(key=lambda facts: (-facts.numbers.lag_seconds, facts.integration.id))
    named = _whole(context, [facts.integration.id for facts in nameless[:MOST_NAMED]])
    if not named:
        return found
    whole = ((facts, named.get(facts.integration.id)) for facts in found)
    return [facts if integration is None else _with_users(context, facts, integration) for facts, integration in whole]


def _whole(context: Context, ids: Sequence[int]) -> dict[int, Integration]:
    """The integrations with all their settings."""
    if not ids:
        return {}
    with context.store.reading() as tx:
        return by_id(tx, ids)


def _lacks_users(facts: Facts, now: int) -> bool:
    """Whether events are queued and do not go, and it is not known yet whose they are, but for a few that are held."""
    integration, count = facts.integration, facts.numbers
    if not count.pending:
        return False
    stands = integration.halted_reason or not integration.enabled or facts.unanswered or facts.trouble
    late = count.lag_seconds > _LATE_SECONDS or (facts.project_until or 0) > now
    return bool(len(facts.whose) < SHOWN_USERS and count.pending_by.get("queued") and (stands or late))


def _with_users(context: Context, facts: Facts, integration: Integration) -> Facts:
    """Names some users, which takes the reading of a file."""
    from nami_amp_pipeline.operations.queued_users import some_users  # here: it brings Arrow

    queued, is_all = some_users(context, integration, SHOWN_USERS)
    names = tuple(dict.fromkeys((*facts.whose, *queued)))
    is_all = is_all and facts.held_users == len(facts.whose) and len(names) <= SHOWN_USERS
    return replace(facts, whose=names[:SHOWN_USERS], whose_is_all=is_all)


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


def _switched_off(tx: Transaction, integrations: Sequence[Listed]) -> dict[str, tuple[int | None, str]]:
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


def _project_pauses(tx: Transaction, ids: Sequence[int]) -> dict[int, int]:
    table = tables.pauses
    query = sa.select(table.c.integration_id, table.c.until).where(
        table.c.identity == "", only_of(table.c.integration_id, ids)
    )
    return dict(tx.execute(query).tuples().all())


@dataclass(frozen=True)
class _Held:
    users: int = 0
    since: int | None = None
    until: int | None = None
    some: tuple[str, ...] = ()


def _held(tx: Transaction, ids: Sequence[int]) -> dict[int, _Held]:
    """By integration: how many users have events that are held, since when, until when, and the first of them."""
    table, pauses = tables.exceptions, tables.pauses
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
        .where(table.c.state == "held", only_of(table.c.integration_id, ids))
        .group_by(table.c.integration_id)
    ).all()
    first = _first_held(tx, ids) if rows else {}
    return {
        integration_id: _Held(users, since, until, tuple(first.get(integration_id, ())))
        for integration_id, users, since, until in rows
    }


def _first_held(tx: Transaction, ids: Sequence[int]) -> dict[int, list[str]]:
    """By integration: the users whose events are held for longest, as Amplitude knows them."""
    table = tables.exceptions
    oldest = sa.func.min(table.c.at)
    place = sa.func.row_number().over(partition_by=table.c.integration_id, order_by=(oldest, table.c.identity))
    users = (
        sa.select(table.c.integration_id, table.c.identity, place.label("place"))
        .where(table.c.state == "held", only_of(table.c.integration_id, ids))
        .group_by(table.c.integration_id, table.c.identity)
        .subquery()
    )
    query = sa.select(users.c.integration_id, users.c.identity).where(users.c.place <= SHOWN_USERS)
    found: dict[int, list[str]] = {}
    for integration_id, identity in tx.execute(query.order_by(users.c.integration_id, users.c.place)):
        found.setdefault(integration_id, []).append(identity.partition(":")[2])
    return found


@dataclass
class _Rejected:
    by: dict[str, int]
    since: int | None
    newest: int = 0
    named: str = ""


_NONE: Final = _Rejected({}, None)


def _rejected(tx: Transaction, now: int, ids: Sequence[int]) -> dict[int, _Rejected]:
    """By integration: the dead letters that a person is asked about, and what Amplitude named of the newest."""
    table = tables.exceptions
    rows = tx.execute(
        sa.select(
            table.c.integration_id, table.c.reason, sa.func.count(), sa.func.min(table.c.at), sa.func.max(table.c.id)
        )
        .where(
            table.c.state == "dead",
            table.c.reason.in_(reasons.RETRYABLE),
            table.c.body.is_not(None),
            table.c.at > now - _WINDOW,
            sa.not_(is_dismissed()),
            only_of(table.c.integration_id, ids),
        )
        .group_by(table.c.integration_id, table.c.reason)
    ).all()
    found: dict[int, _Rejected] = {}
    for integration_id, reason, events, since, newest in rows:
        rejected = found.setdefault(integration_id, _Rejected({}, since))
        rejected.by[reason] = events
        rejected.since = min(since, rejected.since or since)
        rejected.newest = max(newest, rejected.newest)
    by_newest = {rejected.newest: rejected for rejected in found.values()}
    for some in _parts(list(by_newest)):
        for row_id, answer in tx.execute(sa.select(table.c.id, table.c.answer).where(table.c.id.in_(some))):
            fields = named_fields(answer, None)
            by_newest[row_id].named = (
                ", ".join(f"{field.name} {field.how}" for field in fields) or error_of(answer) or ""
            )
    return found


def _dismissed(tx: Transaction, ids: Sequence[int]) -> dict[int, int]:
    """By integration: the dead letters that a person marked as seen."""
    table = tables.exceptions
    mine = sa.and_(table.c.state == "dead", is_dismissed(), only_of(table.c.integration_id, ids))
    query = sa.select(table.c.integration_id, sa.func.count()).where(mine).group_by(table.c.integration_id)
    return dict(tx.execute(query).tuples().all())


def _unanswered(tx: Transaction, integration_ids: Sequence[int]) -> dict[int, tuple[str, int]]:
    """By integration: the outcome of the newest request and since when none was answered; without the others."""
    found: dict[int, tuple[str, int]] = {}
    ids, table, request = tables.integrations.c.id, tables.requests, tables.requests.alias("request")
    # A subquery for each integration reads one entry of the index; a maximum by group would read all of it.
    mine = request.c.integration_id == ids
    newest = sa.select(request.c.id).where(mine).order_by(request.c.sent_at.desc(), request.c.id.desc()).limit(1)
    no_answer = sa.or_(
        request.c.outcome.in_(reasons.codes("unreachable")),
        *(request.c.outcome.startswith(f"http_{n}") for n in (408, 425, 5)),
    )
    answered = sa.select(request.c.sent_at).where(mine, sa.not_(no_answer)).order_by(request.c.sent_at.desc()).limit(1)
    first = sa.select(sa.func.min(table.c.sent_at)).where(
        table.c.integration_id == ids,
        table.c.sent_at > sa.func.coalesce(answered.correlate(tables.integrations).scalar_subquery(), -1),
    )
    last = newest.correlate(tables.integrations).scalar_subquery()
    for some in _parts(integration_ids):
        both = tables.integrations.join(table, table.c.id == last)
        query = sa.select(ids, table.c.outcome).select_from(both).where(ids.in_(some))
        outcomes = dict(tx.execute(query).tuples().all())
        silent = [integration_id for integration_id, outcome in outcomes.items() if reasons.is_unreachable(outcome)]
        since = sa.select(ids, first.correlate(tables.integrations).scalar_subquery()).where(ids.in_(silent))
        for integration_id, at in tx.execute(since) if silent else ():
            found[integration_id] = (outcomes[integration_id], at)
    return found


def _troubles(
    tx: Transaction, integrations: Sequence[Listed], numbers: Mapping[int, IntegrationStatus]
) -> dict[int, tuple[str, int]]:
    """By integration: what a stage could not do for it or its app, if nothing has moved since."""
    table, apps = tables.run_troubles, tables.apps
    last = sa.select(sa.func.max(table.c.id)).where(table.c.kind.not_in(_PASSING)).group_by(table.c.partition)
    newest = {row.partition: row for row in tx.execute(sa.select(table).where(table.c.id.in_(last)))}
    if not newest:
        return {}
    rows = {}
    for integration in integrations:
        own = [newest[name] for name in (integration.app_id, integration.partition_key) if name in newest]
        if own:
            rows[integration.id] = max(own, key=lambda row: row.id)
    if not rows:
        return {}
    captured = dict(tx.execute(sa.select(apps.c.app_id, apps.c.captured_at)).tuples().all())
    moved = _last_moves(tx, list(rows))
    found = {}
    for integration in integrations:
        row = rows.get(integration.id)
        if row is None:
            continue
        at = captured.get(integration.app_id) if row.asset == _CAPTURE else moved.get(integration.id)
        is_over = at is not None and at > row.at
        if not is_over and (row.asset == _CAPTURE or numbers[integration.id].to_post):
            found[integration.id] = (row.message, row.at)
    return found


def _last_moves(tx: Transaction, integration_ids: Sequence[int]) -> dict[int, int]:
    """By integration: when something was prepared or posted for it last."""
    ids, boxes, requests = tables.integrations.c.id, tables.outboxes, tables.requests
    prepared = sa.select(boxes.c.prepared_at).where(boxes.c.integration_id == ids).order_by(boxes.c.id.desc()).limit(1)
    posted = sa.select(sa.func.max(requests.c.sent_at)).where(requests.c.integration_id == ids)
    found = {}
    for some in _parts(integration_ids):
        query = sa.select(
            ids,
            prepared.correlate(tables.integrations).scalar_subquery(),
            posted.correlate(tables.integrations).scalar_subquery(),
        )
        for integration_id, *moments in tx.execute(query.where(ids.in_(some))):
            found[integration_id] = max((at for at in moments if at is not None), default=0)
    return found


def _parts(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
