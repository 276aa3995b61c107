"""Data frames for notebooks: snapshots, events with their outcome, dead letters, requests, what Amplitude holds.

Arrow tables underneath; pandas is imported only where a data frame is asked for, and is the extra ``notebooks``. See
docs/notebooks.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.errors import Misconfigured
from nami_amp_pipeline.operations.current_snapshots import current_snapshots
from nami_amp_pipeline.reconciliation import records
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import compute, files

if TYPE_CHECKING:
    import pandas as pd

_TIME: Final = pa.timestamp("us", tz="UTC")

EVENTS: Final = pa.schema(
    [
        ("integration", pa.string()),
        ("event_id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("identity", pa.string()),
        ("created_date", _TIME),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("request_id", pa.int64()),
        ("prepared_at", _TIME),
        ("run_id", pa.string()),
    ]
)
"""``user_id`` is Nami's, ``identity`` Amplitude's (``u:`` user id or ``d:`` device id). ``state`` is delivered,
skipped, dead_letter, held, waiting_for_login or pending. ``run_id`` prepared it."""

DEAD_LETTERS: Final = pa.schema(
    [
        ("integration", pa.string()),
        ("id", pa.int64()),
        ("event_id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("created_date", _TIME),
        ("reason", pa.string()),
        ("at", _TIME),
        ("answer", pa.string()),
        ("body", pa.string()),
        ("payload", pa.string()),
        ("run_id", pa.string()),
    ]
)
"""``body`` is the Amplitude event as it was posted, ``payload`` Nami's of what was never posted."""

REQUESTS: Final = pa.schema(
    [
        ("integration", pa.string()),
        ("id", pa.int64()),
        ("events", pa.int64()),
        ("bytes", pa.int64()),
        ("status", pa.int64()),
        ("outcome", pa.string()),
        ("answer", pa.string()),
        ("sent_at", _TIME),
        ("answered_at", _TIME),
        ("run_id", pa.string()),
    ]
)
"""``status`` is 0 where no answer came."""

RECONCILED: Final = pa.schema(
    [
        ("integration", pa.string()),
        ("day", pa.date32()),
        ("class", pa.string()),
        ("column", pa.string()),
        ("events", pa.int64()),
        ("hours", pa.int64()),
        ("compared_at", _TIME),
    ]
)
"""``class`` is delivered, held, identical, altered, missing, not_yet_exported, twice, undelivered or others; ``column``
is of altered events, and null for all of them. ``hours`` of the day were compared."""

_AT_ONCE: Final = 500

_WORDS: Final = {"dead": "dead_letter", "waiting": "waiting_for_login", "send": "pending"}


_EVENTS: Final = """
SELECT
    k.integration, k.event_id, k.event_type, k.user_id, coalesce(nullif(e.identity, ''), k.identity),
    k.created_date,
    -- Who waited and is in the store no more was given up.
    CASE WHEN e.state IS NOT NULL THEN e.state WHEN k.state = 'waiting_for_login' THEN 'skipped'
        ELSE k.state END AS state,
    CASE WHEN e.state = 'delivered' THEN NULL WHEN e.state IS NOT NULL THEN e.reason
        WHEN k.state = 'waiting_for_login' THEN 'no_external_id' ELSE k.reason END,
    coalesce(e.request_id, k.request_id), k.prepared_at, k.run_id
FROM known k
LEFT JOIN excepted e ON e.integration_id = k.integration_id AND e.event_id = k.event_id
WHERE k.created_date >= coalesce($since, '-infinity'::TIMESTAMPTZ)
    AND k.created_date < coalesce($until, 'infinity'::TIMESTAMPTZ)
    AND ($after IS NULL OR coalesce(e.request_id, k.request_id) > $after)
    AND ($upto IS NULL OR coalesce(e.request_id, k.request_id) <= $upto)
-- An event that waited for a login stands in two outboxes: the later one says how it ended.
QUALIFY row_number() OVER (PARTITION BY k.integration_id, k.event_id ORDER BY k.outbox_id DESC) = 1
    AND ($last_box IS NULL OR k.outbox_id <= $last_box)
ORDER BY k.integration, k.created_date, k.event_id
"""


@dataclass(frozen=True)
class Frame:
    """A table, in the requested form.

    Args:
        table: the data.
    """

    table: pa.Table

    def to_arrow(self) -> pa.Table:
        """An Arrow table, which DuckDB and Polars accept too."""
        return self.table

    def to_pandas(self) -> pd.DataFrame:
        """A data frame; numbers and booleans that may be missing stay numbers and booleans.

        Raises:
            Misconfigured: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise Misconfigured("pandas is not installed: pip install 'nami-amp-pipeline[notebooks]'") from None
        kinds = {pa.bool_(): pd.BooleanDtype(), pa.int64(): pd.Int64Dtype()}
        frame: pd.DataFrame = self.table.to_pandas(types_mapper=kinds.get)
        return frame


class Frames:
    """The pipeline's data as tables. Use it as a context manager, or close it.

    Args:
        settings: where the state store and the data folder are; by default from the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._context = Context.open(settings or Settings.load())

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the state store."""
        self._context.store.close()

    def current_snapshots(self, app_id: str, *, after: int | None = None, upto: int | None = None) -> Frame:
        """One row per user of an app: the newest state, with the External ID.

        Args:
            app_id: the app.
            after: only users with a snapshot of a segment after this one: ``nami/from`` of a materialization of
                ``user_property_snapshots``. Where a file of these is past its retention, all users.
            upto: and of none after this one: its ``nami/to``.
        """
        found = current_snapshots(self._context.settings, app_id)
        if after is None and upto is None:
            return Frame(found)
        table = tables.segment_apps
        query = sa.select(table.c.snapshot_file).where(
            table.c.app_id == app_id, table.c.snapshot_file.is_not(None), *_within(table.c.segment_id, after, upto)
        )
        with self._context.store.reading() as tx:
            names = list(tx.execute(query.order_by(table.c.segment_id)).scalars())
        paths = [self._context.folder.fetch(name) for name in dict.fromkeys(names)]
        if not all(path.exists() for path in paths):
            return Frame(found)
        if not paths:
            return Frame(found.slice(0, 0))
        with compute(self._context.settings) as connection:
            connection.register("found", found)
            connection.execute(f"CREATE TEMP VIEW moved AS FROM read_parquet({files(paths)})")
            ask = "FROM found SEMI JOIN (FROM moved WHERE app_id = $app) USING (user_id) ORDER BY user_id"
            return Frame(connection.sql(ask, params={"app": app_id}).to_arrow_table().cast(found.schema))

    def events(
        self,
        *,
        integration: str | None = None,
        app_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: int | None = None,
        upto: int | None = None,
        prepared_after: int | None = None,
        prepared_upto: int | None = None,
    ) -> Frame:
        """One row per event and integration with its outcome, as far back as receipts are kept; see :data:`EVENTS`.

        Args:
            integration: ``<app_id>/<name>``; all without it.
            app_id: only integrations of this app.
            since: events that Nami created at or after this time.
            until: and before this one.
            after: only events that a request after this one brought to their end: ``nami/from`` of a materialization
                of ``amplitude_deliveries``.
            upto: and none after this one: its ``nami/to``.
            prepared_after: only events of outboxes after this one: ``nami/from`` of a materialization of
                ``amplitude_events``.
            prepared_upto: and of none after this one: its ``nami/to``.

        Raises:
            Misconfigured: there is no such integration, or a time has no zone.
        """
        chosen = self._chosen(integration, app_id)
        with compute(self._context.settings) as connection:
            connection.register("known", _events(self._context, chosen, after or 0, prepared_after))
            connection.register("excepted", self._excepted(chosen))
            found = connection.sql(
                _EVENTS,
                params={
                    "since": _checked(since),
                    "until": _checked(until),
                    "after": after,
                    "upto": upto,
                    "last_box": prepared_upto,
                },
            ).to_arrow_table()
        return Frame(found.rename_columns(EVENTS.names).cast(EVENTS))

    def dead_letters(
        self,
        *,
        integration: str | None = None,
        app_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Frame:
        """The dead letters that became so in a window, the oldest first; see :data:`DEAD_LETTERS`."""
        table = tables.exceptions
        query = sa.select(table).where(table.c.state == "dead").order_by(table.c.id)
        rows = self._rows(query, table, table.c.at, integration, app_id, since, until)
        for row in rows:
            row["body"] = row["body"] and row["body"].removeprefix(",")
        return Frame(pa.Table.from_pylist(rows, schema=DEAD_LETTERS))

    def requests(
        self,
        *,
        integration: str | None = None,
        app_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Frame:
        """The requests sent in a window, the oldest first; see :data:`REQUESTS`."""
        table = tables.requests
        query = sa.select(table).order_by(table.c.id)
        rows = self._rows(query, table, table.c.sent_at, integration, app_id, since, until)
        return Frame(pa.Table.from_pylist(rows, schema=REQUESTS))

    def reconciled(self, *, integration: str | None = None, app_id: str | None = None) -> Frame:
        """What the newest comparison with Amplitude found, by day and class; see :data:`RECONCILED`."""
        rows: list[dict[str, Any]] = []
        for chosen in self._chosen(integration, app_id):
            for day in records.read(self._context, chosen.id, chosen.key):
                same = {"integration": chosen.key, "day": day.date, "hours": day.hours, "compared_at": day.at}
                counts = {"delivered": day.delivered, "held": day.held, **day.classes}
                rows += [{**same, "class": name, "column": None, "events": events} for name, events in counts.items()]
                rows += [
                    {**same, "class": "altered", "column": name, "events": events}
                    for name, events in day.columns.items()
                ]
        for row in rows:
            row["day"] = date.fromisoformat(row["day"])
        return Frame(pa.Table.from_pylist(rows, schema=RECONCILED))

    def _chosen(self, integration: str | None, app_id: str | None) -> list[Integration]:
        found = all_integrations(self._context.store, None if integration is None else [integration])
        return [each for each in found if app_id in (None, each.app_id)]

    def _rows(
        self,
        query: sa.Select[Any],
        table: sa.Table,
        at: sa.Column[int],
        integration: str | None,
        app_id: str | None,
        since: datetime | None,
        until: datetime | None,
    ) -> list[dict[str, Any]]:
        keys = {chosen.id: chosen.key for chosen in self._chosen(integration, app_id)}
        query = query.where(table.c.integration_id.in_(keys))
        if since is not None:
            query = query.where(at >= from_datetime(_checked(since)))
        if until is not None:
            query = query.where(at < from_datetime(_checked(until)))
        with self._context.store.reading() as tx:
            rows = [dict(row) for row in tx.execute(query).mappings()]
        return [{**row, "integration": keys[row["integration_id"]]} for row in rows]

    def _excepted(self, chosen: Sequence[Integration]) -> pa.Table:
        """The store's records of single events take precedence over files."""
        table = tables.exceptions
        names = ("integration_id", "event_id", "identity", "state", "reason", "request_id")
        query = sa.select(*(table.c[name] for name in names)).where(table.c.integration_id.in_([o.id for o in chosen]))
        with self._context.store.reading() as tx:
            rows = [dict(row) for row in tx.execute(query).mappings()]
        return pa.Table.from_pylist(
            [{**row, "state": _WORDS.get(row["state"], row["state"])} for row in rows],
            schema=pa.schema(
                [(name, pa.int64() if name.endswith("n_id") or name == "request_id" else pa.string()) for name in names]
            ),
        )


_KNOWN: Final = pa.schema([("integration_id", pa.int64()), ("outbox_id", pa.int64()), *EVENTS])


def _within(number: sa.ColumnElement[int], after: int | None, upto: int | None) -> list[sa.ColumnElement[bool]]:
    first = [] if after is None else [number > after]
    return first if upto is None else [*first, number <= upto]


def _events(context: Context, chosen: Sequence[Integration], after: int, prepared_after: int | None) -> pa.Table:
    """The events of all outboxes of some integrations, from receipts or, where an outbox is not done, from itself.

    Outboxes that were done before the request ``after`` are left out, unless an event was sent again since: it may be
    of any of them.
    """
    boxes = tables.outboxes
    keys = {integration.id: integration.key for integration in chosen}
    with context.store.reading() as tx:
        query = sa.select(boxes).where(boxes.c.integration_id.in_(keys)).order_by(boxes.c.id)
        rows = tx.execute(query.where(*_within(boxes.c.id, prepared_after, None), *_done_since(tx, keys, after))).all()
        lanes = tx.execute(sa.select(tables.lanes).order_by(tables.lanes.c.id)).all()
        posted = _posted(tx, [lane.id for lane in lanes])
    parts = []
    for box in rows:
        path = context.folder.fetch(box.receipts_file or box.file)
        if not path.exists():  # past its retention
            continue
        if box.receipts_file:
            with compute(context.settings) as connection:
                part = connection.sql(f"FROM read_parquet({files([path])})").to_arrow_table()
        else:
            part = _open_outbox(path, box, [lane for lane in lanes if lane.outbox_id == box.id], posted)
        parts.append(_placed(part, box, keys[box.integration_id]))
    return pa.concat_tables(parts) if parts else _KNOWN.empty_table()


def _done_since(tx: sa.Connection, keys: Collection[int], after: int) -> list[sa.ColumnElement[bool]]:
    requests, exceptions, boxes = tables.requests, tables.exceptions, tables.outboxes
    sent = tx.execute(sa.select(requests.c.sent_at).where(requests.c.id == after)).scalar_one_or_none()
    again = sa.select(exceptions.c.id).where(exceptions.c.integration_id.in_(keys), exceptions.c.request_id > after)
    if sent is None or tx.execute(again.limit(1)).first() is not None:
        return []
    return [sa.or_(boxes.c.done_at.is_(None), boxes.c.done_at >= sent)]


def _posted(tx: sa.Connection, lanes: Sequence[int]) -> dict[int, list[Any]]:
    """The requests that delivered rows of lanes, by lane id."""
    requests = tables.requests
    found: dict[int, list[Any]] = {}
    for start in range(0, len(lanes), _AT_ONCE):
        some = requests.c.lane_id.in_(lanes[start : start + _AT_ONCE])
        for row in tx.execute(sa.select(requests).where(some, requests.c.outcome == "delivered")):
            found.setdefault(row.lane_id, []).append(row)
    return found


def _request_ids(lane: Any, posted: Sequence[Any]) -> pa.Array:
    """The request that delivered each row of a lane; null where none has yet."""
    numbers = np.zeros(lane.rows, dtype=np.int64)
    for request in posted:
        numbers[request.first_row : request.end_row] = request.id
    return pa.array(numbers, mask=numbers == 0)


def _open_outbox(path: Any, box: Any, lanes: Sequence[Any], posted: Mapping[int, Sequence[Any]]) -> pa.Table:
    """The share of one integration of an outbox that is being posted."""
    names = ["id", "event_type", "user_id", "identity", "created_date", "state", "reason"]
    parts: list[pa.Table] = []
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        left = box.rows - sum(lane.rows for lane in lanes)
        for lane in lanes:
            batches = [reader.get_batch(lane.batch + number) for number in range(-(-lane.rows // LANE_BATCH_ROWS))]
            rows = pa.Table.from_batches(batches).select(names)
            states = ["delivered"] * lane.next_row + ["send"] * (lane.rows - lane.next_row)
            rows = rows.set_column(names.index("state"), "state", pa.array(states, pa.string()))
            parts.append(rows.append_column("request_id", _request_ids(lane, posted.get(lane.id, ()))))
        number = box.others_batch
        while number is not None and left > 0:
            batch = reader.get_batch(number)
            rest = pa.Table.from_batches([batch]).select(names)
            parts.append(rest.append_column("request_id", pa.nulls(batch.num_rows, pa.int64())))
            left, number = left - batch.num_rows, number + 1
        return pa.concat_tables(parts).combine_chunks()


def _placed(rows: pa.Table, box: Any, key: str) -> pa.Table:
    states = [_WORDS.get(state, state) for state in rows["state"].to_pylist()]
    columns: dict[str, Any] = {
        "integration_id": pa.repeat(pa.scalar(box.integration_id, pa.int64()), rows.num_rows),
        "outbox_id": pa.repeat(pa.scalar(box.id, pa.int64()), rows.num_rows),
        "integration": pa.repeat(key, rows.num_rows),
        "event_id": rows["id"],
        **{name: rows[name] for name in ("event_type", "user_id", "identity", "created_date", "reason", "request_id")},
        "state": pa.array(states, pa.string()),
        "prepared_at": pa.repeat(pa.scalar(box.prepared_at, pa.int64()).cast(_TIME), rows.num_rows),
        "run_id": pa.repeat(box.run_id, rows.num_rows),
    }
    return pa.table([columns[name] for name in _KNOWN.names], names=_KNOWN.names).cast(_KNOWN)


def _checked(moment: datetime | None) -> Any:
    if moment is not None and moment.tzinfo is None:
        raise Misconfigured(f"{moment} has no time zone: write datetime(…, tzinfo=UTC)")
    return moment
