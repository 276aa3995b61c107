"""Stage 3, ``amplitude_events``: writes the events exactly as they will be posted.

An outbox is written once, and nothing in it is computed again: a repeat is the same bytes, whatever was learned
meanwhile. It is an Arrow IPC file; the events of a lane are consecutive record batches in posting order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, OutOfMemory
from nami_amp_pipeline.stages.body_variants import Variants, variants_of
from nami_amp_pipeline.stages.encoding import OddBodies, encoders_of
from nami_amp_pipeline.stages.event_properties import create_properties
from nami_amp_pipeline.stages.odd_rows import odd_rows_of
from nami_amp_pipeline.stages.outbox_writer import OutboxPart, Prepared, add_outboxes, exception_rows, write_outbox
from nami_amp_pipeline.stages.prepare_inputs import (
    PreparedSegment,
    keep_identities,
    register_identities,
    register_released,
    register_segment,
    register_sent,
)
from nami_amp_pipeline.stages.window import Window, refuse
from nami_amp_pipeline.state import bulk, hourly_counts, tables
from nami_amp_pipeline.state.hourly_counts import hour_of
from nami_amp_pipeline.state.integrations import Integration, refreshed
from nami_amp_pipeline.state.store import Lease, Transaction
from nami_amp_pipeline.state.users import move_sent
from nami_amp_pipeline.storage.duckdb_engine import Engine, engine, execute, sql
from nami_amp_pipeline.storage.parallel import is_parallel, with_next_ahead
from nami_amp_pipeline.storage.row_faults import MOST_ODD, ODD_ROW, may_be_a_rows


@dataclass(frozen=True)
class BegunSegment:
    """A segment loaded into an engine: the bodies of its events, the users who have logged in, and the variants."""

    segment: PreparedSegment
    connection: duckdb.DuckDBPyConnection
    logged_in: Mapping[str, set[str]]
    variants: Variants


@dataclass(frozen=True)
class ComputedSegment:
    """The results of a segment before the commit: an outbox file, the part of each integration, and the sent states."""

    segment: PreparedSegment
    file: str
    parts: Mapping[int, OutboxPart]
    sent: pa.Table


def prepare(
    context: Context,
    integrations: Sequence[Integration],
    leases: Mapping[int, Lease],
    *,
    window: Window | None = None,
) -> dict[int, Prepared]:
    """Writes the outboxes of the integrations under lease, segment by segment.

    Args:
        context: the process at work.
        integrations: the integrations to prepare for; other integrations of their apps are not touched.
        leases: by integration id.
        window: refused.

    Returns:
        Results by integration id; integrations without new segments are left out.
    """
    refuse(window, "amplitude_events")
    done: dict[int, Prepared] = {}

    def commit(computed: ComputedSegment) -> None:
        for integration_id, part in _commit(context, leases, computed).items():
            done.setdefault(integration_id, Prepared()).add(part)

    segments = pending_segments(context, _targets(context, integrations, leases))
    if not segments:
        return done
    if is_parallel(context.settings):
        try:
            with engine(context.settings) as shared:
                with_next_ahead(
                    lambda segment: begin_segment(context, segment, shared),
                    lambda _, begun: commit(_compute(context, begun)),
                    segments,
                    shared.divide,
                )
            return done
        except OutOfMemory as error:
            context.log.info("%s; continuing with one segment at a time", error)
        except Exception as error:
            if not may_be_a_rows(error):
                raise
            context.log.info("%s; continuing with one segment at a time", type(error).__name__)
    with engine(context.settings) as alone:
        for segment in pending_segments(context, _targets(context, integrations, leases)):
            for computed in compute_carefully(context, segment, alone):
                commit(computed)
    return done


def compute_carefully(context: Context, segment: PreparedSegment, shared: Engine) -> Iterator[ComputedSegment]:
    """Computes a segment, in one or several parts; a row that cannot be computed becomes a dead letter."""
    try:
        with begin_segment(context, segment, shared) as begun:
            whole = _compute(context, begun)
    except OddBodies as odd:
        for part in _without_odd_bodies(context, segment, odd):
            yield from compute_carefully(context, part, shared)
        return
    except Exception as error:
        if not may_be_a_rows(error):
            raise
        parts = _without_odd_rows(context, segment, error)
    else:
        yield whole
        return
    for part in parts:
        # A new engine: an internal error may have made the old engine unusable.
        with engine(context.settings) as fresh, begin_segment(context, part, fresh) as begun:
            computed = _compute(context, begun)
        yield computed


def _without_odd_bodies(context: Context, segment: PreparedSegment, found: OddBodies) -> Iterator[PreparedSegment]:
    """The segment for the integration whose destination cannot encode some rows, and for the others.

    Raises:
        Blocked: there are too many such rows.
    """
    mine = [integration for integration in segment.integrations if integration.id == found.integration_id]
    others = [integration for integration in segment.integrations if integration.id != found.integration_id]
    odd = sorted({*segment.odd, *found.rows})
    why = next(iter(found.rows.values()))
    if len(odd) > MOST_ODD:
        raise Blocked(f"{mine[0].destination}: many events cannot be encoded, such as one for which {why}")
    for row, words in found.rows.items():
        context.log.warning(
            "row %s of %s cannot be encoded: %s; it is a dead letter (%s)", row, segment.file, words, ODD_ROW
        )
    if others:
        yield replace(segment, integrations=others)
    yield replace(segment, integrations=mine, odd=odd)


def _without_odd_rows(context: Context, segment: PreparedSegment, error: Exception) -> list[PreparedSegment]:
    """The segment for each group of integrations that cannot compute the same rows."""

    def compute(part: PreparedSegment) -> None:
        with engine(context.settings) as own, begin_segment(context, part, own) as begun:
            context.folder.remove(_compute(context, begun).file)

    def fails(part: PreparedSegment) -> bool:
        try:
            compute(part)
        except Exception as own:
            if not may_be_a_rows(own):
                raise
            return True
        return False

    odd = odd_rows_of(
        context, segment.file, lambda *rows: compute(replace(segment, rows=rows)), error,
        f"it is a dead letter ({ODD_ROW})",
    )  # fmt: skip
    if len(segment.integrations) == 1:
        return [replace(segment, odd=list(odd))]
    alike: dict[tuple[int, ...], list[Integration]] = defaultdict(list)
    for integration in segment.integrations:
        mine = replace(segment, integrations=[integration])
        alike[tuple(row for row in odd if fails(replace(mine, rows=(row, row + 1))))].append(integration)
    return [replace(segment, integrations=some, odd=rows) for rows, some in alike.items()]


def _targets(
    context: Context, integrations: Sequence[Integration], leases: Mapping[int, Lease]
) -> dict[int, Integration]:
    """The integrations, read again: another process may have worked on them before we got the lease."""
    with context.store.begin() as tx:
        current = refreshed(tx, integrations)
    return {
        integration.id: integration
        for integration in current
        if integration.id in leases and integration.enabled and not integration.halted_reason
    }


def pending_segments(context: Context, targets: Mapping[int, Integration]) -> list[PreparedSegment]:
    """The segments that one of the integrations lacks, oldest first."""
    by_app: dict[str, list[Integration]] = defaultdict(list)
    for integration in targets.values():
        by_app[integration.app_id].append(integration)
    if not by_app:
        return []
    parts, segments = tables.segment_apps, tables.segments
    oldest = min(integration.prepared_through for integration in targets.values())
    with context.store.begin() as tx:
        rows = tx.execute(
            sa.select(
                parts.c.segment_id,
                segments.c.file,
                segments.c.captured_at,
                parts.c.app_id,
                parts.c.snapshot_file,
                parts.c.max_ingested_at,
            )
            .join(segments, segments.c.id == parts.c.segment_id)
            .where(parts.c.segment_id > oldest)
            .order_by(parts.c.segment_id)
        ).all()
    blocked: set[str] = set()  # a segment without snapshots yet holds the later ones of its app
    pending: dict[int, tuple[str, int, set[str], list[int]]] = {}
    for segment_id, file, captured_at, app_id, snapshot_file, newest in rows:
        if snapshot_file is None:
            blocked.add(app_id)
        if app_id in blocked:
            continue
        for integration in by_app.get(app_id, ()):
            if not integration.lacks(segment_id, newest):
                continue
            entry = pending.setdefault(segment_id, (file, hour_of(captured_at), set(), []))
            entry[2].add(snapshot_file)
            entry[3].append(integration.id)
    return [
        PreparedSegment(segment_id, file, sorted(snapshot_files), [targets[number] for number in ids], hour)
        for segment_id, (file, hour, snapshot_files, ids) in pending.items()
    ]


@contextmanager
def begin_segment(context: Context, segment: PreparedSegment, shared: Engine) -> Iterator[BegunSegment]:
    """A connection with most of the work that does not depend on the results of earlier segments."""
    with shared.connection() as connection:
        variants = variants_of(segment.integrations, context.cipher)
        register_segment(context, connection, segment, variants)
        _create_bodies(connection, variants)
        logged_in = register_identities(context, connection, segment)
        yield BegunSegment(segment, connection, logged_in, variants)


def _create_bodies(connection: duckdb.DuckDBPyConnection, variants: Variants) -> None:
    """Creates the view ``bodies``: integrations with the same variant share the computation."""
    execute(connection, "prepare_0_macros")
    several = len(variants.distinct)
    # One number names a body, as joining on two takes longer; mostly it is the row's own.
    number_of = "row" if several == 1 else f"row * {several} + variant"
    connection.execute(f"CREATE TEMP MACRO body_of(row, variant) AS {number_of}")
    environment = "lower(stripped(as_text(value)))" if variants.reads_environment else "NULL::VARCHAR"
    connection.execute(f"CREATE TEMP MACRO environment_of(value) AS {environment}")
    parts = []
    for number, variant in enumerate(variants.distinct):
        _select_events(connection, number)
        variant.create_macros(connection)
        create_properties(connection, variant, with_environment=variants.reads_environment)
        _fill_bodies(connection, number)
        parts.append(f"SELECT *, body_of(row, {number}) AS body FROM bodies_{number}")  # noqa: S608
    connection.execute("CREATE TEMP VIEW bodies AS " + " UNION ALL ".join(parts))


def _select_events(connection: duckdb.DuckDBPyConnection, number: int, rows: tuple[int, int] | None = None) -> None:
    """Creates the view ``selected_events`` of one variant: all of the segment, or rows from one number to another."""
    within = f" AND row >= {rows[0]} AND row < {rows[1]}" if rows else ""
    connection.execute(
        "CREATE OR REPLACE TEMP VIEW selected_events AS SELECT row, id, event_type, created_date, payload, shape "  # noqa: S608
        "FROM segment WHERE well_formed AND (app_id, event_type) IN "
        f"(SELECT app_id, event_type FROM targets JOIN selected USING (integration_id) WHERE variant = {number})"
        f"{within}"
    )


def _fill_bodies(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Creates the table of one variant's bodies: of all events at once, or of fewer where these are too large."""
    query = sql("prepare_1_bodies")
    try:
        connection.execute(f"CREATE TEMP TABLE bodies_{number} AS {query}")
        return
    except duckdb.OutOfMemoryException:
        pass
    connection.execute(f"CREATE TEMP TABLE bodies_{number} AS SELECT * FROM ({query}) LIMIT 0")  # noqa: S608

    def fill(first: int, end: int) -> None:
        _select_events(connection, number, (first, end))
        try:
            connection.execute(f"INSERT INTO bodies_{number} {query}")
        except duckdb.OutOfMemoryException:
            if end - first < 2:
                raise
            middle = (first + end) // 2
            fill(first, middle)
            fill(middle, end)

    ((rows,),) = connection.execute("SELECT coalesce(max(row), -1) + 1 FROM segment").fetchall()
    fill(0, rows // 2)
    fill(rows // 2, rows)
    _select_events(connection, number)


def _compute(context: Context, begun: BegunSegment) -> ComputedSegment:
    """Writes the outbox file; it counts after the commit."""
    name = context.folder.new_name("outboxes", "arrow")
    connection, integrations = begun.connection, begun.segment.integrations
    execute(connection, "prepare_2_decide")
    if begun.segment.sent_to is not None:
        keep_identities(connection, begun.segment.sent_to)
    if register_released(context, connection, integrations, begun.logged_in):
        execute(connection, "prepare_3_release_logins")
    register_sent(context, connection, integrations)
    execute(connection, "prepare_4_lanes")
    parts = write_outbox(context, connection, name, encoders_of(integrations))
    sent = connection.sql(sql("prepare_6_sent_states")).to_arrow_table()
    _add_payloads(connection, parts, begun.variants)
    for integration in integrations:
        parts.setdefault(integration.id, OutboxPart())
    return ComputedSegment(begun.segment, name, parts, sent)


def _commit(context: Context, leases: Mapping[int, Lease], computed: ComputedSegment) -> dict[int, Prepared]:
    segment_id, name, sent = computed.segment.id, computed.file, computed.sent
    integrations = computed.segment.integrations
    is_empty = not any(part.rows for part in computed.parts.values())
    if not is_empty:
        context.folder.publish([name])
    context.step("prepare.commit")
    with context.store.begin(under=[leases[integration.id] for integration in integrations]) as tx:
        commit_parts(context, tx, computed.parts, segment_id, name, computed.segment.hour)
        move_sent(context.store, tx, sent)
        tx.execute(
            sa.update(tables.integrations)
            .where(tables.integrations.c.id.in_([integration.id for integration in integrations]))
            .values(prepared_through=segment_id)
        )
    if is_empty:
        context.folder.remove(name)
    context.step("prepare.committed")
    return {integration_id: part.done for integration_id, part in computed.parts.items()}


def _add_payloads(connection: duckdb.DuckDBPyConnection, parts: Mapping[int, OutboxPart], variants: Variants) -> None:
    """Adds the payload to dead letters, without the integration's hidden fields."""
    numbers = [row["row"] for part in parts.values() for row in part.exceptions if row["state"] == "dead"]
    if not numbers:
        return
    connection.register("dead_rows", pa.table({"row": pa.array(numbers, pa.int64())}))
    payloads = dict(connection.execute("SELECT row, payload FROM segment SEMI JOIN dead_rows USING (row)").fetchall())
    for integration_id, part in parts.items():
        for row in part.exceptions:
            if row["state"] == "dead":
                text = variants.of(integration_id).redacted(payloads.get(row["row"]))
                row["payload"] = text and text.replace("\0", "")  # which PostgreSQL cannot hold


def commit_parts(
    context: Context,
    tx: Transaction,
    parts: Mapping[int, OutboxPart],
    segment_id: int,
    name: str,
    hour: int | None = None,
) -> None:
    """Registers integrations' shares of an outbox file, their exceptions and their counts.

    Args:
        context: the process at work.
        tx: the transaction to write in.
        parts: the shares by integration id.
        segment_id: of which they are.
        name: of the outbox file.
        hour: in which their events count; None if they are not counted by hour.
    """
    store, now = context.store, context.now()
    add_outboxes(context, tx, parts, segment_id, name, hour)
    for integration_id, part in parts.items():
        if part.exceptions:
            same = {"integration_id": integration_id, "segment_id": segment_id, "run_id": context.run_id, "at": now}
            if hour is not None:
                same["hour"] = hour
            bulk.insert(store, tx, tables.exceptions, exception_rows(part.exceptions, same))
    released = [number for part in parts.values() for number in part.released]
    if hour is not None:
        hourly_counts.add_numbered(store, tx, released, "captured", -1)  # they count in this hour now
        hourly_counts.add_all(
            store,
            tx,
            {
                integration_id: {(hour, event_type, end): events for (event_type, end), events in part.types.items()}
                for integration_id, part in parts.items()
            },
        )
    for start in range(0, len(released), 500):
        tx.execute(sa.delete(tables.exceptions).where(tables.exceptions.c.id.in_(released[start : start + 500])))
    store.count_all(
        tx,
        [
            (integration_id, state, reason, events)
            for integration_id, part in parts.items()
            for state, reasons in (
                ("captured", {"": part.done.captured}),
                ("skipped", part.done.skipped),
                ("dead", part.done.dead),
            )
            for reason, events in reasons.items()
        ],
    )
