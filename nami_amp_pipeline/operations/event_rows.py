"""The events behind the numbers of :mod:`.deliveries`, the newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.receipts import receipts_so_far
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.deliveries import since_of
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.hourly_counts import hour_of
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Transaction

Outcome = Literal["captured", "delivered", "skipped", "dead_letters", "waiting"]

OUTCOMES: Final[tuple[Outcome, ...]] = ("captured", "delivered", "skipped", "dead_letters", "waiting")

_COLUMN: Final = {"captured": "captured", "delivered": "delivered", "skipped": "skipped", "dead_letters": "dead"}
_NOW: Final = {
    "dead": "dead_letters",
    "held": "waiting",
    "send": "waiting",
    "delivered": "delivered",
    "skipped": "skipped",
}
_ROWS: Final = ["id", "event_type", "user_id", "identity", "created_date", "state", "reason", "request_id"]
_AT_ONCE: Final = 500
_SLICE: Final = 4_096


@dataclass(frozen=True)
class EventRow:
    """One event of an integration.

    Attributes:
        event_id: Nami's.
        event_type: Nami's.
        nami_user: Nami's id of the user.
        user: as Amplitude knows them; None without such an id.
        created: when Nami created it, in µs since the epoch.
        outcome: where it is now: delivered, skipped, dead_letters or waiting.
        reason: why, as a code; None where the outcome says it all.
        at: when it came to that end, in µs since the epoch; None if it has none, or is not known any more.
        dead_letter: its number, of one.
        request_id: of the request that delivered it, where that is known.
        hour: the hour in which it counts.
        place: its key in the list.
    """

    event_id: str
    event_type: str
    nami_user: str
    user: str | None
    created: int
    outcome: str
    reason: str | None
    at: int | None
    dead_letter: int | None
    request_id: int | None
    hour: int
    place: str

    def to_json(self) -> dict[str, Any]:
        """An object of ``deliveries --events --json``."""
        return {
            "event_id": self.event_id,
            "event_type": self.event_type,
            "nami_user": self.nami_user,
            "user": self.user,
            "created_date": to_text(self.created),
            "outcome": self.outcome,
            "reason": self.reason,
            "at": to_text(self.at),
            "dead_letter": self.dead_letter,
        }


@dataclass(frozen=True)
class _After:
    """Where the next page begins: after a row of a segment without an outbox (kind 0), or of an outbox (1).

    Or after an exception (2), which is listed by itself where it counts in another hour than its outbox, or has none.
    """

    kind: int
    number: int
    row: int

    @staticmethod
    def of(text: str) -> _After:
        parts = text.split(".")
        if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in parts):
            raise Misconfigured("this address names no page of the list: begin at its first page")
        return _After(*map(int, parts))


@dataclass(frozen=True)
class _Raw:
    """A row as its file has it, and its number there."""

    values: Mapping[str, Any]
    row: int


def event_rows(
    context: Context,
    integration: Integration,
    outcome: str,
    window: str = "24h",
    *,
    event_type: str | None = None,
    after: str = "",
    limit: int = 50,
) -> tuple[list[EventRow], str | None]:
    """Events of an integration that were captured in a window, by where they are now.

    They are as many as :func:`~nami_amp_pipeline.operations.deliveries.deliveries` says, but for those of which no
    record is left: they were given up after they had waited for a login, or their file is past its retention.

    Args:
        context: the process at work.
        integration: whose.
        outcome: of :data:`OUTCOMES`.
        window: of :data:`~nami_amp_pipeline.operations.deliveries.WINDOWS`.
        event_type: only this one.
        after: the key of a page, as the page before has it.
        limit: so many at most.

    Returns:
        The events, and the key of the next page; None if there are no more.

    Raises:
        Misconfigured: there is no such outcome, window or page.
        Blocked: a file cannot be read.
    """
    if outcome not in OUTCOMES:
        raise Misconfigured(f"{outcome!r} is no outcome: take one of {', '.join(OUTCOMES)}")
    since = since_of(window, context.now())
    begin = _After.of(after) if after else None
    found: list[EventRow] = []
    for event in _events(context, integration, outcome, since, event_type, begin):
        found.append(event)
        if len(found) > limit:
            return _with_times(context, found[:limit]), found[limit - 1].place
    return _with_times(context, found), None


def _events(
    context: Context, integration: Integration, outcome: str, since: int, event_type: str | None, begin: _After | None
) -> Iterator[EventRow]:
    if outcome in ("captured", "waiting") and (begin is None or begin.kind == 0):
        yield from _in_segments(context, integration, since, event_type, begin)
    if begin is None or begin.kind < 2:
        yield from _in_outboxes(context, integration, outcome, since, event_type, begin)
    yield from _elsewhere(context, integration, outcome, since, event_type, begin)


def _in_segments(
    context: Context, integration: Integration, since: int, event_type: str | None, begin: _After | None
) -> Iterator[EventRow]:
    """What is captured, and in no outbox yet."""
    parts, segments = tables.segment_apps, tables.segments
    query = (
        sa.select(segments.c.id, segments.c.file, segments.c.captured_at, parts.c.max_ingested_at)
        .join(parts, parts.c.segment_id == segments.c.id)
        .where(
            parts.c.app_id == integration.app_id,
            segments.c.id > integration.prepared_through,
            segments.c.captured_at >= since,
        )
        .order_by(segments.c.id.desc())
    )
    if begin is not None:
        query = query.where(segments.c.id <= begin.number)
    with context.store.reading() as tx:
        rows = tx.execute(query).all()
    types = [name for name in integration.events if event_type in (None, name)]
    columns = ["app_id", "id", "event_type", "user_id", "created_date", "ingested_at"]
    for segment in rows:
        path = context.folder.fetch(segment.file)
        if not path.exists() or not types:
            continue
        start = integration.start_in(segment.id)
        at = 0
        for batch in pq.ParquetFile(path).iter_batches(_SLICE, columns=columns):
            base, at = at, at + batch.num_rows
            chosen = pc.and_(
                pc.equal(batch["app_id"], integration.app_id),
                pc.is_in(batch["event_type"], value_set=pa.array(types, pa.string())),
            )
            if start is not None:
                chosen = pc.and_(chosen, pc.greater_equal(batch["ingested_at"].cast(pa.int64()), start))
            for raw in _picked(batch, chosen, base, begin if begin and begin.number == segment.id else None):
                yield _row(raw, "waiting", "queued", None, hour_of(segment.captured_at), f"0.{segment.id}.{raw.row}")


def _in_outboxes(
    context: Context, integration: Integration, outcome: str, since: int, event_type: str | None, begin: _After | None
) -> Iterator[EventRow]:
    boxes = tables.outboxes
    query = (
        sa.select(boxes.c.id, boxes.c.hour, boxes.c.done_at, boxes.c.receipts_file)
        .where(boxes.c.integration_id == integration.id, boxes.c.hour >= since)
        .order_by(boxes.c.id.desc())
    )
    if begin is not None and begin.kind == 1:
        query = query.where(boxes.c.id <= begin.number)
    with context.store.reading() as tx:
        hours = _hours_with(tx, integration.id, outcome, since, event_type)
        rows = [box for box in tx.execute(query) if box.hour in hours]
    for box in rows:
        mine = begin if begin is not None and begin.kind == 1 and begin.number == box.id else None
        at = 0
        for batch in _receipts_of(context, box):
            base, at = at, at + batch.num_rows
            if mine is not None and at <= mine.row:
                continue
            chosen = pc.is_valid(batch["id"])
            if event_type is not None:
                chosen = pc.equal(batch["event_type"], event_type)
            yield from _judged(context, integration, box, list(_picked(batch, chosen, base, mine)), outcome)


def _elsewhere(
    context: Context, integration: Integration, outcome: str, since: int, event_type: str | None, begin: _After | None
) -> Iterator[EventRow]:
    """What a person sent again and counts since then: of a backfill, or from before there were counts by hour."""
    table, boxes = tables.exceptions, tables.outboxes
    own = sa.select(boxes.c.segment_id, boxes.c.hour).where(
        boxes.c.integration_id == integration.id, boxes.c.hour >= since
    )
    query = (
        sa.select(table.c.id, table.c.segment_id, table.c.hour)
        .where(table.c.integration_id == integration.id, table.c.hour >= since)
        .order_by(table.c.id.desc())
    )
    if begin is not None and begin.kind == 2:
        query = query.where(table.c.id < begin.number)
    if event_type is not None:
        query = query.where(table.c.event_type == event_type)
    with context.store.reading() as tx:
        counted = set(tx.execute(own).tuples())
        ids = [row.id for row in tx.execute(query) if (row.segment_id, row.hour) not in counted]
    for start in range(0, len(ids), _AT_ONCE):
        some = sa.select(table).where(table.c.id.in_(ids[start : start + _AT_ONCE])).order_by(table.c.id.desc())
        with context.store.reading() as tx:
            rows = tx.execute(some).all()
        for row in rows:
            names = {"id": row.event_id, "event_type": row.event_type, "user_id": row.user_id, "state": row.state}
            raw = _Raw({**names, "identity": row.identity, "created": row.created_date}, 0)
            event = _now(raw, row, _Elsewhere(row.hour), f"2.{row.id}.0")
            if event is not None and outcome in ("captured", event.outcome):
                yield event


@dataclass(frozen=True)
class _Elsewhere:
    hour: int


def _hours_with(tx: Transaction, integration_id: int, outcome: str, since: int, event_type: str | None) -> set[int]:
    """The hours of a window in which there is such an event."""
    table = tables.hourly_counts
    number = (
        table.c[_COLUMN[outcome]]
        if outcome in _COLUMN
        else table.c.captured - table.c.delivered - table.c.skipped - table.c.dead
    )
    query = sa.select(table.c.hour).where(table.c.integration_id == integration_id, table.c.hour >= since, number != 0)
    if event_type is not None:
        query = query.where(table.c.event_type == event_type)
    return set(tx.execute(query).scalars())


def _receipts_of(context: Context, box: Any) -> Iterator[pa.RecordBatch]:
    if box.done_at is None:
        for table in receipts_so_far(context, box.id):
            yield from table.select(_ROWS).to_batches(_SLICE)
    elif box.receipts_file and (path := context.folder.fetch(box.receipts_file)).exists():
        yield from pq.ParquetFile(path).iter_batches(_SLICE, columns=_ROWS)


def _picked(batch: pa.RecordBatch, chosen: pa.Array, base: int, after: _After | None) -> Iterator[_Raw]:
    numbers = pc.indices_nonzero(chosen).to_pylist()
    if after is not None:
        numbers = [number for number in numbers if base + number > after.row]
    taken = batch.take(pa.array(numbers, pa.int64()))
    created = taken["created_date"].cast(pa.int64()).to_pylist()
    for number, values, at in zip(numbers, taken.drop_columns(["created_date"]).to_pylist(), created, strict=True):
        yield _Raw({**values, "created": at}, base + number)


def _judged(
    context: Context, integration: Integration, box: Any, rows: Sequence[_Raw], outcome: str
) -> Iterator[EventRow]:
    """Those of some receipts that have an outcome now: what the exceptions say wins."""
    for start in range(0, len(rows), _AT_ONCE):
        some = [raw for raw in rows[start : start + _AT_ONCE] if outcome == "captured" or _may_be(raw.values, outcome)]
        known = _exceptions(context, integration.id, [raw.values["id"] for raw in some])
        for raw in some:
            event = _now(raw, known.get(raw.values["id"]), box, f"1.{box.id}.{raw.row}")
            if event is not None and outcome in ("captured", event.outcome):
                yield event


def _may_be(values: Mapping[str, Any], outcome: str) -> bool:
    """Whether a receipt of this state can be one of that outcome by now."""
    state = values["state"]
    if outcome == "skipped":
        return state in ("skipped", "waiting")
    return state not in ("skipped",)


def _exceptions(context: Context, integration_id: int, event_ids: Sequence[str]) -> dict[str, Any]:
    table = tables.exceptions
    columns = (table.c[name] for name in ("id", "event_id", "state", "reason", "at", "hour"))
    query = sa.select(*columns).where(table.c.integration_id == integration_id, table.c.event_id.in_(event_ids))
    if not event_ids:
        return {}
    with context.store.reading() as tx:
        return {row.event_id: row for row in tx.execute(query.order_by(table.c.id))}


def _now(raw: _Raw, known: Any, box: Any, place: str) -> EventRow | None:
    values = raw.values
    if known is not None:
        state, reason, at = known.state, known.reason, known.at
        if known.hour != box.hour or (state == "waiting") != (values["state"] == "waiting"):
            return None  # it counts elsewhere
        outcome = "waiting" if state == "waiting" else _NOW[state]
        why = reason if outcome != "delivered" else None
        return _row(raw, outcome, "waiting_for_login" if state == "waiting" else why, at, box.hour, place, known.id)
    if values["state"] == "waiting":
        return None  # it logged in since, and counts in another outbox; or it was given up, and has no record
    # A held event without a record of its own was delivered, and that record is past its retention.
    outcome = "delivered" if values["state"] == "held" else _NOW[values["state"]]
    reason = "queued" if outcome == "waiting" else values["reason"]
    return replace(_row(raw, outcome, reason, None, box.hour, place), request_id=values["request_id"])


def _row(
    raw: _Raw, outcome: str, reason: str | None, at: int | None, hour: int, place: str, exception: int | None = None
) -> EventRow:
    identity = raw.values.get("identity")
    return EventRow(
        raw.values["id"],
        raw.values["event_type"],
        raw.values["user_id"] or "",
        identity.partition(":")[2] or None if identity else None,
        raw.values["created"],
        outcome,
        reason,
        at,
        exception if outcome == "dead_letters" else None,
        None,
        hour,
        place,
    )


def _with_times(context: Context, events: Sequence[EventRow]) -> list[EventRow]:
    """Adds the times of their requests."""
    table = tables.requests
    numbers = {event.request_id for event in events if event.at is None and event.request_id is not None}
    if not numbers:
        return list(events)
    with context.store.reading() as tx:
        times = dict(
            tx.execute(sa.select(table.c.id, table.c.answered_at).where(table.c.id.in_(numbers))).tuples().all()
        )
    return [
        event if event.at is not None or event.request_id is None else replace(event, at=times.get(event.request_id))
        for event in events
    ]
