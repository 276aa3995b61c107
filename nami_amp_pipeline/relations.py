"""The relations that stage 3's SQL files name: a segment, its snapshots, the integrations, and what the store knows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.compute import files
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Transaction
from nami_amp_pipeline.state.users import read_sent, read_snapshots

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


def register_segment(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    segment_id: int,
    file: str,
    snapshot_files: Sequence[str],
    integrations: Sequence[Integration],
) -> None:
    """Makes the relations of one segment that do not depend on what the store knows.

    Args:
        context: for the files and the settings.
        connection: gets views ``segment``, ``snapshots`` and tables ``targets``, ``selected``, ``reserved``.
        segment_id: the segment.
        file: of the segment, in the data folder.
        snapshot_files: with the snapshots of the segment.
        integrations: those that lack the segment.
    """
    path = files([context.folder.path(file)])
    snapshots = files([context.folder.path(name) for name in snapshot_files])
    targets = pa.table(
        {
            "integration_id": pa.array([one.id for one in integrations], pa.int64()),
            "app_id": pa.array([one.app_id for one in integrations], pa.string()),
            "user_id_kind": pa.array([one.user_id_kind for one in integrations], pa.string()),
            "anonymous": pa.array([one.anonymous for one in integrations], pa.string()),
            "start_from": pa.array([one.start_in(segment_id) for one in integrations], pa.int64()),
            "lanes_at_most": pa.array([context.settings.max_lanes] * len(integrations), pa.int32()),
            "lane_rows": pa.array([context.settings.batch_events] * len(integrations), pa.int64()),
        }
    )
    selected = pa.Table.from_pylist(
        [
            {"integration_id": one.id, "event_type": event_type, "name": one.rename.get(event_type, event_type)}
            for one in integrations
            for event_type in one.events
        ],
        schema=pa.schema([("integration_id", pa.int64()), ("event_type", pa.string()), ("name", pa.string())]),
    )
    connection.register("targets", targets)
    connection.register("selected", selected)
    connection.register("reserved", pa.table({"id": list(contract.RESERVED_IDS)}))
    connection.execute(
        f"CREATE TEMP VIEW segment AS SELECT * RENAME (file_row_number AS row) "  # noqa: S608
        f"FROM read_parquet({path}, file_row_number=true) SEMI JOIN targets USING (app_id)"
    )
    connection.execute(f"CREATE TEMP VIEW snapshots AS FROM read_parquet({snapshots})")


def register_known(
    context: Context, connection: duckdb.DuckDBPyConnection, integrations: Sequence[Integration]
) -> None:
    """Makes the relations of what the store knows of a segment's users by now.

    Args:
        context: for the store.
        connection: after :func:`register_segment`; gets tables ``identities``, ``sent`` and the view ``released``.
        integrations: those that lack the segment.
    """
    people: dict[str, list[str]] = defaultdict(list)
    for app_id, user_id in connection.execute("SELECT DISTINCT app_id, user_id FROM segment").fetchall():
        people[app_id].append(user_id)
    identities: list[tuple[str, str, str]] = []
    sent: list[tuple[int, str, int, str]] = []
    released: list[dict[str, object]] = []
    with context.store.reading() as tx:
        for app_id, user_ids in people.items():
            rows = read_snapshots(context.store, tx, app_id, user_ids, ("user_id", "external_id"))
            identities += [(app_id, user_id, external_id) for user_id, external_id in rows if external_id is not None]
        by_app: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for app_id, user_id, external_id in identities:
            by_app[app_id].append((user_id, external_id))
        for one in integrations:
            known = by_app[one.app_id]
            names = {user_id.strip() for user_id in people.get(one.app_id, ())}
            if one.user_id_kind == "external_id":
                externals = {external_id for _, external_id in known}
                names = externals | names if one.anonymous == "nami_user_id" else externals
            sent += [(one.id, *row) for row in read_sent(context.store, tx, one.id, sorted(names))]
            if one.anonymous == "wait_for_login" and one.user_id_kind == "external_id":
                released += _released(tx, one, {user_id for user_id, _ in known})
    connection.register(
        "identities",
        _columns(identities, [("app_id", pa.string()), ("user_id", pa.string()), ("external_id", pa.string())]),
    )
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
    connection.register("released_rows", pa.Table.from_pylist(released, schema=_RELEASED))
    connection.execute(
        "CREATE TEMP VIEW released AS "
        "SELECT * REPLACE (make_timestamptz(created_date) AS created_date) FROM released_rows"
    )


def _released(tx: Transaction, one: Integration, known: set[str]) -> list[dict[str, object]]:
    """Events that waited for a login that has been read now."""
    table = tables.exceptions
    waiting = sa.select(table).where(table.c.integration_id == one.id, table.c.state == "waiting")
    users = set(
        tx.execute(
            sa.select(table.c.user_id).where(table.c.integration_id == one.id, table.c.state == "waiting").distinct()
        ).scalars()
    )
    back = sorted(users & known)
    released: list[dict[str, object]] = []
    for start in range(0, len(back), 500):
        rows = tx.execute(waiting.where(table.c.user_id.in_(back[start : start + 500])))
        released += [
            {
                "exception_id": row.id,
                "integration_id": one.id,
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
