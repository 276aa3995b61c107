"""Writing many events to Dagster's history at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import dagster as dg
from dagster import DagsterEventType, EventLogEntry
from dagster._core.storage.event_log import EventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

AT_ONCE = 250
"""So many events are held, and written in one transaction."""

_TOGETHER = (
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_OBSERVATION,
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
)
"""What the storage takes many of in one call."""

_Kind = tuple[str, str | None, DagsterEventType | None, dg.AssetKey | None]
"""Run, step, type and asset of an event."""


@contextmanager
def written_together(instance: dg.DagsterInstance) -> Iterator[None]:
    """Writes materializations and observations that this process logs in the block some hundred at a time.

    Dagster commits, and on SQLite opens and closes two files, for each event that is logged: most of the time of a run
    over a thousand partitions. It writes events of one kind and asset in one call only for the output of an asset.
    Whatever else is logged keeps its place among them. What is held when the block ends, also by an error, is written.

    No two of them are of one millisecond: the page of an asset takes those for one event and shows the first. The later
    one is dated a millisecond on.

    Args:
        instance: whose events.
    """
    storage = instance.event_log_storage
    one_by_one, all_at_once = storage.store_event, _batch_writer(storage)
    held: list[EventLogEntry] = []
    dates: dict[_Kind, int] = {}
    lock = threading.RLock()  # heartbeats log from a thread of their own

    def write() -> None:
        events = held[:]
        held.clear()
        if len(events) == 1:
            one_by_one(events[0])
        elif events:
            all_at_once(events)

    def store_event(event: EventLogEntry) -> None:
        with lock:
            if held and _kind(event) != _kind(held[0]):
                write()
            if event.dagster_event is None or event.dagster_event.event_type not in _TOGETHER:
                one_by_one(event)
                return
            held.append(_dated_apart(event, dates))
            if len(held) >= AT_ONCE:
                write()

    vars(storage)["store_event"] = store_event
    try:
        yield
    finally:
        del vars(storage)["store_event"]
        with lock:
            write()


def _dated_apart(event: EventLogEntry, dates: dict[_Kind, int]) -> EventLogEntry:
    """An event with a date of its own among those of its kind; ``dates`` has the last one, in milliseconds."""
    kind, date = _kind(event), int(event.timestamp * 1000)
    taken = dates.get(kind, 0)
    if date <= taken:
        date = taken + 1
        event = event._replace(timestamp=(date + 0.5) / 1000)  # in the middle of it, where rounding does no harm
    dates[kind] = date
    return event


def _kind(event: EventLogEntry) -> _Kind:
    """What events must have in common to be written in one call, which notes the last one of the asset only."""
    if event.dagster_event is None:
        return event.run_id, event.step_key, None, None
    return event.run_id, event.step_key, event.dagster_event.event_type, event.dagster_event.asset_key


def _batch_writer(storage: EventLogStorage) -> Callable[[Sequence[EventLogEntry]], None]:
    one_by_one = storage.store_event

    def write(events: Sequence[EventLogEntry]) -> None:
        if _kind(events[0])[2] is DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
            for event in events:  # which a storage does too, by the method that is replaced meanwhile
                one_by_one(event)
        else:
            storage.store_event_batch(events)

    if isinstance(storage, SqliteEventLogStorage):
        return lambda events: _write_to_sqlite(storage, events)
    return write


def _write_to_sqlite(storage: SqliteEventLogStorage, events: Sequence[EventLogEntry]) -> None:
    """What ``store_event_batch`` does on PostgreSQL; the storage on SQLite has no such method of its own."""
    rows = [storage._event_to_row(event) for event in events]
    insert = SqlEventLogStorageTable.insert()
    # Not as one statement with the values of all rows: making it would take longer than writing them.
    with storage.run_connection(events[0].run_id) as connection:
        connection.execute(insert, rows)
    with storage.index_transaction() as connection:
        with_numbers = insert.returning(SqlEventLogStorageTable.c.id, sort_by_parameter_order=True)
        numbers = list(connection.execute(with_numbers, rows).scalars())
        storage._store_asset_event_tags(connection, events, numbers)
        storage._store_asset_event(connection, events[-1], numbers[-1])
