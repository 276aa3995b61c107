"""Dead letters: the events that Amplitude will not get, why, and a second try once the cause is repaired."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.backfill.channels import IDENTIFY
from nami_amp_pipeline.clock import micros, to_text
from nami_amp_pipeline.destinations import DEFAULT, repeats_micros
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.named_fields import NamedField, error_of, named_fields
from nami_amp_pipeline.operations.wording import said_of
from nami_amp_pipeline.stages.held_history import become_history
from nami_amp_pipeline.state import Store, Transaction, hourly_counts, live_first, resends, tables

_AT_ONCE = 500

OUTCOME_UNKNOWN = "outcome_unknown"
RETRIED = "retried"

NO_BODY = "no Amplitude event was made from it, so there is nothing to send"
TOO_OLD = (
    "it may have been sent more than 7 days ago, and Amplitude would no longer recognise a repeat (--force sends it)"
)
OF_IDENTIFY = "it is of an identify: 'nami-amp identify APP/NAME' tries its user again, with the snapshot of then"
BUSY = "a run is delivering for its integration: retry when the run has ended"


@dataclass(frozen=True)
class DeadLetter:
    """An event that will not be delivered.

    Attributes:
        id: its number, for ``show`` and ``retry``.
        integration_id: of the store.
        integration: ``<app_id>/<name>``.
        reason: why, in a word.
        event_id: Nami's event id, which is the ``insert_id`` too.
        event_type: Nami's.
        user_id: Nami's.
        created_date: when Nami created the event, in µs since the epoch.
        at: when it became a dead letter.
        first_sent: since when it may be in Amplitude, or when it was refused; None if it was never posted.
        run_id: of the run that gave it up.
        dismissed_at: when a person marked it as seen, in µs since the epoch; None if nobody did.
        dismissed_by: who did.
        body: the Amplitude event, as it was posted.
        payload: Nami's, of events that were never posted.
        answer: what Amplitude said of it.
        destination: which said so, by its name in the store.
    """

    id: int
    integration_id: int
    integration: str
    reason: str
    event_id: str
    event_type: str
    user_id: str
    created_date: int
    at: int
    first_sent: int | None
    run_id: str
    dismissed_at: int | None = None
    dismissed_by: str | None = None
    body: str | None = None
    payload: str | None = None
    answer: str | None = None
    destination: str = DEFAULT

    @property
    def fields(self) -> list[NamedField]:
        """The fields that Amplitude named, with their values where the body was read."""
        return named_fields(self.answer, self.body)

    @property
    def why(self) -> str:
        """In words: the fields that Amplitude named, its error, or what the reason means."""
        said = "; ".join(map(str, self.fields)) or error_of(self.answer)
        return f"{said_of(self.destination, reasons.means(self.reason))}{f' ({said})' if said else ''}"

    @property
    def what_to_do(self) -> str | None:
        """A sentence without a full stop; None if there is nothing to do."""
        known = reasons.reason(self.reason)
        if known is None or known.action is None:
            return None
        action = said_of(self.destination, known.action)
        return action.replace("APP/NAME", self.integration).replace(" ID", f" {self.id}")

    def to_json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "id": self.id,
            "integration": self.integration,
            "reason": self.reason,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "user_id": self.user_id,
            "created_date": to_text(self.created_date),
            "at": to_text(self.at),
            "first_sent_at": to_text(self.first_sent),
            "run_id": self.run_id,
            "dismissed_at": to_text(self.dismissed_at),
            "dismissed_by": self.dismissed_by,
            "answer": self.answer,
            "fields": [field.to_json() for field in self.fields],
            "why": self.why,
            "what_to_do": self.what_to_do,
        }


@dataclass(frozen=True)
class Filter:
    """A filter for dead letters; empty fields do not narrow it.

    Attributes:
        ids: numbers or event ids.
        integrations: ``<app_id>/<name>``.
        reasons: why they are dead.
        since: dead at or after this, in µs since the epoch.
        until: dead before this.
        dismissed: only those that a person marked as seen (True), or only the others (False).
        apps: of all their integrations, and of the backfills of those.
    """

    ids: Sequence[str] = ()
    integrations: Sequence[str] = ()
    reasons: Sequence[str] = ()
    since: int | None = None
    until: int | None = None
    dismissed: bool | None = None
    apps: Sequence[str] = ()


@dataclass
class Retried:
    """The result of a retry.

    Attributes:
        retried: how many the next run sends.
        refused: how many it does not send, by cause.
        by: who asked for it.
        resends: by integration id, the number under which the result can be looked up.
    """

    retried: int = 0
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    by: str = ""
    resends: dict[int, int] = field(default_factory=dict)


def check_reasons(wanted: Sequence[str], tx: Transaction) -> None:
    """Looks whether reasons can be those of dead letters.

    Raises:
        Misconfigured: one cannot; the message says which one may have been meant.
    """
    known = set(reasons.codes("dead_letter"))
    strange = [reason for reason in wanted if reason not in known]
    if not strange:
        return
    table = tables.exceptions
    known |= set(tx.execute(sa.select(table.c.reason).where(table.c.state == "dead").distinct()).scalars())
    for reason in strange:
        if reason not in known:
            raise Misconfigured(
                f"{reason!r} is no reason of a dead letter{contract.did_you_mean(reason, known) or ':'} "
                f"{'' if contract.nearest(reason, known) else 'there are ' + ', '.join(sorted(known))}".rstrip()
            )


def find(
    store: Store, which: Filter, limit: int | None = None, before: int | None = None
) -> tuple[list[DeadLetter], int]:
    """The newest dead letters, or those before a number, without their texts; and how many there are in all.

    Raises:
        Misconfigured: one of the ids matches no dead letter, or one of the reasons cannot be one.
    """
    condition = condition_of(which)
    query = _query(condition, with_texts=False).order_by(tables.exceptions.c.id.desc())
    if before is not None:
        query = query.where(tables.exceptions.c.id < before)
    with store.begin() as tx:
        check_reasons(which.reasons, tx)
        total = tx.execute(sa.select(sa.func.count()).select_from(joined()).where(condition)).scalar_one()
        found = [_from_row(row) for row in tx.execute(query.limit(limit) if limit is not None else query)]
        _all_found(tx, which)
    return found, int(total)


def show(store: Store, which: str) -> list[DeadLetter]:
    """A dead letter by its number, or those of an event by its id, with all texts.

    Raises:
        Misconfigured: there is none.
    """
    chosen = Filter(ids=[which])
    with store.begin() as tx:
        _all_found(tx, chosen)
        return [_from_row(row) for row in tx.execute(_query(condition_of(chosen), with_texts=True))]


def count(store: Store, which: Filter) -> dict[tuple[str, str], int]:
    """How many dead letters there are, by integration (``<app_id>/<name>``) and reason.

    Raises:
        Misconfigured: one of the ids matches no dead letter, or one of the reasons cannot be one.
    """
    table, integrations = tables.exceptions, tables.integrations
    query = (
        sa.select(integrations.c.app_id + "/" + integrations.c.name, table.c.reason, sa.func.count())
        .select_from(joined())
        .where(condition_of(which))
        .group_by(integrations.c.app_id, integrations.c.name, table.c.reason)
    )
    with store.reading() as tx:
        check_reasons(which.reasons, tx)
        _all_found(tx, which)
        return {(integration, reason): events for integration, reason, events in tx.execute(query)}


def dismiss(store: Store, which: Filter, *, by: str = "", undo: bool = False) -> int:
    """Marks dead letters as seen, so that nobody is asked about them any more; nothing else changes.

    Args:
        store: where they are.
        which: the filter.
        by: in whose name.
        undo: takes such marks back.

    Returns:
        How many were marked; those that had the mark already keep it as it is.

    Raises:
        Misconfigured: one of the ids matches no dead letter, or one of the reasons cannot be one.
    """
    table, now = tables.exceptions, micros(store.clock)
    # Not before the moment of its death: the clock of another machine may be ahead.
    values: dict[str, Any] = {"dismissed_at": sa.case((table.c.at > now, table.c.at), else_=now), "dismissed_by": by}
    if undo:
        values = {"dismissed_at": None, "dismissed_by": None}
    chosen = sa.select(table.c.id).select_from(joined()).where(condition_of(replace(which, dismissed=undo)))
    with store.begin() as tx:
        check_reasons(which.reasons, tx)
        _all_found(tx, which)
        return tx.execute(sa.update(table).where(table.c.id.in_(chosen)).values(**values)).rowcount


def is_dismissed() -> sa.ColumnElement[bool]:
    """Whether a person marked a dead letter as seen since it became one; never null."""
    table = tables.exceptions
    return sa.and_(table.c.dismissed_at.is_not(None), table.c.dismissed_at >= table.c.at)


def retry(store: Store, which: Filter, *, force: bool = False, by: str = "", after: Retried | None = None) -> Retried:
    """Holds dead letters for the next run, which posts them again: same body, same ``insert_id``.

    A refused event, which was never stored, gets ``$skip_user_properties_sync`` if its user has been sent newer state
    by now. Events that may be stored keep their bytes.

    Args:
        store: where they are.
        which: the filter.
        force: also events that Amplitude may have stored already but would not recognise.
        by: in whose name.
        after: the result of a retry that a person asked for at once with this one; both have one result later.

    Raises:
        Misconfigured: one of the ids matches no dead letter.
    """
    done = Retried(by=by, resends={} if after is None else after.resends)
    letters, _ = find(store, which)
    by_integration: dict[int, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        by_integration[letter.integration_id].append(letter)
    for integration_id, mine in by_integration.items():
        # A run under way counts and orders held events itself.
        owner = _owners(store, [integration_id]).get(integration_id, integration_id)
        leases = live_first.acquire(store, [f"{live_first.INTEGRATION}{owner}"])
        if not leases:
            done.refused[BUSY] += len(mine)
            continue
        try:
            for start in range(0, len(mine), _AT_ONCE):
                with store.begin(under=leases.values()) as tx:
                    ids = [letter.id for letter in mine[start : start + _AT_ONCE]]
                    _retry(store, tx, integration_id, owner, ids, force, done)
        finally:
            store.release(leases.values())
    return done


def _owners(store: Store, ids: Sequence[int]) -> dict[int, int]:
    """The integration that sends a dead letter again, by the one that holds it: that of a backfill is its owner."""
    table = tables.integrations
    query = sa.select(table.c.id, table.c.backfill_of).where(table.c.id.in_(ids), table.c.backfill_of.is_not(None))
    with store.begin() as tx:
        return dict(tx.execute(query).tuples().all())


def _retry(
    store: Store, tx: Transaction, integration_id: int, owner: int, ids: Sequence[int], force: bool, done: Retried
) -> None:
    table = tables.exceptions
    now = micros(store.clock)
    gone: dict[str, int] = defaultdict(int)
    names = ("id", "reason", "event_id", "event_type", "created_date", "body", "unknown_since")
    rows = tx.execute(
        sa.select(*(table.c[name] for name in names), first_sent_of().label("first_sent")).where(
            table.c.id.in_(ids), table.c.state == "dead"
        )
    ).all()
    to = tx.execute(sa.select(tables.integrations).where(tables.integrations.c.id == owner)).one()
    window = repeats_micros(to.destination, to.endpoint)
    chosen = []
    for row in rows:
        if row.event_type == IDENTIFY:
            done.refused[OF_IDENTIFY] += 1
        elif row.body is None:
            done.refused[NO_BODY] += 1
        elif not force and row.first_sent is not None and now - row.first_sent > window:
            done.refused[TOO_OLD] += 1
        else:
            chosen.append(row.id)
            gone[row.reason] -= 1
    changes: dict[str, Any] = {
        "state": "held", "reason": RETRIED, "first_sent_at": first_sent_of(), "at": now,
        "dismissed_at": None, "dismissed_by": None,
    }  # fmt: skip
    if force:
        changes["unknown_since"] = None  # a person takes it on: delivery must not give it up for its age
    if chosen:
        changes["resend_id"] = resends.add(tx, owner, chosen, now, done.by, done.resends)
    hourly_counts.add_numbered(store, tx, chosen, "dead", -1)
    tx.execute(sa.update(table).where(table.c.id.in_(chosen)).values(**changes))
    hourly_counts.adopt(store, tx, chosen, owner, now)
    refused = [row for row in rows if row.id in chosen and row.unknown_since is None and row.reason != OUTCOME_UNKNOWN]
    for row_id, body in become_history(store, tx, owner, refused):
        tx.execute(sa.update(table).where(table.c.id == row_id).values(body=body))
    store.count(tx, integration_id, "dead", gone)
    if owner != integration_id:
        # A backfill may have ended: from here on the event is one of live delivery.
        values = {"integration_id": owner, "lane_id": None, "lane_row": None, "segment_id": None}
        tx.execute(sa.update(table).where(table.c.id.in_(chosen)).values(**values))
        store.count(tx, integration_id, "captured", -len(chosen))
        store.count(tx, owner, "captured", len(chosen))
    done.retried += len(chosen)


def first_sent_of() -> sa.ColumnElement[int | None]:
    """Since when an event may be in Amplitude, if it has a body."""
    table = tables.exceptions
    return sa.case(
        (table.c.body.is_not(None), sa.func.coalesce(table.c.first_sent_at, table.c.unknown_since, table.c.at)),
        else_=None,
    )


def joined() -> sa.FromClause:
    """Exceptions with their integrations."""
    return tables.exceptions.join(tables.integrations, tables.integrations.c.id == tables.exceptions.c.integration_id)


def condition_of(which: Filter) -> sa.ColumnElement[bool]:
    """A filter as a condition on :func:`joined`."""
    table, integrations = tables.exceptions, tables.integrations
    conditions: list[sa.ColumnElement[bool]] = [table.c.state == "dead"]
    if which.ids:
        numbers = [int(text) for text in which.ids if _is_number(text)]
        conditions.append(sa.or_(table.c.id.in_(numbers), table.c.event_id.in_(which.ids)))
    if which.integrations:
        conditions.append((integrations.c.app_id + "/" + integrations.c.name).in_(which.integrations))
    if which.apps:
        conditions.append(integrations.c.app_id.in_(which.apps))
    if which.reasons:
        conditions.append(table.c.reason.in_(which.reasons))
    if which.since is not None:
        conditions.append(table.c.at >= which.since)
    if which.until is not None:
        conditions.append(table.c.at < which.until)
    if which.dismissed is not None:
        conditions.append(is_dismissed() if which.dismissed else sa.not_(is_dismissed()))
    return sa.and_(*conditions)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def _all_found(tx: Transaction, which: Filter) -> None:
    table = tables.exceptions
    for text in which.ids:
        if not tx.execute(sa.select(table.c.id).where(condition_of(Filter(ids=[text]))).select_from(joined())).first():
            raise Misconfigured(f"there is no dead letter {text!r}; 'nami-amp dead-letters list' shows all")


def _query(condition: sa.ColumnElement[bool], *, with_texts: bool) -> sa.Select[Any]:
    table, integrations = tables.exceptions, tables.integrations
    columns = [column for column in table.c if with_texts or column.name not in ("body", "payload")]
    mark = sa.case((is_dismissed(), 1), else_=0).label("is_dismissed")
    return (
        sa.select(*columns, mark, integrations.c.app_id, integrations.c.name, integrations.c.destination)
        .add_columns(first_sent_of().label("first_sent"))
        .select_from(joined())
        .where(condition)
    )


def _from_row(row: Any) -> DeadLetter:
    values = row._mapping
    body = values.get("body")
    return DeadLetter(
        id=row.id,
        integration_id=row.integration_id,
        integration=f"{row.app_id}/{row.name}",
        reason=row.reason,
        event_id=row.event_id,
        event_type=row.event_type,
        user_id=row.user_id,
        created_date=row.created_date,
        at=row.at,
        first_sent=row.first_sent,
        run_id=row.run_id,
        dismissed_at=row.dismissed_at if row.is_dismissed else None,
        dismissed_by=row.dismissed_by if row.is_dismissed else None,
        body=body.removeprefix(",") if body is not None else None,
        payload=values.get("payload"),
        answer=row.answer,
        destination=row.destination,
    )
