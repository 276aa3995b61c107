"""Stage 1, ``nami_events``: copies the rows that are new in the warehouse into segments.

How new rows are found: a loader may commit a row until the late-commit window has passed since rows with a later
``ingested_at`` became visible. So each tick notes the newest ``ingested_at`` that it saw, and when. Once that note
is older than the window, no row can appear below it any more: it is the app's *frontier*. A tick reads from the
frontier on and skips the ids that were captured before. The frontier also stays at least a window behind the newest
row, so that a clock that jumps forward skips nothing.

The rows of a tick are spread over segments by their users (see ``buckets``), so that a segment holds all rows of a
user in that tick: order, snapshots and logins are complete within a segment, and memory is bounded by one segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import duckdb
import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.stages.buckets import create_buckets
from nami_amp_pipeline.stages.captured_ids import KEY_COLUMNS, JustCaptured, Keys, Ledger, fold
from nami_amp_pipeline.stages.captured_rows import write_rows
from nami_amp_pipeline.stages.frontiers import Frontiers, advance, frontiers_of
from nami_amp_pipeline.stages.window import Window, refuse
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline.state.unreadable import Unreadable, note
from nami_amp_pipeline.storage.duckdb_engine import compute, read_files, sql
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA
from nami_amp_pipeline.warehouse import Source
from nami_amp_pipeline.warehouse.base import one_line


@dataclass
class Captured:
    """The rows of one app that one tick captured.

    Attributes:
        rows: distinct events.
        types: events by event type.
        malformed: events that cannot be sent as they are, such as those whose payload is not a JSON object.
        half_characters: events with halves of surrogate pairs, which were replaced.
        segments: ids of the segments that hold them.
        min_ingested_at, max_ingested_at, min_created_date, max_created_date: in µs since the epoch.
    """

    rows: int = 0
    types: dict[str, int] = field(default_factory=dict)
    malformed: int = 0
    half_characters: int = 0
    segments: list[int] = field(default_factory=list)
    min_ingested_at: int = 0
    max_ingested_at: int = 0
    min_created_date: int = 0
    max_created_date: int = 0


def capture(context: Context, leases: Mapping[str, Lease], *, window: Window | None = None) -> dict[str, Captured]:
    """Captures the new rows of the apps under lease.

    Args:
        context: the process at work.
        leases: by app id.
        window: refused.

    Returns:
        Results by app id; apps without new rows are left out.

    Raises:
        WarehouseUnavailable: nothing was captured, the next tick reads the same again.
    """
    refuse(window, "nami_events")
    if not leases:
        return {}
    fold(context)
    with context.store.reading() as tx:
        read_from = frontiers_of(context.store, tx, leases.keys())
    frontiers = read_from.starts
    began = context.now()
    ledger = Ledger(context)
    # Half of the memory: what is read once need not be kept, and the rows on their way to the segments take the rest.
    with compute(context.settings, share=2) as connection:
        with context.warehouse.open(connection, frontiers) as source:
            started = context.now()
            for warning in source.warnings:
                context.log.warning("%s", warning)
            if source.head is None:
                _note_unplaced(context, leases, source)
                return {}
            try:
                upper = _find_fresh(context, ledger, connection, source, frontiers)
                written = write_rows(context, connection, source)
            except duckdb.IOException as error:
                raise WarehouseUnavailable(f"cannot read {context.warehouse.name}: {one_line(error)}") from None
        keys = _keys(connection, sum(written.values()))
        summaries = _summaries(connection, context, written)
        # What became visible while the warehouse was being opened may not have been seen: the window must be over then.
        reached = _reached(frontiers, min(_settled(context, began, source.head), upper))
        nameless = _nameless(connection, reached)
    read = _Read(read_from, reached, source, nameless, started)
    captured = _commit(context, leases, read, summaries)
    segments = frozenset(number for part in captured.values() for number in part.segments)
    fold(context, JustCaptured(segments, keys) if keys is not None and segments else None)
    return captured


@dataclass(frozen=True)
class _Read:
    """One reading of the warehouse: its positions and findings, without the rows.

    Attributes:
        read_from: where each app was read from.
        reached: where each app is read from next; None if that is not known yet.
        source: the events table.
        nameless: the rows that cannot be captured: those that the frontier passed, and those that the next reading sees
            again.
        started: when it began, in µs since the epoch.
    """

    read_from: Frontiers
    reached: Mapping[str, int | None]
    source: Source
    nameless: tuple[list[Unreadable], list[Unreadable]]
    started: int


def _note_unplaced(context: Context, leases: Mapping[str, Lease], source: Source) -> None:
    """Notes rows that cannot be captured if there are no others."""
    with context.store.begin(ending=list(leases.values())) as tx:
        more = note(context.store, tx, leases, context.now(), unplaced=_unplaced(source, leases), settled=[], recent=[])
    _warn(context, more)


def _unplaced(source: Source, app_ids: Iterable[str]) -> list[Unreadable]:
    return [Unreadable(*row) for row in source.unplaced if row.app_id in {*app_ids, ""}]


def _warn(context: Context, unreadable: Iterable[Unreadable]) -> None:
    for finding in unreadable:
        context.log.warning("%s", finding)


def _reached(frontiers: Mapping[str, int | None], settled: int) -> dict[str, int | None]:
    reached = {app_id: settled if old is None else max(old, settled) for app_id, old in frontiers.items()}
    return {app_id: at if at > -(2**62) else None for app_id, at in reached.items()}


def _nameless(
    connection: duckdb.DuckDBPyConnection, reached: Mapping[str, int | None]
) -> tuple[list[Unreadable], list[Unreadable]]:
    """The rows that cannot be captured: those that the frontier has passed now, and the others."""
    ends = pa.table({"app_id": pa.array(list(reached), pa.string()), "reached": pa.array(reached.values(), pa.int64())})
    connection.register("ends", ends)
    parts: tuple[list[Unreadable], list[Unreadable]] = ([], [])
    for is_recent, *rest in connection.execute(
        "SELECT ingested_at >= coalesce(reached, ingested_at), app_id, reason, count(*), min(example) "
        "FROM nameless JOIN ends USING (app_id) GROUP BY ALL ORDER BY ALL"
    ).fetchall():
        parts[is_recent].append(Unreadable(*rest))
    return parts


def _find_fresh(
    context: Context,
    ledger: Ledger,
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    frontiers: Mapping[str, int | None],
) -> int:
    """Fills the table ``fresh`` with the row numbers to capture; returns their newest ``ingested_at``.

    The table ``nameless`` gets the rows that cannot be captured, because they have no usable id.
    """
    positions = pa.table(
        {
            "app_id": pa.array(list(frontiers), pa.string()),
            "frontier": pa.array(list(frontiers.values()), pa.int64()),
        }
    )
    connection.register("positions", positions)
    connection.execute(f"CREATE TEMP VIEW keys AS SELECT * FROM {source.keys}")  # noqa: S608
    connection.execute(candidates("min"))
    ledger.forget_known(connection, "fresh")
    total = _scalar(connection, "SELECT count(*) FROM fresh")
    most = context.settings.max_rows_per_tick
    upper = 2**62
    if total > most:
        upper = _scalar(
            connection,
            f"SELECT ingested_at FROM fresh ORDER BY ingested_at LIMIT 1 OFFSET {most - 1}",  # noqa: S608
        )
        connection.execute(f"DELETE FROM fresh WHERE ingested_at > {upper}")  # noqa: S608
    create_buckets(connection, source, context.settings.segment_rows)
    return upper


def candidates(copy: Literal["min", "max"]) -> str:
    """SQL of the rows to read: of an id that was loaded several times the first row, or the last."""
    return sql("capture_1_candidates").format(key_columns=KEY_COLUMNS, max_id_bytes=contract.MAX_ID_BYTES, copy=copy)


def _keys(connection: duckdb.DuckDBPyConnection, written: int) -> Keys | None:
    """The ledger's keys of the written rows; None if rows vanished from the warehouse during the read."""
    fresh = connection.sql("SELECT high, low FROM fresh").to_arrow_table()
    if fresh.num_rows != written:
        return None
    return fresh["high"].to_numpy(), fresh["low"].to_numpy()


def _summaries(
    connection: duckdb.DuckDBPyConnection, context: Context, written: Mapping[str, int]
) -> list[tuple[str, int, dict[str, Captured]]]:
    """File name, rows, and a summary by app."""
    if not written:
        return []
    names = {str(context.folder.path(name)): name for name in written}
    rows = read_files([context.folder.path(name) for name in written], SEGMENT_SCHEMA, "filename")
    connection.execute(f"CREATE TEMP VIEW segments AS FROM {rows}")
    found: dict[str, dict[str, Captured]] = {name: {} for name in written}
    for file, app_id, event_type, rows, malformed, halves, first, last, oldest, newest in connection.execute(
        sql("capture_3_summary")
    ).fetchall():
        app = found[names[file]].setdefault(app_id, Captured(0, {}, 0, 0, [], first, last, oldest, newest))
        app.types[event_type] = rows
        app.rows += rows
        app.malformed += malformed
        app.half_characters += halves
        app.min_ingested_at = min(app.min_ingested_at, first)
        app.max_ingested_at = max(app.max_ingested_at, last)
        app.min_created_date = min(app.min_created_date, oldest)
        app.max_created_date = max(app.max_created_date, newest)
    return [(name, rows, found[name]) for name, rows in written.items()]


def _settled(context: Context, began: int, head: int) -> int:
    """The ``ingested_at`` below which a read that began then has seen every row that can ever appear."""
    window = context.settings.late_commit_window_seconds * 1_000_000
    with context.store.begin() as tx:
        observations = tables.observations
        seen = tx.execute(
            sa.select(sa.func.max(observations.c.max_ingested_at)).where(observations.c.observed_at <= began - window)
        ).scalar()
    # Never past the clock: a row that says it is from next year must not hide those of this year.
    if window == 0:
        return min(head, began)
    return min(seen, head - window, began - window) if seen is not None else -(2**62)


def _commit(
    context: Context,
    leases: Mapping[str, Lease],
    read: _Read,
    summaries: Sequence[tuple[str, int, dict[str, Captured]]],
) -> dict[str, Captured]:
    window = context.settings.late_commit_window_seconds * 1_000_000
    started = read.started
    captured: dict[str, Captured] = {}
    context.folder.publish(name for name, *_ in summaries)
    context.step("capture.commit")
    with context.store.begin(ending=list(leases.values())) as tx:
        for name, rows, apps in summaries:
            segment_id = tx.execute(
                sa.insert(tables.segments).values(file=name, rows=rows, captured_at=started, run_id=context.run_id)
            ).inserted_primary_key[0]  # type: ignore[index]
            of_apps = [
                {
                    "segment_id": segment_id,
                    "app_id": app_id,
                    "rows": part.rows,
                    "types": orjson.dumps(part.types).decode(),
                    "malformed": part.malformed,
                    "min_ingested_at": part.min_ingested_at,
                    "max_ingested_at": part.max_ingested_at,
                    "min_created_date": part.min_created_date,
                    "max_created_date": part.max_created_date,
                }
                for app_id, part in apps.items()
            ]
            if of_apps:
                tx.execute(sa.insert(tables.segment_apps), of_apps)
            for app_id, part in apps.items():
                _add(captured.setdefault(app_id, Captured()), part, segment_id)
        newest = {app_id: part.max_ingested_at for app_id, part in captured.items()}
        advance(context.store, tx, read.read_from, read.reached, newest, started)
        settled, recent = read.nameless
        more = note(
            context.store, tx, leases, started,
            unplaced=_unplaced(read.source, leases), settled=settled, recent=recent,
        )  # fmt: skip
        observations = tables.observations
        context.store.upsert(
            tx, observations, [{"observed_at": started, "max_ingested_at": read.source.head}], ["observed_at"],
            update=["max_ingested_at"],
        )  # fmt: skip
        # Of the notes that are old enough only the newest matters from here on.
        last = sa.select(sa.func.max(observations.c.observed_at)).where(observations.c.observed_at <= started - window)
        tx.execute(sa.delete(observations).where(observations.c.observed_at < last.scalar_subquery()))
    context.step("capture.committed")
    _warn(context, more)
    halves = sum(part.half_characters for part in captured.values())
    if halves:
        context.log.warning("%s", f"{halves:,} events had half of a surrogate pair, replaced by U+FFFD")
    return captured


def _add(total: Captured, part: Captured, segment_id: int) -> None:
    first = not total.segments
    total.segments.append(segment_id)
    total.rows += part.rows
    total.malformed += part.malformed
    total.half_characters += part.half_characters
    for event_type, rows in part.types.items():
        total.types[event_type] = total.types.get(event_type, 0) + rows
    total.min_ingested_at = part.min_ingested_at if first else min(total.min_ingested_at, part.min_ingested_at)
    total.max_ingested_at = part.max_ingested_at if first else max(total.max_ingested_at, part.max_ingested_at)
    total.min_created_date = part.min_created_date if first else min(total.min_created_date, part.min_created_date)
    total.max_created_date = part.max_created_date if first else max(total.max_created_date, part.max_created_date)


def _scalar(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    ((value,),) = connection.execute(query).fetchall()
    return int(value)
