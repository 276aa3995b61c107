"""The history of an app in one list: changes, halts and their ends, backfills, events sent again, comparisons, people.

Each kind has its own table, which is read from where the page before ended; nothing is copied for this list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import sqlalchemy as sa

from nami_amp_pipeline.backfill.kinds import KINDS
from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations import reasons
from nami_amp_pipeline.operations.backfill_status import with_numbers
from nami_amp_pipeline.state import backfills, comparison_requests, integration_history, journal, resends, tables
from nami_amp_pipeline.state.integration_history import ChangeRecord
from nami_amp_pipeline.state.store import Transaction

Kind = Literal["changes", "halts", "backfills", "resends", "comparisons", "app", "people"]
"""What happened: ``halts`` and their ends; ``app`` is its plan and quota; ``people`` are those of all apps."""

HISTORY_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

_JOURNAL: Final[Mapping[Kind, tuple[journal.Kind, ...]]] = {
    "halts": ("halted", "resumed"),
    "app": ("plan", "quota"),
    "people": (
        "person_added",
        "person_removed",
        "role_changed",
        "password_changed",
        *journal.SIGN_INS,
    ),
}


@dataclass(frozen=True)
class Happening:
    """One line of the history.

    Attributes:
        at: when, in µs since the epoch.
        source: the letter of its table, and ``number`` in it.
        kind: see :data:`Kind`.
        by: who did it; empty for the pipeline itself, and where nobody was named.
        integration: ``<app_id>/<name>``; empty if it is of none.
        said: a sentence, without a full stop; empty of a change, which has a record.
        record: of a change.
        backfill: its number, of one.
    """

    at: int
    source: str
    number: int
    kind: Kind
    by: str
    integration: str
    said: str = ""
    record: ChangeRecord | None = None
    backfill: int | None = None

    @property
    def place(self) -> str:
        """Its key in the list."""
        return f"{self.at}.{self.source}.{self.number}"

    @property
    def in_words(self) -> str:
        """What happened, for a terminal."""
        if self.record is None:
            return self.said
        return ", ".join(f"{name}: {before} → {after}" for name, (before, after) in self.record.what.items())

    def to_json(self) -> dict[str, Any]:
        """An object of ``apps history --json``."""
        what = None if self.record is None else {name: list(pair) for name, pair in self.record.what.items()}
        return {
            "at": to_text(self.at),
            "kind": self.kind,
            "by": self.by,
            "integration": self.integration or None,
            "said": self.said or None,
            "version": None if self.record is None else self.record.version,
            "changed": what,
            "backfill_id": self.backfill,
        }


@dataclass(frozen=True)
class _Asked:
    context: Context
    tx: Transaction
    app_id: str
    key: str | None
    limit: int
    before: tuple[int, str, int] | None
    kinds: frozenset[Kind] = field(default_factory=frozenset)

    def after(self, source: str, at: sa.Column[int], number: sa.Column[int]) -> list[sa.ColumnElement[bool]]:
        """The condition on rows of a table to come after the end of the page before."""
        if self.before is None:
            return []
        last_at, last_source, last_number = self.before
        if source != last_source:
            return [at <= last_at if source < last_source else at < last_at]
        return [sa.or_(at < last_at, sa.and_(at == last_at, number < last_number))]

    def of_integrations(self) -> list[sa.ColumnElement[bool]]:
        """The condition on integrations."""
        table = tables.integrations
        if self.key is not None:
            return [table.c.app_id + "/" + table.c.name == self.key]
        return [table.c.app_id == self.app_id]


def app_history(
    context: Context,
    app_id: str,
    *,
    name: str | None = None,
    kind: Kind | None = None,
    after: str = "",
    limit: int = 50,
) -> tuple[list[Happening], str | None]:
    """What happened in an app, the newest first, and the key of the next page; None if there is no more.

    Args:
        context: the process at work.
        app_id: the app.
        name: of one of its integrations, also of one that was removed.
        kind: only of this; without it all that is of the app. Sign-ins and people are of all apps.
        after: the key of a page, as the page before has it.
        limit: so many at most.

    Raises:
        Misconfigured: there is no such page or kind.
        StoreUnavailable: the state store cannot be read.
    """
    if kind is not None and kind not in HISTORY_KINDS:
        raise Misconfigured(f"{kind!r} is no part of the history: take one of {', '.join(HISTORY_KINDS)}")
    kinds = frozenset({kind} if kind is not None else set(HISTORY_KINDS) - {"people"})
    key = None if name is None else f"{app_id}/{name}"
    found: list[Happening] = []
    with context.store.reading() as tx:
        asked = _Asked(context, tx, app_id, key, limit + 1, _place(after), kinds)
        for source in _SOURCES:
            found += source(asked)
    found.sort(key=lambda row: (row.at, row.source, row.number), reverse=True)
    shown = found[:limit]
    return shown, shown[-1].place if len(found) > limit else None


def _place(text: str) -> tuple[int, str, int] | None:
    if not text:
        return None
    at, _, rest = text.partition(".")
    source, _, number = rest.partition(".")
    if len(text) > 60 or not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in (at, number)):
        raise Misconfigured("this address names no page of the list: begin at its first page")
    return int(at), source, int(number)


def _changes(asked: _Asked) -> list[Happening]:
    if "changes" not in asked.kinds:
        return []
    table = tables.integration_changes
    prefix = f"{asked.app_id}/"
    # Neither LIKE nor a range: one does not know case on SQLite, the other goes by the locale on PostgreSQL.
    of_app = sa.func.substr(table.c.integration, 1, len(prefix)) == prefix
    mine = of_app if asked.key is None else table.c.integration == asked.key
    query = sa.select(table).where(mine, *asked.after("c", table.c.at, table.c.id))
    rows = asked.tx.execute(query.order_by(table.c.at.desc(), table.c.id.desc()).limit(asked.limit)).all()
    return [
        Happening(row.at, "c", row.id, "changes", row.by, row.integration, record=integration_history.record_of(row))
        for row in rows
    ]


def _entries(asked: _Asked) -> list[Happening]:
    of = {entry: kind for kind in asked.kinds for entry in _JOURNAL.get(kind, ())}
    if not of or (asked.key is not None and "halts" not in asked.kinds and "people" not in asked.kinds):
        return []
    table = tables.journal
    mine: sa.ColumnElement[bool] = table.c.app_id.is_(None)
    if "people" not in asked.kinds:
        mine = table.c.app_id == asked.app_id if asked.key is None else table.c.integration == asked.key
    query = sa.select(table).where(mine, table.c.kind.in_(list(of)), *asked.after("j", table.c.at, table.c.id))
    rows = asked.tx.execute(query.order_by(table.c.at.desc(), table.c.id.desc()).limit(asked.limit)).all()
    entries = [journal.entry_of(row) for row in rows]
    return [
        Happening(entry.at, "j", entry.id, of[entry.kind], entry.by, entry.integration or "", _SAID[entry.kind](entry))
        for entry in entries
    ]


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:,}"


_SAID: Final[Mapping[journal.Kind, Callable[[journal.Entry], str]]] = {
    "halted": lambda entry: f"Stopped by itself: {reasons.halted_for(entry.what['reason'])}",
    "resumed": lambda entry: "Switched on again after it had stopped",
    "plan": lambda entry: f"Plan: {entry.what['before'] or 'paid'} → {entry.what['after']}",
    "quota": lambda entry: f"Quota a month: {_number(entry.what['before'])} → {_number(entry.what['after'])}",
    "person_added": lambda entry: f"{entry.what['name']} may sign in as {entry.what['role']}",
    "person_removed": lambda entry: f"{entry.what['name']} may not sign in any more",
    "role_changed": lambda entry: f"{entry.what['name']}: {entry.what['before']} → {entry.what['after']}",
    "password_changed": lambda entry: f"{entry.what['name']} has another password",
    "signed_in": lambda entry: "Signed in",
    "signed_out": lambda entry: "Signed out",
}


def _backfills(asked: _Asked) -> list[Happening]:
    if "backfills" not in asked.kinds:
        return []
    table, integrations = tables.backfills, tables.integrations
    query = (
        sa.select(table.c.id)
        .join(integrations, integrations.c.id == table.c.integration_id)
        .where(*asked.of_integrations(), *asked.after("b", table.c.created_at, table.c.id))
        .order_by(table.c.created_at.desc(), table.c.id.desc())
        .limit(asked.limit)
    )
    ids = list(asked.tx.execute(query).scalars())
    found = backfills.read(asked.tx, table.c.id.in_(ids)) if ids else []
    rows = []
    for status in with_numbers(asked.tx, asked.context, found):
        backfill = status.backfill
        said = f"{backfill.called.capitalize()}: {_state_of(backfill)}"
        if status.captured:
            parts = {
                "delivered": status.delivered,
                "skipped": sum(status.skipped.values()),
                "dead letters": sum(status.dead_letters.values()),
                "waiting": status.pending,
            }
            said += ", " + ", ".join(f"{count:,} {word}" for word, count in parts.items() if count)
        elif backfill.events is not None:
            said += f", {backfill.events:,} {KINDS[backfill.kind].unit}"
        at, by, key = backfill.created_at, backfill.created_by, backfill.integration
        rows.append(Happening(at, "b", backfill.id, "backfills", by, key, said, backfill=backfill.id))
    return rows


def _state_of(backfill: backfills.Backfill) -> str:
    if backfill.state == "planned":
        return "the dry run failed" if backfill.error else "counted, nothing was sent" if backfill.plan else "asked for"
    return f"failed ({backfill.error})" if backfill.state == "failed" and backfill.error else backfill.state


def _resends(asked: _Asked) -> list[Happening]:
    if "resends" not in asked.kinds:
        return []
    table = tables.resends
    conditions = [*asked.of_integrations(), *asked.after("r", table.c.at, table.c.id)]
    return [
        Happening(found.at, "r", found.id, "resends", found.by, found.integration, found.said)
        for found in resends.read(asked.tx, *conditions, most=asked.limit)
    ]


def _comparisons(asked: _Asked) -> list[Happening]:
    if "comparisons" not in asked.kinds:
        return []
    table = tables.comparison_requests
    conditions = [*asked.of_integrations(), *asked.after("q", table.c.asked_at, table.c.id)]
    return [
        Happening(found.asked_at, "q", found.id, "comparisons", found.asked_by, found.integration, found.said)
        for found in comparison_requests.read(asked.tx, *conditions, newest=asked.limit)
    ]


_SOURCES: Final = (_changes, _entries, _backfills, _resends, _comparisons)
