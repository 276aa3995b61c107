"""The ledger of captured ids: it recognises rows that are loaded again.

The ledger stores an id as 128 bits of MD5 over app and id, enough to rule out collisions in practice. The bits are
sorted in files, called *sorted runs*, and found by binary search, so that the cost of a tick depends on its new rows
only. The sorted runs of a day are merged as they grow, so that each is at least twice as large as the next; a past day
(or a tenth of the retention, if that is shorter) becomes one sorted run. A sorted run is removed when its newest id is
older than the ledger's retention, no kept segment has its ids, and no paused app could read its rows again.

Segments are the truth; sorted runs only index them. A segment that is in no sorted run yet, because a process ended in
between, is read itself.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, NamiAmpError
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.storage.duckdb_engine import compute, read_files
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

LEASE: Final = "ledger"

RUN_SCHEMA: Final = pa.schema([("high", pa.uint64()), ("low", pa.uint64())])
"""Columns of a sorted run (Arrow IPC, memory-mapped): the two halves of each id's bits, sorted by ``high``."""

_BITS: Final = "md5_number(concat(app_id, chr(0), id))"
KEY_COLUMNS: Final = f"({_BITS} & {2**64 - 1}::UHUGEINT)::UBIGINT AS high, ({_BITS} >> 64)::UBIGINT AS low"
"""The bits of an id, in DuckDB's SQL, from the columns ``app_id`` and ``id``. DuckDB computes the MD5 once; the halves
are what ``md5_number_upper`` and ``md5_number_lower`` give, which cost six times as much."""

_DAY = 86_400_000_000
_BATCH_ROWS = 1_000_000
_OPEN_TRIES = 5

Keys = tuple[np.ndarray[Any, np.dtype[np.uint64]], np.ndarray[Any, np.dtype[np.uint64]]]


@dataclass(frozen=True)
class SortedRun:
    """A file of the ledger, or a segment that is not in the ledger yet.

    Attributes:
        id: of the store.
        file: in the data folder.
        rows: how many ids.
        oldest, newest: when its first and last id were captured, in µs since the epoch.
        max_ingested_at: of their rows, in µs since the epoch.
    """

    id: int
    file: str
    rows: int
    oldest: int
    newest: int
    max_ingested_at: int


class Ledger:
    """The captured ids, read from the ledger and the segments.

    Args:
        context: for the store and the files.

    Raises:
        Blocked: a file of it cannot be read.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        for _ in range(_OPEN_TRIES):
            with context.store.begin() as tx:
                runs, self._segments = _all_runs(tx), _loose_segments(tx)
            try:
                self._runs = [_map(context, run) for run in runs]
                return
            except FileNotFoundError:  # merged with another by another process just now
                time.sleep(0.05)
            except (OSError, pa.ArrowException) as error:
                raise Blocked(f"the ledger of captured ids cannot be read: {type(error).__name__}") from None
        raise Blocked(
            f"a file of the ledger of captured ids is missing in {context.folder.address}/ledger: restore it, or run "
            "'nami-amp repair'"
        )

    def forget_known(self, connection: duckdb.DuckDBPyConnection, table: str) -> None:
        """Deletes the rows of a table that are in the ledger.

        Args:
            connection: has the table.
            table: with columns ``high`` and ``low``, and any others.
        """
        known = [part for part in self._known(connection, table) if part.num_rows] if self._runs else []
        if known:
            connection.register("known_keys", pa.concat_tables(known))
            _delete(connection, table, "known_keys")
            connection.unregister("known_keys")
        if self._segments:
            _delete(connection, table, f"({_keys_of(self._context, self._segments)})")

    def _known(self, connection: duckdb.DuckDBPyConnection, table: str) -> Iterator[pa.Table]:
        for batch in connection.sql(f"SELECT high, low FROM {table}").to_arrow_reader(_BATCH_ROWS):  # noqa: S608
            high, low = batch["high"].to_numpy(), batch["low"].to_numpy()
            order = np.argsort(high)  # neighbours look at the same pages of a run
            high, low = high[order], low[order]
            found = np.zeros(len(high), dtype=bool)
            for run in self._runs:
                found |= _contains(run, (high, low))
            yield pa.table({"high": high[found], "low": low[found]}, schema=RUN_SCHEMA)


@dataclass(frozen=True)
class JustCaptured:
    """Keys that were captured just now, so that they need not be read again.

    Attributes:
        segments: the segments that hold them.
        keys: of all rows of these segments, in any order.
    """

    segments: frozenset[int]
    keys: Keys


def fold(context: Context, captured: JustCaptured | None = None) -> None:
    """Adds new segments to the sorted runs, and merges the runs that are due.

    If another process is already doing this, it is left to that process; unfinished work is done the next time.

    Args:
        context: for the store and the files.
        captured: the keys at hand of segments that are in no sorted run yet.
    """
    if not _work(context):
        return
    lease = context.store.acquire([LEASE]).get(LEASE)
    if lease is None:
        return
    try:
        for runs, segments in _work(context):
            _merge(context, lease, runs, segments, captured)
    except (OSError, pa.ArrowException, Blocked) as error:
        context.log.warning("the ledger of captured ids was not updated: %s", error)
    finally:
        with suppress(NamiAmpError):  # a lease that is not given back runs out by itself
            context.store.release([lease])


def expire(context: Context, *, without: Collection[int] = (), dry_run: bool = False) -> tuple[int, int, int]:
    """Removes the sorted runs that are past the retention and whose segments are gone.

    An integration that is added later takes events from kept segments; if the ledger had forgotten them, rows that are
    loaded again would reach it twice.

    Args:
        context: for the store and the files.
        without: segments to treat as removed.
        dry_run: only count, remove nothing.

    Returns:
        How many files, ids and bytes were (or would be) removed.
    """
    table = tables.captured_ids
    with context.store.begin() as tx:
        needed = {run.id for run in needed_runs(context, tx)}
        segments = tx.execute(sa.select(tables.segments.c.id, tables.segments.c.captured_at))
        kept = sorted(captured_at for number, captured_at in segments.tuples() if number not in without)
        old = [run for run in _all_runs(tx) if run.id not in needed and not _has_between(kept, run.oldest, run.newest)]
        if not dry_run:
            tx.execute(sa.delete(table).where(table.c.id.in_([run.id for run in old])))
    size = 0
    for run in old:
        size += sum(context.folder.sizes([run.file]))
        if not dry_run:
            context.folder.remove(run.file)
    return len(old), sum(run.rows for run in old), size


def _work(context: Context) -> list[tuple[list[SortedRun], list[SortedRun]]]:
    """The merges to do, each into one sorted run: (runs, segments that are in no run)."""
    with context.store.begin() as tx:
        runs, segments = _all_runs(tx), _loose_segments(tx)
    if not runs and not segments:
        return []
    # A run goes as a whole, so with a retention of hours a day would be too long.
    span = max(1, min(_DAY, int(context.settings.ledger_retention_days * _DAY / 10)))
    today = max(run.newest // span for run in (*runs, *segments))
    days = [list(group) for day, group in groupby(runs, key=lambda run: run.newest // span) if day != today]
    work: list[tuple[list[SortedRun], list[SortedRun]]] = [(group, []) for group in days if len(group) > 1]
    if segments:
        rows, merged = sum(segment.rows for segment in segments), []
        for run in sorted((run for run in runs if run.newest // span == today), key=lambda run: run.rows):
            if run.rows >= 2 * rows:
                break
            merged.append(run)
            rows += run.rows
        work.append((merged, segments))
    return work


def _merge(
    context: Context,
    lease: Lease,
    runs: Sequence[SortedRun],
    segments: Sequence[SortedRun],
    captured: JustCaptured | None,
) -> None:
    parts = [_map(context, run) for run in runs]
    unread = list(segments)
    if captured is not None and captured.segments <= {segment.id for segment in segments}:
        parts.append(captured.keys)
        unread = [segment for segment in segments if segment.id not in captured.segments]
    if unread:
        parts.append(_read(context, unread))
    high, low = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(high)
    name = context.folder.new_name("ledger", "arrow")
    with context.folder.ipc(name, RUN_SCHEMA, compression=None) as writer:
        writer.write_batch(pa.record_batch({"high": high[order], "low": low[order]}, schema=RUN_SCHEMA))
    context.folder.publish([name])
    context.step("ledger.commit")
    with context.store.begin(under=[lease]) as tx:
        table = tables.captured_ids
        tx.execute(sa.delete(table).where(table.c.id.in_([run.id for run in runs])))
        tx.execute(
            sa.insert(table).values(
                file=name,
                rows=len(high),
                oldest=min(run.oldest for run in (*runs, *segments)),
                newest=max(run.newest for run in (*runs, *segments)),
                max_ingested_at=max(run.max_ingested_at for run in (*runs, *segments)),
            )
        )
        for segment in segments:
            tx.execute(sa.update(tables.segments).where(tables.segments.c.id == segment.id).values(in_ledger=True))
    context.step("ledger.committed")
    for run in runs:
        context.folder.remove(run.file)


def _is_needed(run: SortedRun, context: Context, positions: Sequence[tuple[int | None, int]]) -> bool:
    """Whether an id of a sorted run can still appear again: loaded again, or read again by an app that paused."""
    if run.newest >= context.now() - context.settings.ledger_retention_days * _DAY:
        return True
    return any(
        run.oldest <= captured_at and (frontier is None or run.max_ingested_at >= frontier)
        for frontier, captured_at in positions
    )


def _has_between(numbers: Sequence[int], first: int, last: int) -> bool:
    place = bisect_left(numbers, first)
    return place < len(numbers) and numbers[place] <= last


def _positions(tx: Transaction) -> list[tuple[int | None, int]]:
    """The position from which each app with an integration is read next, and when it was last read."""
    apps, integrations = tables.apps, tables.integrations
    query = sa.select(apps.c.frontier, apps.c.captured_at).where(
        apps.c.captured_at.is_not(None), apps.c.app_id.in_(sa.select(integrations.c.app_id))
    )
    return [(row.frontier, row.captured_at) for row in tx.execute(query)]


def _all_runs(tx: Transaction) -> list[SortedRun]:
    table = tables.captured_ids
    return [
        SortedRun(row.id, row.file, row.rows, row.oldest, row.newest, row.max_ingested_at)
        for row in tx.execute(sa.select(table).order_by(table.c.newest))
    ]


def needed_runs(context: Context, tx: Transaction) -> list[SortedRun]:
    """The sorted runs that are within the retention, or that a paused app may still need."""
    runs = _all_runs(tx)
    positions = _positions(tx) if runs else []
    return [run for run in runs if _is_needed(run, context, positions)]


def _loose_segments(tx: Transaction) -> list[SortedRun]:
    segments, parts = tables.segments, tables.segment_apps
    query = (
        sa.select(segments, sa.func.max(parts.c.max_ingested_at).label("max_ingested_at"))
        .join(parts, parts.c.segment_id == segments.c.id)
        .where(segments.c.in_ledger.is_(False))
        .group_by(segments.c.id)
        .order_by(segments.c.id)
    )
    return [
        SortedRun(row.id, row.file, row.rows, row.captured_at, row.captured_at, row.max_ingested_at)
        for row in tx.execute(query)
    ]


def _map(context: Context, run: SortedRun) -> Keys:
    """The columns of a run, mapped from its file.

    Raises:
        FileNotFoundError: it is gone.
    """
    batch = context.folder.open_ipc(run.file).get_batch(0)
    return batch["high"].to_numpy(), batch["low"].to_numpy()


def _read(context: Context, segments: Sequence[SortedRun]) -> Keys:
    with compute(context.settings) as connection:
        keys = connection.sql(_keys_of(context, segments)).to_arrow_table()
    return keys["high"].to_numpy(), keys["low"].to_numpy()


def _keys_of(context: Context, segments: Sequence[SortedRun]) -> str:
    rows = read_files(context.folder.fetch_all(segment.file for segment in segments), SEGMENT_SCHEMA)
    return f"SELECT {KEY_COLUMNS} FROM {rows}"  # noqa: S608


def _contains(run: Keys, wanted: Keys) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the wanted keys a run has."""
    high, low = run
    place = np.searchsorted(high, wanted[0])
    found = np.zeros(len(place), dtype=bool)
    open_ = np.flatnonzero(place < len(high))
    while len(open_):  # once, but for the few that share their high half with another
        same = high[place[open_]] == wanted[0][open_]
        open_ = open_[same]
        hit = low[place[open_]] == wanted[1][open_]
        found[open_[hit]] = True
        open_ = open_[~hit]
        place[open_] += 1
        open_ = open_[place[open_] < len(high)]
    return found


def _delete(connection: duckdb.DuckDBPyConnection, table: str, known: str) -> None:
    connection.execute(
        f"DELETE FROM {table} USING {known} AS known WHERE {table}.high = known.high AND {table}.low = known.low"  # noqa: S608
    )
