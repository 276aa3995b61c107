"""The changes that one integration's delivery records, gathered as data and written in one transaction.

Writing the same changes again after a failed transaction has the same result: nothing depends on the time of the write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.delivery.lane import Lane
from nami_amp_pipeline.delivery.outbox import OutboxBatch, texts_of
from nami_amp_pipeline.delivery.request_record import RequestRecord
from nami_amp_pipeline.state import hourly_counts, tables
from nami_amp_pipeline.state.integrations import halt
from nami_amp_pipeline.state.store import Store, Transaction
from nami_amp_pipeline.storage.row_faults import ODD_ROW

_IDS_AT_A_TIME = 500
_DELIVERED = "delivered"

# Made once: making and compiling a statement takes longer than SQLite takes to carry it out.
_INSERT_REQUEST = sa.insert(tables.requests)


@dataclass(frozen=True)
class Written:
    """A transaction in which changes are being written.

    Attributes:
        store: the state store.
        tx: the transaction.
    """

    store: Store
    tx: Transaction


Step = Callable[[Written], None]


@dataclass
class StoreChanges:
    """See the module's docstring.

    Attributes:
        integration_id: whose changes these are.
        lanes: (next_row, attempt_end, unknown_since) by lane id; the last value counts.
        requests: records of requests; they get their ids when they are written.
        counts: events to add, by (state, reason).
        hourly: the same by hour and event type.
        steps: everything else, in order.
        touches_held: whether held events change.
    """

    integration_id: int
    lanes: dict[int, tuple[int, int, int | None]] = field(default_factory=dict)
    requests: list[RequestRecord] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    hourly: hourly_counts.Tally = field(default_factory=Counter)
    steps: list[Step] = field(default_factory=list)
    touches_held: bool = False

    def __bool__(self) -> bool:
        return bool(self.lanes or self.requests or self.counts or self.steps)

    def clear(self) -> None:
        """Forgets what has been written."""
        self.lanes.clear()
        self.requests.clear()
        self.counts.clear()
        self.hourly.clear()
        self.steps.clear()
        self.touches_held = False

    @property
    def _is_plain(self) -> bool:
        """Whether nothing refers to the requests, now or later, so that their ids are of no use: the usual case."""
        return not self.steps and all(record.row["outcome"] == _DELIVERED for record in self.requests)

    def insert_exceptions(self, rows: Sequence[dict[str, Any]], request: RequestRecord | None = None) -> None:
        """Adds rows to the exceptions; ``request`` is the one that they are of."""

        def step(written: Written) -> None:
            request_id = None if request is None else request.id
            written.tx.execute(sa.insert(tables.exceptions), [{**row, "request_id": request_id} for row in rows])

        if rows:
            self.touches_held |= any(row["state"] == "held" for row in rows)
            self.steps.append(step)

    def update_exceptions(
        self, ids: Sequence[int], values: Mapping[str, Any], request: RequestRecord | None = None
    ) -> None:
        """Changes exceptions by id; all of them wait, waited, or will wait."""

        def step(written: Written) -> None:
            table = tables.exceptions
            more = {} if request is None else {"request_id": request.id}
            for start in range(0, len(ids), _IDS_AT_A_TIME):
                written.tx.execute(
                    sa.update(table).where(table.c.id.in_(ids[start : start + _IDS_AT_A_TIME])).values(**values, **more)
                )

        if ids:
            self.touches_held = True
            self.steps.append(step)

    def count_exceptions(self, ids: Sequence[int], end: hourly_counts.End, events: int = 1) -> None:
        """Counts exceptions by id in their hours, or takes them back."""
        if ids:
            self.steps.append(lambda written: hourly_counts.add_numbered(written.store, written.tx, ids, end, events))

    def take_back(self, lane_id: int, lane_row: int, reason: str) -> None:
        """Makes a dead letter of a lane a held event again."""

        def step(written: Written) -> None:
            table = tables.exceptions
            mine = sa.and_(table.c.lane_id == lane_id, table.c.lane_row == lane_row, table.c.state == "dead")
            hourly_counts.add_exceptions(written.store, written.tx, mine, "dead", -1)
            written.tx.execute(sa.update(table).where(mine).values(state="held", reason=reason))

        self.touches_held = True
        self.steps.append(step)

    def pause(self, identity: str, reason: str, until: int) -> None:
        """Notes that an identity is paused; the empty identity is the whole integration."""
        row = {"integration_id": self.integration_id, "identity": identity, "reason": reason, "until": until}

        def step(written: Written) -> None:
            written.store.upsert(
                written.tx, tables.pauses, [row], ["integration_id", "identity"], update=["reason", "until"]
            )

        self.steps.append(step)

    def unpause(self, identity: str) -> None:
        """Notes the end of an identity's pause."""
        table = tables.pauses
        statement = sa.delete(table).where(table.c.integration_id == self.integration_id, table.c.identity == identity)
        self.steps.append(lambda written: _execute(written, statement))

    def halt(self, reason: str, now: int) -> None:
        """Stops the integration."""
        self.steps.append(lambda written: halt(written.tx, self.integration_id, reason, now))


def write(store: Store, tx: Transaction, changes: Sequence[StoreChanges]) -> None:
    """Writes the changes of several integrations; a statement for each would cost more than what it does."""
    plain: list[Mapping[str, Any]] = []
    for each in changes:
        if each._is_plain:
            plain += [record.row for record in each.requests]
            continue
        for record in each.requests:
            key = tx.execute(_INSERT_REQUEST, record.row).inserted_primary_key
            assert key is not None
            record.id = int(key[0])
    if plain:
        tx.execute(_INSERT_REQUEST, plain)
    lanes = [
        {"id": lane, "next_row": next_row, "attempt_end": end, "unknown_since": since}
        for each in changes
        for lane, (next_row, end, since) in each.lanes.items()
    ]
    store.change(tx, tables.lanes, lanes, "id")
    written = Written(store, tx)
    for each in changes:
        for step in each.steps:
            step(written)
    store.count_all(
        tx,
        [
            (each.integration_id, state, reason, events)
            for each in changes
            for (state, reason), events in each.counts.items()
        ],
    )
    hourly_counts.add_all(store, tx, {each.integration_id: each.hourly for each in changes})


def _execute(written: Written, statement: sa.Executable) -> None:
    written.tx.execute(statement)


def exception_rows(
    lane: Lane, batch: OutboxBatch, rows: Sequence[int], origin: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Rows of a lane's record batch as rows of the table ``exceptions``.

    Args:
        lane: the lane, whose next row is in this record batch.
        batch: the record batch.
        rows: numbers in the record batch.
        origin: the columns that are the same for all of them.

    Returns:
        A row for each; one whose body is no text, and so cannot be kept, is a dead letter without a body.
    """
    if not rows:
        return []
    names = ("id", "event_type", "user_id", "identity")
    columns = batch.rows.select([*names, "created_date"]).take(pa.array(rows, pa.int64()))
    return [
        {
            **origin,
            "event_id": event_id,
            "event_type": event_type,
            "user_id": user_id,
            "identity": identity,
            "created_date": created,
            "payload": None,
            "answer": None,
            "lane_id": lane.id,
            "lane_row": lane.base + row,
            "unknown_since": lane.unknown_since_of(lane.base + row),
            **_kept(body),
        }
        for row, event_id, event_type, user_id, identity, created, body in zip(
            rows,
            *(texts_of(columns[name]) for name in names),
            columns["created_date"].cast(pa.int64()).to_pylist(),
            batch.bodies(rows),
            strict=True,
        )
    ]


def _kept(body: bytes) -> dict[str, Any]:
    try:
        return {"body": "," + body.decode()}
    except UnicodeDecodeError:
        return {"body": None, "state": "dead", "reason": ODD_ROW}
