"""Dead letters: the events that Amplitude will not get, why, and a second try once the cause is repaired."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.clock import micros, to_text
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.named_fields import NamedField, error_of, named_fields
from nami_amp_pipeline.stages.history import SKIP_SYNC, flagged, is_history
from nami_amp_pipeline.state import Store, Transaction, tables
from nami_amp_pipeline.state.users import read_sent

_WINDOW = int(contract.DEDUPLICATION_WINDOW.total_seconds()) * 1_000_000
_AT_ONCE = 500

OUTCOME_UNKNOWN = "outcome_unknown"
RETRIED = "retried"

NO_BODY = "no Amplitude event was made from it, so there is nothing to send"
TOO_OLD = (
    "it may have been sent more than 7 days ago, and Amplitude would no longer recognise a repeat (--force sends it)"
)
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
        body: the Amplitude event, as it was posted.
        payload: Nami's, of events that were never posted.
        answer: what Amplitude said of it.
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
    body: str | None = None
    payload: str | None = None
    answer: str | None = None

    @property
    def fields(self) -> list[NamedField]:
        """The fields that Amplitude named, with their values where the body was read."""
        return named_fields(self.answer, self.body)

    @property
    def why(self) -> str:
        """In words: the fields that Amplitude named, its error, or what the reason means."""
        said = "; ".join(map(str, self.fields)) or error_of(self.answer)
        return f"{reasons.means(self.reason)}{f' ({said})' if said else ''}"

    @property
    def what_to_do(self) -> str | None:
        """A sentence without a full stop; None if there is nothing to do."""
        known = reasons.reason(self.reason)
        if known is None or known.action is None:
            return None
        return known.action.replace("APP/NAME", self.integration).replace(" ID", f" {self.id}")

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
    """

    ids: Sequence[str] = ()
    integrations: Sequence[str] = ()
    reasons: Sequence[str] = ()
    since: int | None = None
    until: int | None = None


@dataclass
class Retried:
    """The result of a retry.

    Attributes:
        retried: how many the next run sends.
        refused: how many it does not send, by cause.
    """

    retried: int = 0
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))


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


def find(store: Store, which: Filter, limit: int | None = None) -> tuple[list[DeadLetter], int]:
    """The newest dead letters, without their texts, and how many there are in all.

    Raises:
        Misconfigured: one of the ids matches no dead letter, or one of the reasons cannot be one.
    """
    condition = _condition(which)
    query = _query(condition, with_texts=False).order_by(tables.exceptions.c.id.desc())
    with store.begin() as tx:
        check_reasons(which.reasons, tx)
        total = tx.execute(sa.select(sa.func.count()).select_from(_joined()).where(condition)).scalar_one()
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
        return [_from_row(row) for row in tx.execute(_query(_condition(chosen), with_texts=True))]


def retry(store: Store, which: Filter, *, force: bool = False) -> Retried:
    """Holds dead letters for the next run, which posts them again: same body, same ``insert_id``.

    A refused event, which was never stored, gets ``$skip_user_properties_sync`` if its user has been sent newer state
    by now. Events that may be stored keep their bytes.

    Args:
        store: where they are.
        which: the filter.
        force: also events that Amplitude may have stored already but would not recognise.

    Raises:
        Misconfigured: one of the ids matches no dead letter.
    """
    done = Retried()
    letters, _ = find(store, which)
    by_integration: dict[int, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        by_integration[letter.integration_id].append(letter)
    for integration_id, mine in by_integration.items():
        # A run under way counts and orders held events itself.
        leases = store.acquire([f"integration:{integration_id}"])
        if not leases:
            done.refused[BUSY] += len(mine)
            continue
        try:
            for start in range(0, len(mine), _AT_ONCE):
                with store.begin(under=leases.values()) as tx:
                    _retry(
                        store, tx, integration_id, [letter.id for letter in mine[start : start + _AT_ONCE]], force, done
                    )
        finally:
            store.release(leases.values())
    return done


def _retry(store: Store, tx: Transaction, integration_id: int, ids: Sequence[int], force: bool, done: Retried) -> None:
    table = tables.exceptions
    now = micros(store.clock)
    gone: dict[str, int] = defaultdict(int)
    rows = tx.execute(
        sa.select(
            table.c.id,
            table.c.reason,
            table.c.event_id,
            table.c.created_date,
            table.c.body,
            table.c.unknown_since,
            _first_sent().label("first_sent"),
        ).where(table.c.id.in_(ids), table.c.state == "dead")
    ).all()
    chosen = []
    for row in rows:
        if row.body is None:
            done.refused[NO_BODY] += 1
        elif not force and row.first_sent is not None and now - row.first_sent > _WINDOW:
            done.refused[TOO_OLD] += 1
        else:
            chosen.append(row.id)
            gone[row.reason] -= 1
    changes: dict[str, Any] = {"state": "held", "reason": RETRIED, "first_sent_at": _first_sent(), "at": now}
    if force:
        changes["unknown_since"] = None  # a person takes it on: delivery must not give it up for its age
    tx.execute(sa.update(table).where(table.c.id.in_(chosen)).values(**changes))
    for row_id, body in _become_history(store, tx, integration_id, [row for row in rows if row.id in chosen]):
        tx.execute(sa.update(table).where(table.c.id == row_id).values(body=body))
    store.count(tx, integration_id, "dead", gone)
    done.retried += len(chosen)


def _become_history(
    store: Store, tx: Transaction, integration_id: int, rows: Sequence[sa.Row[Any]]
) -> Iterator[tuple[int, str]]:
    """(id, new body) of refused events whose state is older than the state that their user was sent since."""
    stateful: dict[str, list[sa.Row[Any]]] = defaultdict(list)
    for row in rows:
        if row.unknown_since is not None or row.reason == OUTCOME_UNKNOWN:
            continue
        event = orjson.loads(row.body.removeprefix(","))
        if "user_properties" in event and "user_id" in event and SKIP_SYNC not in event:
            stateful[event["user_id"]].append(row)
    for user_id, created, event_id in read_sent(store, tx, integration_id, sorted(stateful)):
        for row in stateful[user_id]:
            if is_history((created, event_id), (row.created_date, row.event_id)):
                yield row.id, flagged(row.body)


def _first_sent() -> sa.ColumnElement[int | None]:
    """Since when an event may be in Amplitude, if it has a body."""
    table = tables.exceptions
    return sa.case(
        (table.c.body.is_not(None), sa.func.coalesce(table.c.first_sent_at, table.c.unknown_since, table.c.at)),
        else_=None,
    )


def _joined() -> sa.FromClause:
    return tables.exceptions.join(tables.integrations, tables.integrations.c.id == tables.exceptions.c.integration_id)


def _condition(which: Filter) -> sa.ColumnElement[bool]:
    table, integrations = tables.exceptions, tables.integrations
    conditions: list[sa.ColumnElement[bool]] = [table.c.state == "dead"]
    if which.ids:
        numbers = [int(text) for text in which.ids if _is_number(text)]
        conditions.append(sa.or_(table.c.id.in_(numbers), table.c.event_id.in_(which.ids)))
    if which.integrations:
        conditions.append((integrations.c.app_id + "/" + integrations.c.name).in_(which.integrations))
    if which.reasons:
        conditions.append(table.c.reason.in_(which.reasons))
    if which.since is not None:
        conditions.append(table.c.at >= which.since)
    if which.until is not None:
        conditions.append(table.c.at < which.until)
    return sa.and_(*conditions)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def _all_found(tx: Transaction, which: Filter) -> None:
    table = tables.exceptions
    for text in which.ids:
        if not tx.execute(sa.select(table.c.id).where(_condition(Filter(ids=[text]))).select_from(_joined())).first():
            raise Misconfigured(
                f"there is no dead letter {text!r}; 'nami-amp dead-letters list' shows all dead letters"
            )


def _query(condition: sa.ColumnElement[bool], *, with_texts: bool) -> sa.Select[Any]:
    table, integrations = tables.exceptions, tables.integrations
    columns = [column for column in table.c if with_texts or column.name not in ("body", "payload")]
    return (
        sa.select(*columns, integrations.c.app_id, integrations.c.name, _first_sent().label("first_sent"))
        .select_from(_joined())
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
        body=body.removeprefix(",") if body is not None else None,
        payload=values.get("payload"),
        answer=row.answer,
    )
