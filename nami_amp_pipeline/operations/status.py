"""Where every event of every integration is, in numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.dead_letters import RETRIED
from nami_amp_pipeline.reconciliation import MISSING
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integration_rows import Integration, by_id, only_of
from nami_amp_pipeline.state.listed import Listed, listed
from nami_amp_pipeline.state.store import Transaction

WAITING: Final = "waiting_for_login"
"""Why an event is pending that goes once its user logs in."""


@dataclass
class IntegrationStatus:
    """One integration's numbers, of distinct events of its selected types.

    ``captured = delivered + skipped + dead letters + pending`` at every moment; each is counted by itself.

    Attributes:
        integration: ``<app_id>/<name>``.
        state: enabled, disabled or halted.
        captured: read from the warehouse since the integration was added.
        delivered: acknowledged by Amplitude.
        skipped: by reason.
        dead_letters: by reason.
        pending: not at an end yet.
        pending_by: pending by why: queued, waiting_for_login, throttled, over_daily_quota, held.
        watermark: newest ``ingested_at`` captured of the app, in µs since the epoch.
        lag_by: how long the oldest pending event has been in the warehouse, in seconds, by whether it is queued, held
            (throttled, over a quota, or a dead letter since it was retried) or waiting_for_login.
        error: why it stands still, or None.
        halted_at: since when it is halted, in µs since the epoch.
        destination: the name of whoever receives its events.
        enabled: whether a person wants it to send; one that is halted too.
    """

    integration: str
    state: str
    captured: int = 0
    delivered: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    pending_by: dict[str, int] = field(default_factory=dict)
    watermark: int | None = None
    lag_by: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    halted_at: int | None = None
    destination: str = "amplitude"
    enabled: bool = True

    @property
    def partition_key(self) -> str:
        """``<app_id>|<name>``, as Dagster names it."""
        return self.integration.replace("/", "|")

    @property
    def is_halted(self) -> bool:
        """Whether it stands still until a person repairs something."""
        return self.state == "halted"

    @property
    def waiting(self) -> int:
        """Pending events that nothing but the login of their user can move, as the integration wants it."""
        return self.pending_by.get(WAITING, 0)

    @property
    def to_post(self) -> int:
        """Pending events that are to go as soon as they can."""
        return self.pending - self.waiting

    @property
    def lag_seconds(self) -> float:
        """How long the oldest event that is still to be posted has been in the warehouse; 0 with none.

        What waits for a login is not behind, however long it does: ``lag_by`` has how long that is.
        """
        if not self.lag_by:
            return 0.0
        return max((seconds for why, seconds in self.lag_by.items() if why != WAITING), default=0.0)

    @property
    def shown_lags(self) -> dict[str, float]:
        """``lag_by`` in whole milliseconds, as it is shown."""
        return {why: round(seconds, 3) for why, seconds in self.lag_by.items()}

    def to_json(self) -> dict[str, Any]:
        """The object of ``status --json``."""
        return {
            "integration": self.integration,
            "captured": self.captured,
            "delivered": self.delivered,
            "skipped": self.skipped,
            "dead_letters": self.dead_letters,
            "pending": self.pending,
            "watermark": to_text(self.watermark),
            "lag_seconds": round(self.lag_seconds, 3),
            "error": self.error,
            "state": self.state,
            "pending_by": self.pending_by,
            "lag_by": self.shown_lags,
        }


def status(context: Context, integrations: Sequence[Integration | Listed]) -> list[IntegrationStatus]:
    """The numbers of these integrations, read in one transaction; removed ones are left out."""
    with context.store.reading() as tx:
        return numbers_of(context, tx, listed(tx, integrations))


def numbers_of(context: Context, tx: Transaction, integrations: Sequence[Listed]) -> list[IntegrationStatus]:
    """The numbers of integrations that were read in this transaction, in their order."""
    counts = _counts(tx, [integration.id for integration in integrations])
    pending = _pending(context, tx, integrations)
    found = []
    for integration in integrations:
        mine, reason = counts.get(integration.id, _NO_COUNTS), integration.halted_reason
        waits = pending.get(integration.id)
        numbers = IntegrationStatus(
            integration.key,
            "halted" if reason else "enabled" if integration.enabled else "disabled",
            mine.captured,
            mine.delivered,
            _sorted(mine.skipped),
            _sorted(mine.dead),
            watermark=integration.watermark,
            error=reason or integration.last_error,
            halted_at=integration.halted_at if reason else None,
            destination=integration.destination,
            enabled=integration.enabled,
        )
        if waits is not None:
            numbers.captured += waits.unprepared
            numbers.pending = sum(waits.by.values())
            numbers.pending_by = {why: events for why, events in waits.by.items() if events}
            numbers.lag_by = waits.lag_by
        found.append(numbers)
    return found


@dataclass(frozen=True)
class _Pending:
    """What waits of one integration: events by why, those that are in no outbox yet, and how long the oldest do."""

    by: dict[str, int]
    unprepared: int
    lag_by: dict[str, float]


def _pending(context: Context, tx: Transaction, integrations: Sequence[Listed]) -> dict[int, _Pending]:
    """By integration; those without events that wait are left out."""
    ids = [integration.id for integration in integrations]
    queued = _queued(tx, ids)
    excepted = _exceptions(tx, ids)
    unprepared, oldest = _unprepared(context, tx, ids)
    in_outboxes = _oldest_in_outboxes(tx, ids)
    oldest_excepted = _oldest_exceptions(tx, ids) if excepted else {}
    found, now = {}, context.now()
    for number in queued.keys() | excepted.keys() | unprepared.keys():
        by = {"queued": queued.get(number, 0) + unprepared.get(number, 0), **excepted.get(number, {})}
        since = dict(oldest_excepted.get(number, {}))
        queued_since = [at for at in (oldest.get(number), in_outboxes.get(number)) if at is not None]
        if by["queued"] and queued_since:
            since["queued"] = min(queued_since)
        lag_by = {why: max(0.0, (now - at) / 1e6) for why, at in since.items()}
        found[number] = _Pending(by, unprepared.get(number, 0), lag_by)
    return found


class _Counts:
    """What has come and ended of one integration."""

    __slots__ = ("captured", "dead", "delivered", "skipped")

    def __init__(self) -> None:
        self.captured = self.delivered = 0
        self.skipped: dict[str, int] = {}
        self.dead: dict[str, int] = {}


_NO_COUNTS: Final = _Counts()


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: events for reason, events in sorted(counts.items()) if events} if counts else {}


def _counts(tx: Transaction, ids: Sequence[int]) -> dict[int, _Counts]:
    counts: dict[int, _Counts] = defaultdict(_Counts)
    table = tables.counts
    columns = sa.select(table.c.integration_id, table.c.state, table.c.reason, table.c.events)
    for integration_id, state, reason, events in tx.execute(columns.where(only_of(table.c.integration_id, ids))):
        mine = counts[integration_id]
        if state == "captured":
            mine.captured = events
        elif state == "delivered":
            mine.delivered = events
        elif state == "skipped":
            mine.skipped[reason] = events
        elif state == "dead":
            mine.dead[reason] = events
    return counts


def _queued(tx: Transaction, ids: Sequence[int]) -> dict[int, int]:
    """Rows of lanes that have no end state yet and wait nowhere else."""
    boxes, lanes, exceptions = tables.outboxes, tables.lanes, tables.exceptions
    left = (
        sa.select(boxes.c.integration_id, sa.func.sum(lanes.c.rows - lanes.c.next_row))
        .join(lanes, lanes.c.outbox_id == boxes.c.id)
        .where(boxes.c.done_at.is_(None), only_of(boxes.c.integration_id, ids))
        .group_by(boxes.c.integration_id)
    )
    queued = {integration_id: int(rows) for integration_id, rows in tx.execute(left)}
    ahead = (
        sa.select(exceptions.c.integration_id, sa.func.count())
        .join(lanes, lanes.c.id == exceptions.c.lane_id)
        .where(exceptions.c.lane_row >= lanes.c.next_row, only_of(exceptions.c.integration_id, ids))
        .group_by(exceptions.c.integration_id)
    )
    for integration_id, rows in tx.execute(ahead):
        queued[integration_id] -= rows
    return queued


def _exceptions(tx: Transaction, ids: Sequence[int]) -> dict[int, dict[str, int]]:
    table, pauses = tables.exceptions, tables.pauses
    found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    rows = tx.execute(
        sa.select(table.c.integration_id, table.c.state, pauses.c.reason, sa.func.count())
        .outerjoin(
            pauses, sa.and_(pauses.c.integration_id == table.c.integration_id, pauses.c.identity == table.c.identity)
        )
        .where(table.c.state.in_(("held", "waiting")), only_of(table.c.integration_id, ids))
        .group_by(table.c.integration_id, table.c.state, pauses.c.reason)
    )
    for integration_id, state, reason, events in rows:
        found[integration_id][WAITING if state == "waiting" else reason or "held"] += events
    return found


def _oldest_exceptions(tx: Transaction, ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Since when the oldest of the events that wait in the store has been in the warehouse: held, and for a login.

    That is when its segment came, or since when it waits: a segment may be past its retention. They are written in the
    order of the segments, so the first is the oldest; but what is sent again, because a person or a reconciliation
    said so, waits since then.
    """
    table, parts, integrations = tables.exceptions, tables.segment_apps, tables.integrations
    retried = sa.and_(table.c.state == "held", table.c.reason.in_((RETRIED, MISSING)))
    first = (
        sa.select(table.c.integration_id, table.c.state, sa.func.min(table.c.id).label("id"))
        .where(table.c.state.in_(("held", "waiting")), sa.not_(retried), only_of(table.c.integration_id, ids))
        .group_by(table.c.integration_id, table.c.state)
        .subquery()
    )
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for integration_id, state, since in tx.execute(
        sa.select(table.c.integration_id, table.c.state, sa.func.coalesce(parts.c.min_ingested_at, table.c.at))
        .join(first, first.c.id == table.c.id)
        .join(integrations, integrations.c.id == table.c.integration_id)
        .outerjoin(parts, sa.and_(parts.c.segment_id == table.c.segment_id, parts.c.app_id == integrations.c.app_id))
    ):
        found[integration_id][WAITING if state == "waiting" else "held"] = since
    again = sa.select(table.c.integration_id, sa.func.min(table.c.at)).where(
        retried, only_of(table.c.integration_id, ids)
    )
    for integration_id, since in tx.execute(again.group_by(table.c.integration_id)):
        found[integration_id]["held"] = min(since, found[integration_id].get("held", since))
    return found


def _unprepared(context: Context, tx: Transaction, ids: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Selected events of segments that are in no outbox yet, and the oldest ``ingested_at`` of those segments."""
    table, parts, segments = tables.integrations, tables.segment_apps, tables.segments
    rows = tx.execute(
        sa.select(table.c.id.label("integration_id"), parts, segments.c.file)
        .join(parts, parts.c.app_id == table.c.app_id)
        .join(segments, segments.c.id == parts.c.segment_id)
        .where(parts.c.segment_id > table.c.prepared_through, only_of(table.c.id, ids))
    ).all()
    integrations = by_id(tx, {row.integration_id for row in rows}.intersection(ids)) if rows else {}
    events: dict[int, int] = defaultdict(int)
    oldest: dict[int, int] = {}
    for row in rows:
        integration = integrations.get(row.integration_id)
        if integration is None:
            continue
        count = sum(selected_types(context, integration, row).values())
        events[integration.id] += count
        if count:
            oldest[integration.id] = min(oldest.get(integration.id, row.min_ingested_at), row.min_ingested_at)
    return events, oldest


def selected_types(context: Context, integration: Integration, row: Any) -> dict[str, int]:
    """Events by type that an integration takes of a segment of its app.

    Args:
        context: the process at work.
        integration: of the app.
        row: of ``segment_apps``, with the ``file`` of the segment.
    """
    start = integration.start_in(row.segment_id)
    if start is not None and row.max_ingested_at < start:
        return {}
    if start is not None and row.min_ingested_at < start:
        return _types_from(context, row.file, integration, start)
    types = _types(row.types)
    return {event_type: types[event_type] for event_type in integration.events if event_type in types}


@lru_cache(4096)
def _types(text: str) -> dict[str, int]:
    types: dict[str, int] = orjson.loads(text)
    return types


def _types_from(context: Context, file: str, integration: Integration, start: int) -> dict[str, int]:
    """The same of a segment that reaches across the start of an integration."""
    import pyarrow as pa  # here, for most of the time it takes to say how things stand would go into the import
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(context.folder.fetch(file), columns=["app_id", "event_type", "ingested_at"])
    selected = pc.is_in(table["event_type"], value_set=pa.array(integration.events, pa.string()))
    chosen = pc.and_(
        pc.and_(pc.equal(table["app_id"], integration.app_id), selected),
        pc.greater_equal(table["ingested_at"].cast("int64"), start),
    )
    counted = table["event_type"].filter(chosen).value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}


def _oldest_in_outboxes(tx: Transaction, ids: Sequence[int]) -> dict[int, int]:
    boxes, parts, integrations = tables.outboxes, tables.segment_apps, tables.integrations
    rows = tx.execute(
        sa.select(boxes.c.integration_id, sa.func.min(parts.c.min_ingested_at))
        .join(integrations, integrations.c.id == boxes.c.integration_id)
        .join(parts, sa.and_(parts.c.segment_id == boxes.c.segment_id, parts.c.app_id == integrations.c.app_id))
        .where(boxes.c.done_at.is_(None), only_of(boxes.c.integration_id, ids))
        .group_by(boxes.c.integration_id)
    )
    return dict(rows.tuples().all())
