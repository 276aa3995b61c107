"""The input relations of stage 3's SQL files: a segment, its snapshots, the integrations, and data from the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages import history
from nami_amp_pipeline.stages.body_variants import Variants
from nami_amp_pipeline.stages.odd_rows import is_odd, only
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Transaction
from nami_amp_pipeline.state.users import read_sent, read_snapshots
from nami_amp_pipeline.storage.duckdb_engine import literal, read_files
from nami_amp_pipeline.storage.row_faults import ODD_ROW
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

_LOGIN = ("user_id", "external_id", "external_id_date", "external_id_event")

_RELEASED = pa.schema(
    [
        ("exception_id", pa.int64()),
        ("integration_id", pa.int64()),
        ("id", pa.string()),
        ("event_type", pa.string()),
        ("user_id", pa.string()),
        ("created_date", pa.int64()),
        ("rest", pa.string()),
    ]
)


@dataclass(frozen=True)
class PreparedSegment:
    """A segment, and the integrations that it is prepared for.

    Attributes:
        id: in the store.
        file: relative to the data folder.
        snapshot_files: with the snapshots of the segment.
        integrations: those that have not prepared it.
        hour: in which its events count; None if they are not counted by hour.
        odd: numbers of rows that cannot be computed for these integrations; they become dead letters.
        rows: numbers of the first row and of the row after the last; None for all rows.
        chosen: the only rows that are sent, in the column ``row``; None for all rows.
        logins: users with the newest External ID in the file, which counts where the store knows no newer one:
            ``user_id``, ``external_id``, ``external_id_date``, ``external_id_event``; None if the store knows them all.
        sent_to: rows whose events were sent before, with the ``identity`` that each then had, and keeps.
    """

    id: int
    file: str
    snapshot_files: Sequence[str]
    integrations: Sequence[Integration]
    hour: int | None = None
    odd: Sequence[int] = ()
    rows: tuple[int, int] | None = None
    chosen: pa.Table | None = None
    logins: pa.Table | None = None
    sent_to: pa.Table | None = None


def register_segment(
    context: Context, connection: duckdb.DuckDBPyConnection, segment: PreparedSegment, variants: Variants
) -> None:
    """Makes the relations of one segment that do not depend on the store.

    Args:
        context: for the files and the settings.
        connection: gets views ``segment``, ``snapshots``, tables ``targets``, ``selected``, macros of the contract.
        segment: with the integrations that have not prepared it.
        variants: of the integrations.
    """
    register_targets(context, connection, segment.id, segment.integrations, variants)
    path = read_files([context.folder.fetch(segment.file)], SEGMENT_SCHEMA, "file_row_number")
    snapshots = read_files(context.folder.fetch_all(segment.snapshot_files), snapshot_schema())
    as_they_are = "*"
    if segment.odd:
        odd = is_odd(segment.odd)
        as_they_are = (
            f"* REPLACE (well_formed AND NOT {odd} AS well_formed, "
            f"CASE WHEN well_formed AND {odd} THEN '{ODD_ROW}' ELSE problem END AS problem)"
        )
    among = ""
    if segment.chosen is not None:
        connection.register("chosen_rows", segment.chosen.select(["row"]).rename_columns(["file_row_number"]))
        among = "SEMI JOIN chosen_rows USING (file_row_number) "
    connection.execute(
        f"CREATE TEMP VIEW segment AS SELECT {as_they_are} RENAME (file_row_number AS row) "  # noqa: S608
        f"FROM {path} SEMI JOIN targets USING (app_id) {among}WHERE {only(segment.rows)}"
    )
    connection.execute(f"CREATE TEMP VIEW snapshots AS FROM {snapshots}")


def register_targets(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    segment_id: int,
    integrations: Sequence[Integration],
    variants: Variants,
) -> None:
    """Makes the relations of the integrations that something is prepared for.

    Args:
        context: for the settings.
        connection: gets the tables ``targets``, ``selected``, and macros of the contract.
        segment_id: what is prepared.
        integrations: that it is prepared for.
        variants: of the integrations.
    """
    targets = pa.table(
        {
            "integration_id": pa.array([integration.id for integration in integrations], pa.int64()),
            "app_id": pa.array([integration.app_id for integration in integrations], pa.string()),
            "user_id_kind": pa.array([integration.user_id_kind for integration in integrations], pa.string()),
            "anonymous": pa.array([integration.anonymous for integration in integrations], pa.string()),
            "sandbox": pa.array([integration.sandbox for integration in integrations], pa.string()),
            "variant": pa.array([variants.number_of[integration.id] for integration in integrations], pa.int32()),
            "start_from": pa.array([integration.start_in(segment_id) for integration in integrations], pa.int64()),
            "lanes_at_most": pa.array([context.settings.max_lanes] * len(integrations), pa.int32()),
            "lane_rows": pa.array([context.settings.batch_events] * len(integrations), pa.int64()),
        }
    )
    selected = pa.Table.from_pylist(
        [
            {
                "integration_id": integration.id,
                "event_type": event_type,
                "name": integration.rename.get(event_type, event_type),
            }
            for integration in integrations
            for event_type in integration.events
        ],
        schema=pa.schema([("integration_id", pa.int64()), ("event_type", pa.string()), ("name", pa.string())]),
    )
    connection.register("targets", targets)
    connection.register("selected", selected)
    _create_contract_macros(connection)


def _create_contract_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """The contract's rules as SQL macros, made from its tables."""
    revenue = (
        ", ".join(literal(event_type.name) for event_type in contract.EVENT_TYPES if event_type.is_revenue) or "NULL"
    )
    connection.execute(f"CREATE TEMP MACRO is_revenue_type(event_type) AS event_type IN ({revenue})")
    reserved = ", ".join(map(literal, contract.RESERVED_IDS))
    connection.execute(f"CREATE TEMP MACRO is_reserved(id) AS lower(id) IN ({reserved})")
    for statement in history.macros():
        connection.execute(statement)


def register_identities(
    context: Context, connection: duckdb.DuckDBPyConnection, segment: PreparedSegment
) -> dict[str, set[str]]:
    """Makes the relation of users who have logged in.

    Args:
        context: for the store.
        connection: after :func:`register_segment`; gets the table ``identities``.
        segment: with the integrations that have not prepared it.

    Returns:
        The Nami users of the segment who have logged in, by app.
    """
    with context.store.reading() as tx:
        waiting = _with_waiting(tx)
    wanted = {
        integration.app_id
        for integration in segment.integrations
        if integration.user_id_kind == "external_id" or integration.id in waiting
    }
    users = connection.execute("SELECT app_id, list(DISTINCT user_id) FROM segment GROUP BY app_id").fetchall()
    identities: list[tuple[str, str, str]] = []
    with context.store.reading() as tx:
        for app_id, user_ids in users:
            if app_id in wanted:
                # The dates cost a third of reading them.
                columns = _LOGIN if segment.logins is not None else _LOGIN[:2]
                known = _newest_logins(read_snapshots(context.store, tx, app_id, user_ids, columns), segment.logins)
                identities += [(app_id, user, external) for user, external in known.items()]
    connection.register(
        "identities",
        _columns(identities, [("app_id", pa.string()), ("user_id", pa.string()), ("external_id", pa.string())]),
    )
    logged_in: dict[str, set[str]] = defaultdict(set)
    for app_id, user_id, _ in identities:
        logged_in[app_id].add(user_id)
    return logged_in


def _newest_logins(stored: Sequence[tuple[Any, ...]], of_file: pa.Table | None) -> dict[str, str]:
    """User to External ID: of the store, or of the file where that is newer."""
    if of_file is None:
        return {user: external for user, external, *_ in stored if (external or "").strip()}
    found = {user: (at or 0, event or "", external or "") for user, external, at, event in stored}
    for user, external, at, event in zip(*(of_file[name].to_pylist() for name in _LOGIN), strict=True):
        if external is not None:
            found[user] = max(found.get(user, (0, "", "")), (at, event, external))
    return {user: external for user, (_, _, external) in found.items() if external.strip()}


def keep_identities(connection: duckdb.DuckDBPyConnection, sent_to: pa.Table) -> None:
    """Gives repeats the user, or the device, that they were sent with.

    Amplitude recognises a repeat by ``insert_id`` and device, which it derives from the user where an event has none.

    Args:
        connection: has the table ``decided``.
        sent_to: see :class:`PreparedSegment`.
    """
    connection.register("sent_to", sent_to)
    connection.execute(
        "UPDATE decided SET identity = s.identity, "
        "amplitude_user_id = CASE WHEN starts_with(s.identity, 'u:') THEN s.identity[3:] END "
        "FROM sent_to s WHERE decided.row = s.row AND state = 'send' AND decided.identity <> s.identity"
    )


def register_released(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    integrations: Sequence[Integration],
    logged_in: Mapping[str, set[str]],
) -> bool:
    """Makes the relation of the waiting events whose user has logged in.

    Args:
        context: for the store.
        connection: gets the view ``released``.
        integrations: those that have not prepared the segment.
        logged_in: what :func:`register_identities` returned.

    Returns:
        Whether there are any.
    """
    released: list[dict[str, object]] = []
    with context.store.reading() as tx:
        waiting = _with_waiting(tx)  # an integration with a changed setting still has its waiting events
        for integration in integrations:
            if integration.id in waiting:
                released += _released(tx, integration, logged_in.get(integration.app_id, set()))
    connection.register("released_rows", pa.Table.from_pylist(released, schema=_RELEASED))
    connection.execute(
        "CREATE TEMP VIEW released AS "
        "SELECT * REPLACE (make_timestamptz(created_date) AS created_date) FROM released_rows"
    )
    return bool(released)


def register_sent(context: Context, connection: duckdb.DuckDBPyConnection, integrations: Sequence[Integration]) -> None:
    """Makes the relation of the states that Amplitude users were already sent.

    Args:
        context: for the store.
        connection: has the table ``decided``; gets the table ``sent``.
        integrations: those that the segment is prepared for; of others nothing counts as sent.
    """
    profiles_of = {integration.id: integration.profiles_of for integration in integrations}
    users = connection.execute(
        "SELECT integration_id, list(DISTINCT amplitude_user_id) FROM decided "
        "WHERE is_user AND amplitude_user_id IS NOT NULL GROUP BY integration_id"
    ).fetchall()
    sent: list[tuple[int, str, int, str]] = []
    with context.store.reading() as tx:
        for integration_id, user_ids in users:
            if integration_id not in profiles_of:
                continue
            known = read_sent(context.store, tx, profiles_of[integration_id], user_ids)
            sent += [(integration_id, *row) for row in known]
    connection.register(
        "sent",
        _columns(
            sent,
            [
                ("integration_id", pa.int64()),
                ("user_id", pa.string()),
                ("as_of_date", pa.int64()),
                ("as_of_event", pa.string()),
            ],
        ),
    )


def _with_waiting(tx: Transaction) -> set[int]:
    """The ids of the integrations with waiting events."""
    table = tables.exceptions
    return set(tx.execute(sa.select(table.c.integration_id).where(table.c.state == "waiting").distinct()).scalars())


def _released(tx: Transaction, integration: Integration, known: set[str]) -> list[dict[str, object]]:
    """The waiting events whose user's login has been read."""
    table = tables.exceptions
    waiting = sa.select(table).where(table.c.integration_id == integration.id, table.c.state == "waiting")
    users = set(
        tx.execute(
            sa.select(table.c.user_id)
            .where(table.c.integration_id == integration.id, table.c.state == "waiting")
            .distinct()
        ).scalars()
    )
    back = sorted(users & known)
    released: list[dict[str, object]] = []
    for start in range(0, len(back), 500):
        rows = tx.execute(waiting.where(table.c.user_id.in_(back[start : start + 500])))
        released += [
            {
                "exception_id": row.id,
                "integration_id": integration.id,
                "id": row.event_id,
                "event_type": row.event_type,
                "user_id": row.user_id,
                "created_date": row.created_date,
                "rest": row.body,
            }
            for row in rows
        ]
    return released


def _columns(rows: Sequence[tuple[object, ...]], fields: Sequence[tuple[str, pa.DataType]]) -> pa.Table:
    schema = pa.schema(fields)
    if not rows:
        return schema.empty_table()
    arrays = [pa.array(column, type_) for column, (_, type_) in zip(zip(*rows, strict=True), fields, strict=True)]
    return pa.table(arrays, schema=schema)
