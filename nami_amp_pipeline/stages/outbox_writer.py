"""Outbox files: a lane's events are consecutive record batches in posting order; a row in the store registers it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.destination import Encoder
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.stages.encoding import encoded
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.hourly_counts import End
from nami_amp_pipeline.state.store import Transaction
from nami_amp_pipeline.storage.duckdb_engine import sql

OUTBOX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("identity", pa.string()),
        ("created_date", pa.timestamp("us", tz="UTC")),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("row", pa.int64()),
        ("body", pa.string()),
    ]
)
"""Columns of an outbox (Arrow IPC). ``user_id`` is Nami's; ``identity`` is Amplitude's (``u:`` user id or ``d:`` device
id); ``state`` is send, skipped, dead or waiting; ``row`` is the number in the segment; ``body`` is the event's JSON
behind a comma, so that consecutive events are a slice of the column's buffer."""

_PLACED_SCHEMA = pa.schema(
    [("integration_id", pa.int64()), ("lane", pa.int32()), ("exception_id", pa.int64()), *OUTBOX_SCHEMA]
)
"""The same, with the position in the outbox, and the store's number of events that are released into it."""

_BODY_BYTES = 80_000_000
"""Bytes of bodies that are sorted at once."""

_ORDER = [(name, "ascending") for name in ("integration_id", "lane", "created_date", "id")]


@dataclass
class Prepared:
    """The events that one run prepared for one integration.

    Attributes:
        captured: events of the selected types.
        sendable: events that will be posted, including those that waited for a login.
        skipped: by reason.
        dead: by reason.
        waiting: events that wait until their user logs in.
        bytes: of all event bodies.
        preview: the first few bodies, for people.
    """

    captured: int = 0
    sendable: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dead: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waiting: int = 0
    bytes: int = 0
    preview: list[str] = field(default_factory=list)

    def add(self, part: Prepared) -> None:
        """Adds the counts of another segment."""
        self.captured += part.captured
        self.sendable += part.sendable
        self.waiting += part.waiting
        self.bytes += part.bytes
        self.preview = (self.preview + part.preview)[:5]
        for reason, events in part.skipped.items():
            self.skipped[reason] += events
        for reason, events in part.dead.items():
            self.dead[reason] += events


@dataclass
class LanePart:
    """The position of a lane in an outbox file: its first record batch, and its rows."""

    batch: int
    rows: int


@dataclass
class OutboxPart:
    """One integration's share of an outbox file; ``types`` has its events by type, with those that waited before."""

    lanes: list[LanePart] = field(default_factory=list)
    others_batch: int | None = None
    rows: int = 0
    exceptions: list[dict[str, object]] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    done: Prepared = field(default_factory=Prepared)
    types: Counter[tuple[str, End]] = field(default_factory=Counter)


def write_outbox(
    context: Context, connection: duckdb.DuckDBPyConnection, name: str, encoders: Mapping[int, Encoder] | None = None
) -> dict[int, OutboxPart]:
    """Writes the outbox file; returns, by integration, its lanes and the events that are not posted.

    Args:
        context: for the folder.
        connection: with the relations of ``prepare_5_outbox``.
        name: of the file.
        encoders: by integration, of destinations that want another form.
    """
    encoders = encoders or {}
    parts: dict[int, OutboxPart] = {}
    batches = 0
    with context.folder.ipc(name, OUTBOX_SCHEMA, compression=context.folder.short_lived) as writer:
        for integration_id, lane, rows in _lanes(connection):
            part = parts.setdefault(integration_id, OutboxPart())
            first = batches
            encoder = encoders.get(integration_id) if lane >= 0 else None
            for each in rows:
                batch = each if encoder is None else encoded(each, encoder, integration_id)
                writer.write_batch(batch.select(OUTBOX_SCHEMA.names))
                batches += 1
                part.rows += batch.num_rows
                _tally(part, batch, first, is_posted=lane >= 0)
    return parts


def _lanes(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, int, Iterator[pa.RecordBatch]]]:
    """Integration, lane and rows in posting order, of all lanes.

    Only row numbers are sorted: each body is copied once, to its final position.
    """
    for lanes in _portions(connection):
        connection.register("wanted", lanes)
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW portion AS FROM placed SEMI JOIN wanted USING (integration_id, lane)"
        )
        connection.execute("CREATE OR REPLACE TEMP VIEW portion_bodies AS FROM bodies")
        if lanes.num_rows == 1 and lanes["bytes"][0].as_py() > _BODY_BYTES:
            yield lanes["integration_id"][0].as_py(), lanes["lane"][0].as_py(), _in_slices(connection, lanes)
            continue
        table, order = _sorted_portion(connection)
        keys = [table[key].take(order).to_numpy() for key in ("integration_id", "lane")]
        changes = np.flatnonzero((np.diff(keys[0]) != 0) | (np.diff(keys[1]) != 0)) + 1
        for start, end in pairwise([0, *changes.tolist(), table.num_rows]):
            yield int(keys[0][start]), int(keys[1][start]), _in_order(table, order[start:end])


def _in_slices(connection: duckdb.DuckDBPyConnection, lane: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows of one lane, such as that of a user with very many events, in posting order and a few MB at a time."""
    numbers = connection.sql(
        "SELECT p.number, d.body, d.created_date, d.id FROM portion p JOIN decided d ON d.rowid = p.number"
    ).to_arrow_table()
    order = pc.sort_indices(numbers, sort_keys=[("created_date", "ascending"), ("id", "ascending")])
    in_order = numbers.select(["number", "body"]).take(order).combine_chunks()
    del numbers, order
    rows = max(1, int(len(in_order) * _BODY_BYTES / lane["bytes"][0].as_py()) // LANE_BATCH_ROWS) * LANE_BATCH_ROWS
    for start in range(0, len(in_order), rows):
        part = in_order.slice(start, rows)
        connection.register("slice", part.select(["number"]))
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW portion AS "
            f"FROM placed SEMI JOIN slice USING (number) WHERE {_within('number', part)}"
        )
        # Events of about the same time lie beside each other: DuckDB passes over the other bodies without reading them.
        connection.execute(f"CREATE OR REPLACE TEMP VIEW portion_bodies AS FROM bodies WHERE {_within('body', part)}")
        yield from _in_order(*_sorted_portion(connection))


def _within(column: str, rows: pa.Table) -> str:
    """SQL of the range of a column's numbers; events that come back from waiting have no body's number."""
    ends = pc.min_max(rows[column]).as_py()
    return "false" if ends["min"] is None else f"{column} BETWEEN {ends['min']} AND {ends['max']}"


def _sorted_portion(connection: duckdb.DuckDBPyConnection) -> tuple[pa.Table, pa.Array]:
    """The rows of the view ``portion``, and the order in which they are posted."""
    table = connection.sql(sql("prepare_5_outbox")).to_arrow_table().combine_chunks()
    order = pc.sort_indices(table, sort_keys=_ORDER)
    return table.select(_PLACED_SCHEMA.names).cast(_PLACED_SCHEMA), order


def _in_order(rows: pa.Table, order: pa.Array) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(order), LANE_BATCH_ROWS):
        yield from rows.take(order[start : start + LANE_BATCH_ROWS]).combine_chunks().to_batches()


def _portions(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    """Groups of lanes (integration_id, lane, bytes) to write together: as many as fit into :data:`_BODY_BYTES`.

    A larger lane is a group of its own.
    """
    lanes = connection.sql(
        "SELECT integration_id, lane, count(*) * (SELECT coalesce(avg(strlen(rest)), 0) + 200 FROM bodies) AS bytes "
        "FROM placed GROUP BY integration_id, lane ORDER BY integration_id, lane"
    ).to_arrow_table()
    start, size = 0, 0.0
    for number, more in enumerate(lanes["bytes"].to_pylist()):
        if number > start and size + more > _BODY_BYTES:
            yield lanes.slice(start, number - start)
            start, size = number, 0.0
        size += more
    if start < lanes.num_rows:
        yield lanes.slice(start)


def _tally(part: OutboxPart, rows: pa.RecordBatch, first: int, *, is_posted: bool) -> None:
    """Adds rows of a lane, whose first record batch is ``first``, to an integration's share."""
    done = part.done
    back = rows["exception_id"].drop_null().to_pylist()
    part.released += back
    done.captured += rows.num_rows - len(back)
    for entry in rows["event_type"].value_counts().to_pylist():
        part.types[entry["values"], "captured"] += entry["counts"]
    if is_posted:
        if not part.lanes or part.lanes[-1].batch != first:
            part.lanes.append(LanePart(first, 0))
        part.lanes[-1].rows += rows.num_rows
        done.sendable += rows.num_rows
        done.bytes += rows["body"].nbytes
        done.preview += [text[1:] for text in rows["body"].slice(0, 5 - min(5, len(done.preview))).to_pylist()]
        return
    part.others_batch = first if part.others_batch is None else part.others_batch
    groups = pa.table(rows).group_by(["state", "reason", "event_type"]).aggregate([([], "count_all")])
    for row in groups.to_pylist():
        if row["state"] in ("skipped", "dead"):
            part.types[row["event_type"], row["state"]] += row["count_all"]
        if row["state"] == "skipped":
            done.skipped[row["reason"]] += row["count_all"]
        elif row["state"] == "dead":
            done.dead[row["reason"]] += row["count_all"]
        else:
            done.waiting += row["count_all"]
    kept = rows.filter(pc.not_equal(rows["state"], "skipped")).select(OUTBOX_SCHEMA.names)
    part.exceptions += [
        {**row, "created_date": at}
        for row, at in zip(kept.to_pylist(), kept["created_date"].cast(pa.int64()).to_pylist(), strict=True)
    ]


def add_outboxes(
    context: Context,
    tx: Transaction,
    parts: Mapping[int, OutboxPart],
    segment_id: int,
    name: str,
    hour: int | None = None,
) -> None:
    """Registers shares of an outbox file by integration id; without an hour, their events are not counted by hour."""
    boxes = tables.outboxes
    filled = {integration_id: part for integration_id, part in parts.items() if part.rows}
    if not filled:
        return
    same = {"segment_id": segment_id, "file": name, "prepared_at": context.now(), "run_id": context.run_id}
    ids = tx.execute(
        sa.insert(boxes).returning(boxes.c.id, sort_by_parameter_order=True),
        [
            {
                "integration_id": integration_id,
                "others_batch": part.others_batch,
                "rows": part.rows,
                "hour": hour,
                **same,
            }
            for integration_id, part in filled.items()
        ],
    ).scalars()
    lanes = [
        {"outbox_id": outbox_id, "batch": lane.batch, "rows": lane.rows, "next_row": 0, "attempt_end": 0}
        for outbox_id, part in zip(ids, filled.values(), strict=True)
        for lane in part.lanes
    ]
    if lanes:
        tx.execute(sa.insert(tables.lanes), lanes)


def exception_rows(exceptions: Sequence[Mapping[str, object]], same: Mapping[str, object]) -> pa.Table:
    """The rows for the table of exceptions, and their common columns."""
    columns = {"event_id": "id"} | {name: name for name in ("state", "reason", "event_type", "user_id", "body")}
    texts = {name: pa.array([row[key] for row in exceptions], pa.large_string()) for name, key in columns.items()}
    return pa.table(
        {
            **texts,
            "identity": pa.array([row["identity"] or "" for row in exceptions], pa.large_string()),
            "payload": pa.array([row.get("payload") for row in exceptions], pa.large_string()),
            "created_date": pa.array([row["created_date"] for row in exceptions], pa.int64()),
            **{name: pa.repeat(value, len(exceptions)) for name, value in same.items()},
        }
    )
