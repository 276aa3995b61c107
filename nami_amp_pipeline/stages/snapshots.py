"""Stage 2, ``user_property_snapshots``: the state of each user as of each of its events, and the current one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, OutOfMemory, PartsBlocked
from nami_amp_pipeline.stages.enrich import Enricher, Waits, Without, create_nothing, failed_by_sql
from nami_amp_pipeline.stages.odd_rows import is_odd, odd_rows_of, only
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema, snapshot_sql, stored_table
from nami_amp_pipeline.stages.window import Window, refuse
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline.state.users import COLUMNS, move_forward, read_snapshots
from nami_amp_pipeline.storage.duckdb_engine import Engine, engine, literal, read_files
from nami_amp_pipeline.storage.parallel import in_parallel, is_parallel
from nami_amp_pipeline.storage.row_faults import may_be_a_rows
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

_READ_ROWS = 50_000

_NAMED_USERS = 1_000
"""For late events of more users than this, every row of the snapshot files is scanned, without Bloom filters."""


@dataclass
class Snapshotted:
    """The result of one run for one app.

    Attributes:
        events: ``user.*`` events that have a snapshot now.
        users: users whose current snapshot was looked at.
        truncated_arrays: arrays that were cut to the length that Amplitude keeps.
        files: the snapshot files, relative to the data folder.
        without: by property, events that go without it because its SQL or its enrichment failed.
        segments: ids of the segments that they are of.
    """

    events: int
    users: int
    truncated_arrays: int
    files: list[str]
    without: Counter[str] = field(default_factory=Counter)
    segments: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Segment:
    """A segment without snapshots of some apps.

    Attributes:
        id: in the store.
        file: relative to the data folder.
        app_ids: of the apps.
        odd: numbers of rows that cannot be computed; they carry no state.
        rows: numbers of the first row and of the row after the last; None for all rows.
        is_whole: whether the file has all earlier events of its users, so that nothing else is asked.
    """

    id: int
    file: str
    app_ids: Sequence[str]
    odd: Sequence[int] = ()
    rows: tuple[int, int] | None = None
    is_whole: bool = False


@dataclass(frozen=True)
class _Computed:
    """The results of a segment before the commit: a snapshot file, newer current snapshots, and counts by app."""

    file: str
    current: pa.Table
    done: Mapping[str, Snapshotted]


def snapshot(context: Context, leases: Mapping[str, Lease], *, window: Window | None = None) -> dict[str, Snapshotted]:
    """Computes the missing snapshots of the apps under lease.

    Args:
        context: the process at work.
        leases: by app id.
        window: refused.

    Returns:
        By app id; apps without new segments are left out.

    Raises:
        PartsBlocked: some apps wait for an enrichment; what there is to do for the others is done.
    """
    refuse(window, "user_property_snapshots")
    done: dict[str, Snapshotted] = {}
    enricher = Enricher(context) if contract.ENRICHMENTS else None
    _snapshot_all(context, leases, done, enricher)
    if enricher is not None and enricher.waits:
        raise PartsBlocked({app_id: Blocked(why) for app_id, why in enricher.waits.items()}, done)
    return done


def _snapshot_all(
    context: Context, leases: Mapping[str, Lease], done: dict[str, Snapshotted], enricher: Enricher | None
) -> None:
    adding = threading.Lock()

    def compute(segment: _Segment, shared: Engine, *, careful: bool) -> None:
        parts = _without_waiting(context, leases, segment, shared, enricher, careful=careful)
        with adding:
            for app_id, part in parts.items():
                total = done.setdefault(app_id, Snapshotted(0, 0, 0, []))
                total.events += part.events
                total.users += part.users
                total.truncated_arrays += part.truncated_arrays
                total.files += part.files
                total.segments.append(segment.id)
                total.without.update(part.without)

    if not (pending := _pending(context, leases)):
        return
    if is_parallel(context.settings):
        try:
            with engine(context.settings) as shared:
                for together in pending:
                    in_parallel(lambda segment: compute(segment, shared, careful=False), together, shared.divide)
            return
        except OutOfMemory as error:
            context.log.info("%s; continuing with one segment at a time", error)
        except Exception as error:
            if not may_be_a_rows(error):
                raise
            context.log.info("%s; continuing with one segment at a time", type(error).__name__)
    with engine(context.settings) as alone:
        for together in _pending(context, leases):
            for segment in together:
                compute(segment, alone, careful=True)


def _without_waiting(
    context: Context,
    leases: Mapping[str, Lease],
    segment: _Segment,
    shared: Engine,
    enricher: Enricher | None,
    *,
    careful: bool,
) -> Mapping[str, Snapshotted]:
    """Computes a segment for those of its apps that wait for no enrichment."""
    if enricher is None:
        return _one(context, leases, segment, shared, None, careful=careful)
    while app_ids := [app_id for app_id in segment.app_ids if app_id not in enricher.waits]:
        try:
            return _one(context, leases, replace(segment, app_ids=app_ids), shared, enricher, careful=careful)
        except Waits as error:
            context.log.info("%s: %s", ", ".join(error.apps), error)
    return {}


def _pending(context: Context, leases: Mapping[str, Lease]) -> list[list[_Segment]]:
    """The segments without snapshots, oldest first; grouped by tick."""
    parts, segments = tables.segment_apps, tables.segments
    with context.store.begin() as tx:
        rows = tx.execute(
            sa.select(parts.c.segment_id, segments.c.file, parts.c.app_id, segments.c.captured_at, segments.c.run_id)
            .join(segments, segments.c.id == parts.c.segment_id)
            .where(parts.c.snapshot_file.is_(None))
            .order_by(parts.c.segment_id)
        ).all()
    pending: dict[tuple[int, str], dict[tuple[int, str], list[str]]] = {}
    for segment_id, file, app_id, captured_at, run_id in rows:
        if app_id in leases:
            tick = pending.setdefault((captured_at, run_id), {})
            tick.setdefault((segment_id, file), []).append(app_id)
    return [[_Segment(*of, app_ids) for of, app_ids in tick.items()] for tick in pending.values()]


def snapshot_whole_file(context: Context, file: str, app_id: str) -> tuple[str, pa.Table]:
    """The snapshots of a file that has all earlier events of its users; the store is neither asked nor changed.

    Args:
        context: the process at work.
        file: relative to the data folder, with the columns of a segment.
        app_id: of its rows.

    Returns:
        The snapshot file, and the current state of each user as of this file: ``user_id``, ``external_id``,
        ``external_id_date`` (µs since the epoch), ``external_id_event`` and more.

    Raises:
        Waits: an enrichment failed that events must not go without.
    """
    enricher = Enricher(context) if contract.ENRICHMENTS else None
    with engine(context.settings) as own:
        segment = _Segment(0, file, [app_id], is_whole=True)
        computed = _compute_carefully(context, segment, own, enricher, careful=True)
    return computed.file, computed.current


def _compute_carefully(
    context: Context, segment: _Segment, shared: Engine, enricher: Enricher | None, *, careful: bool
) -> _Computed:
    try:
        return _compute(context, segment, shared, enricher, careful=careful)
    except Exception as error:
        if not careful or not may_be_a_rows(error):
            raise
        # A new engine: an internal error may have made the old engine unusable.
        odd = odd_rows_of(
            context, segment.file, lambda *rows: _try(context, replace(segment, rows=rows)), error,
            "it carries no state of its user",
        )  # fmt: skip
        with engine(context.settings) as fresh:
            return _compute(context, replace(segment, odd=list(odd)), fresh, enricher, careful=careful)


def _one(
    context: Context,
    leases: Mapping[str, Lease],
    segment: _Segment,
    shared: Engine,
    enricher: Enricher | None,
    *,
    careful: bool,
) -> Mapping[str, Snapshotted]:
    computed = _compute_carefully(context, segment, shared, enricher, careful=careful)
    context.folder.publish([computed.file])
    context.step("snapshot.commit")
    with context.store.begin(under=[leases[app_id] for app_id in segment.app_ids]) as tx:
        move_forward(context.store, tx, computed.current)
        rows = [
            {
                "segment_id": segment.id,
                "app_id": app_id,
                "snapshot_file": computed.file,
                "truncated_arrays": done.truncated_arrays,
                "events_without": orjson.dumps(done.without).decode() if done.without else None,
            }
            for app_id, done in computed.done.items()
        ]
        context.store.change(tx, tables.segment_apps, rows, "segment_id", "app_id")
    context.step("snapshot.committed")
    return computed.done


def _try(context: Context, segment: _Segment) -> None:
    """Computes some rows of a segment, and removes the result; raises the error of a row that cannot be computed."""
    with engine(context.settings) as own:
        context.folder.remove(_compute(context, segment, own, None, careful=True).file)


def _compute(
    context: Context, segment: _Segment, shared: Engine, enricher: Enricher | None, *, careful: bool
) -> _Computed:
    name = context.folder.new_name("snapshots", "parquet")
    with shared.connection() as connection:
        _create_segment(context, connection, segment)
        connection.execute(snapshot_sql("snapshots_1_parse"))
        _parse(context, connection, segment, careful=careful)
        if segment.odd:
            connection.execute("INSERT INTO carried_by_event BY NAME FROM carried_nothing('odd_rows')")
        connection.execute(snapshot_sql("snapshots_2_incomplete"))
        _create_earlier(context, connection, is_whole=segment.is_whole)
        connection.execute(snapshot_sql("snapshots_5_as_of"))
        without = _add_declared(context, connection, enricher)
        ((users,),) = connection.execute("SELECT count(DISTINCT user_id) FROM carried_by_event").fetchall()
        schema = snapshot_schema()
        with context.folder.parquet(name, schema, bloom={"user_id": min(users, _READ_ROWS)}) as writer:
            for batch in connection.sql(snapshot_sql("snapshots_6_rows")).to_arrow_reader(_READ_ROWS):
                writer.write_table(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
        current = connection.sql(snapshot_sql("snapshots_7_current")).to_arrow_table()
        events = {
            app_id: (count, cut)
            for app_id, count, cut in connection.execute(
                "SELECT app_id, count(*), sum(truncated_arrays)::BIGINT FROM snapshots GROUP BY app_id"
            ).fetchall()
        }
    people = {app["values"]: app["counts"] for app in current["app_id"].value_counts().to_pylist()}
    done = {
        app_id: Snapshotted(
            events=events.get(app_id, (0, 0))[0],
            users=people.get(app_id, 0),
            truncated_arrays=events.get(app_id, (0, 0))[1],
            files=[name],
            without=Counter({prop: count for (app, prop), count in without.items() if app == app_id}),
        )
        for app_id in segment.app_ids
    }
    return _Computed(name, current, done)


def _add_declared(context: Context, connection: duckdb.DuckDBPyConnection, enricher: Enricher | None) -> Without:
    """Asks the enrichments; returns the events that go without a property."""
    if enricher is not None:
        return failed_by_sql(context, connection) + enricher.fill(connection)
    if contract.ENRICHMENTS:
        create_nothing(connection)
        return Without()
    return failed_by_sql(context, connection)


def _create_segment(context: Context, connection: duckdb.DuckDBPyConnection, segment: _Segment) -> None:
    """Creates the views ``segment`` and ``odd_rows``, which has the rows that cannot be computed."""
    connection.register("wanted", pa.table({"app_id": pa.array(segment.app_ids, pa.string())}))
    file = read_files([context.folder.fetch(segment.file)], SEGMENT_SCHEMA, "file_row_number")
    for view, rows in (("segment", f"NOT {is_odd(segment.odd)}"), ("odd_rows", is_odd(segment.odd))):
        connection.execute(
            f"CREATE TEMP VIEW {view} AS SELECT * RENAME (file_row_number AS row) "  # noqa: S608
            f"FROM {file} SEMI JOIN wanted USING (app_id) WHERE {only(segment.rows)} AND {rows}"
        )


def _parse(context: Context, connection: duckdb.DuckDBPyConnection, segment: _Segment, *, careful: bool) -> None:
    """Makes the table ``carried_by_event``: for all rows at once, or for a few at a time.

    Args:
        context: for the file, and to log rows that are too large.
        connection: has the view ``segment``, and the macros.
        segment: the wanted rows.
        careful: whether to continue with a few rows at a time if all of them take too much memory.
    """
    try:
        connection.execute("CREATE TEMP TABLE carried_by_event AS FROM carried('segment')")
        return
    except duckdb.OutOfMemoryException:
        if not careful:
            raise
    connection.execute("CREATE TEMP TABLE carried_by_event AS FROM carried('segment') LIMIT 0")
    first = 0
    apps, odd = pa.array(segment.app_ids, pa.string()), pa.array(segment.odd, pa.int64())
    begin, end = segment.rows or (0, 2**62)
    with pq.ParquetFile(context.folder.fetch(segment.file)) as source:
        for number in range(source.num_row_groups):
            rows = source.read_row_group(number)
            rows = rows.append_column("row", pa.array(range(first, first + rows.num_rows), pa.int64()))
            first += rows.num_rows
            rows = rows.filter((pc.field("row") >= begin) & (pc.field("row") < end) & ~pc.field("row").isin(odd))
            _parse_few(context, connection, rows.filter(pc.is_in(rows["app_id"], apps)))


def _parse_few(context: Context, connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    """Adds rows to ``carried_by_event``; a row that alone takes too much memory carries nothing."""
    connection.register("few_rows", rows)
    try:
        connection.execute("INSERT INTO carried_by_event FROM carried('few_rows')")
    except duckdb.OutOfMemoryException:
        if rows.num_rows > 1:
            half = rows.num_rows // 2
            _parse_few(context, connection, rows.slice(0, half))
            _parse_few(context, connection, rows.slice(half))
            return
        (row,) = rows.select(["app_id", "id"]).to_pylist()
        context.log.warning(
            "event %s of app %s: its payload takes too much memory; it carries no state of its user",
            row["id"], row["app_id"],
        )  # fmt: skip
        connection.execute("INSERT INTO carried_by_event BY NAME FROM carried_nothing('few_rows')")


def _create_earlier(context: Context, connection: duckdb.DuckDBPyConnection, *, is_whole: bool) -> None:
    """Makes the view ``earlier``: the earlier state of users whose events lack a group.

    Normally that is the newest value of each group, from the store. A late event needs the newest value before
    *itself*, from the snapshot files of earlier segments. A file with all earlier events needs none of that.
    """
    people: dict[str, list[str]] = {}
    incomplete = [] if is_whole else connection.execute("SELECT app_id, user_id FROM incomplete").fetchall()
    for app_id, user_id in incomplete:
        people.setdefault(app_id, []).append(user_id)
    rows: list[tuple[object, ...]] = []
    with context.store.begin() as tx:
        for app_id, user_ids in people.items():
            rows += read_snapshots(context.store, tx, app_id, user_ids, COLUMNS)
    connection.register("stored", stored_table(rows))
    connection.execute(snapshot_sql("snapshots_3_known"))
    late = connection.sql("FROM late").to_arrow_table()
    history = _snapshot_files(context, sorted(set(late["app_id"].to_pylist()))) if late.num_rows else []
    users = late["user_id"].unique().to_pylist()
    # By name, so that what has none of them is passed over.
    named = f"WHERE user_id IN ({', '.join(map(literal, users))})" if 0 < len(users) <= _NAMED_USERS else ""
    connection.execute(f"CREATE TEMP VIEW history AS FROM {read_files(history, snapshot_schema())} {named}")
    connection.execute(snapshot_sql("snapshots_4_earlier"))


def _snapshot_files(context: Context, app_ids: Sequence[str]) -> list[Path]:
    parts = tables.segment_apps
    with context.store.begin() as tx:
        names = tx.execute(
            sa.select(parts.c.snapshot_file)
            .where(parts.c.snapshot_file.is_not(None), parts.c.app_id.in_(app_ids))
            .distinct()
        ).scalars()
        files = [str(name) for name in names]
    return context.folder.fetch_all(files)
