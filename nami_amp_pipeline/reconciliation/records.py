"""What comparisons found, in the state store: a row for each day, its classes, and a few differences as samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.reconciliation.day import CLASSES, Day
from nami_amp_pipeline.state import tables

SAMPLES: Final = 20
"""Of each class and day."""

_VALUE_CHARACTERS: Final = 2_000


@dataclass(frozen=True)
class Sample:
    """A difference, with both values where they are known.

    Attributes:
        kind: altered, missing, twice or undelivered.
        event_id: its insert id.
        column: of altered events, what is altered.
        field: of altered events, where in the column.
        sent: its value as JSON; None if it is not known any more.
        held: its value as JSON; None if it is not held.
    """

    kind: str
    event_id: str
    column: str | None = None
    field: str | None = None
    sent: str | None = None
    held: str | None = None


@dataclass(frozen=True)
class ReconciledDay:
    """The newest comparison of a day.

    Attributes:
        integration: ``<app_id>/<name>``.
        day: its first µs since the epoch.
        at: when it was compared last.
        source: with what.
        hours: how many of its hours were compared.
        complete_at: when all of them were, first, with exports that had them whole.
        delivered: events of these hours.
        held: how many of them Amplitude holds.
        repaired: how many were sent again so far.
        said: the result in words.
        classes: events by class.
        columns: altered events by column.
        samples: some differences.
    """

    integration: str
    day: int
    at: int
    source: str
    hours: int
    complete_at: int | None
    delivered: int
    held: int
    repaired: int
    said: str
    classes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    @property
    def date(self) -> str:
        """As people write it."""
        return f"{datetime.fromtimestamp(self.day / 1e6, UTC):%Y-%m-%d}"

    @property
    def is_clean(self) -> bool:
        """Whether Amplitude held everything as it was sent, once."""
        return not any(self.classes.get(name) for name in ("altered", "missing", "twice"))


def save(context: Context, integration_id: int, day: Day, source: str) -> None:
    """Replaces what is known of a day; a day of which nothing was compared changes nothing."""
    if not day.hours:
        return
    days, classes, samples = tables.reconciled_days, tables.reconciled_classes, tables.reconciled_samples
    now = context.now()
    with context.store.begin() as tx:
        before = tx.execute(
            sa.select(days.c.complete_at, days.c.repaired).where(
                days.c.integration_id == integration_id, days.c.day == day.day
            )
        ).first()
        for table in (days, classes, samples):
            tx.execute(sa.delete(table).where(table.c.integration_id == integration_id, table.c.day == day.day))
        complete_at = before.complete_at if before is not None else None
        tx.execute(
            sa.insert(days).values(
                integration_id=integration_id,
                day=day.day,
                at=now,
                source=source,
                hours=len(day.hours),
                complete_at=complete_at or (now if day.is_complete else None),
                delivered=day.delivered,
                held=day.held,
                repaired=before.repaired if before is not None else 0,
                said=day.in_a_line,
                run_id=context.run_id,
            )
        )
        same = {"integration_id": integration_id, "day": day.day}
        rows = [{**same, "class": name, "column": "", "events": day.counts[name]} for name in CLASSES]
        rows += [{**same, "class": "altered", "column": name, "events": events} for name, events in day.columns.items()]
        tx.execute(sa.insert(classes), rows)
        chosen = [{**same, **row} for row in _samples(day)]
        if chosen:
            tx.execute(sa.insert(samples), chosen)


def add_repaired(context: Context, integration_id: int, day: int, events: int) -> None:
    """Notes that events of a day are sent again."""
    days = tables.reconciled_days
    with context.store.begin() as tx:
        tx.execute(
            sa.update(days)
            .where(days.c.integration_id == integration_id, days.c.day == day)
            .values(repaired=days.c.repaired + events)
        )


def _samples(day: Day) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in ("missing", "altered", "twice", "undelivered"):
        events = [event for event in day.differences if event.kind == kind]
        events.sort(key=lambda event: not event.fields)
        for event in events[:SAMPLES]:
            same = {
                "class": kind,
                "event_id": event.event_id,
                "column": None,
                "field": None,
                "sent": None,
                "held": None,
            }
            fields = [
                {**same, "column": each.column, "field": each.field, "sent": _json(each.sent), "held": _json(each.held)}
                for each in event.fields
            ]
            rows += fields or [{**same, "column": ", ".join(event.columns) or None}]
    return rows


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()[:_VALUE_CHARACTERS]


def read(
    context: Context, integration_id: int, key: str, *, first: int | None = None, last: int | None = None
) -> list[ReconciledDay]:
    """The newest comparison of each day, the first day first.

    Args:
        context: the process at work.
        integration_id: of the store.
        key: ``<app_id>/<name>``.
        first: only days from this one on.
        last: and up to this one.
    """
    days, classes, samples = tables.reconciled_days, tables.reconciled_classes, tables.reconciled_samples

    def rows(table: sa.Table) -> Sequence[Any]:
        query = sa.select(table).where(table.c.integration_id == integration_id)
        query = query if first is None else query.where(table.c.day >= first)
        query = query if last is None else query.where(table.c.day <= last)
        order = table.c.id if "id" in table.c else table.c.day
        return tx.execute(query.order_by(order)).mappings().all()

    with context.store.reading() as tx:
        found, counted, chosen = rows(days), rows(classes), rows(samples)
    return [
        ReconciledDay(
            integration=key,
            **{name: row[name] for name in row if name not in ("integration_id", "run_id")},
            classes=_events((each for each in counted if each["day"] == row["day"] and not each["column"]), "class"),
            columns=_events((each for each in counted if each["day"] == row["day"] and each["column"]), "column"),
            samples=tuple(
                Sample(each["class"], *(each[name] for name in ("event_id", "column", "field", "sent", "held")))
                for each in chosen
                if each["day"] == row["day"]
            ),
        )
        for row in found
    ]


def _events(rows: Iterable[Any], by: str) -> dict[str, int]:
    return {row[by]: row["events"] for row in rows}
