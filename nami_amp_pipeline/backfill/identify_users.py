"""The users of an identify, spread over files: all users of its app, or those who were sent nothing for a while."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.backfill.channels import channel_of
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA, receipts_so_far
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.users import read_users
from nami_amp_pipeline.storage.duckdb_engine import compute, execute, read_files

USERS_SCHEMA: Final = pa.schema([("user_id", pa.string())])
"""Columns of a file of an identify (Parquet): Nami's users."""

MOST_USERS: Final = 50_000
"""Users of a file, and of a page of the store, at most: what is in memory at once."""


def write_users(context: Context, backfill: Backfill, integration: Integration) -> list[tuple[str, int, int]]:
    """Writes the files of an identify; returns (file, users, users) of each.

    All Nami users who are one user of Amplitude are in the same file.

    Args:
        context: the process at work.
        backfill: an identify without files.
        integration: that it belongs to.
    """
    table = tables.user_property_snapshots
    with context.store.reading() as tx:
        people = sa.select(sa.func.count()).where(table.c.app_id == integration.app_id, table.c.as_of_date.is_not(None))
        ((total,),) = tx.execute(people).all()
    count = max(1, -(-int(total) // min(MOST_USERS, context.settings.segment_rows)))
    channel = channel_of(backfill, integration)
    rows: dict[str, int] = {}
    with compute(context.settings, share=2) as connection, ExitStack() as open_files:
        execute(connection, "prepare_0_macros")
        if backfill.since:
            _create_sent_to(context, connection, integration, backfill.since)
        names = [context.folder.new_name("segments", "parquet") for _ in range(count)]
        writers = [open_files.enter_context(context.folder.parquet(name, USERS_SCHEMA)) for name in names]
        for page in _pages(context, integration.app_id):
            files: dict[int, list[str]] = {}
            for user, person in _chosen(connection, page, channel, is_silent=bool(backfill.since)):
                files.setdefault(zlib.crc32(person.encode()) % count, []).append(user)
            for number, users in files.items():
                writers[number].write_table(pa.table({"user_id": pa.array(users, pa.string())}, USERS_SCHEMA))
                rows[names[number]] = rows.get(names[number], 0) + len(users)
    for name in names:
        if name not in rows:
            context.folder.remove(name)
    return [(name, users, users) for name, users in rows.items()]


def _pages(context: Context, app_id: str) -> Iterator[pa.Table]:
    after: str | None = None
    while True:
        with context.store.reading() as tx:
            page = read_users(tx, app_id, after, MOST_USERS)
        if not page:
            return
        after = page[-1][0]
        yield pa.table({name: pa.array([row[n] for row in page], pa.string()) for n, name in enumerate(_PAGE)})


_PAGE: Final = ("user_id", "external_id")


def _chosen(
    connection: duckdb.DuckDBPyConnection, page: pa.Table, channel: Integration, *, is_silent: bool
) -> list[tuple[str, str]]:
    """(Nami user, who that is in Amplitude) of the users of a page who are wanted."""
    connection.register("page", page)
    query = (
        "FROM (SELECT user_id, amplitude_user_of(?, nullif(stripped(external_id), ''), ?, user_id) AS person FROM page)"
    )
    if is_silent:
        query += " WHERE person IS NULL OR 'u:' || person NOT IN (SELECT identity FROM sent_to)"
    found: list[tuple[str, str]] = connection.execute(
        f"SELECT user_id, coalesce(person, user_id) {query}",
        [channel.user_id_kind, channel.anonymous],
    ).fetchall()
    return found


def _create_sent_to(
    context: Context, connection: duckdb.DuckDBPyConnection, integration: Integration, since: int
) -> None:
    """Makes the table ``sent_to``: the users to whom an event was delivered since then, live or by a backfill."""
    boxes, requests, exceptions = tables.outboxes, tables.requests, tables.exceptions
    connection.execute("CREATE TEMP TABLE sent_to_all (identity VARCHAR)")
    with context.store.reading() as tx:
        mine = [integration.id, *(made.channel_id for made in backfills.of_integration(tx, integration.id, "backfill"))]
        answered = tx.execute(
            sa.select(requests.c.id).where(
                requests.c.integration_id.in_(mine), requests.c.outcome == "delivered", requests.c.answered_at >= since
            )
        ).scalars()
        connection.register("answered", pa.table({"request_id": pa.array(answered, pa.int64())}))
        after = tx.execute(
            sa.select(exceptions.c.identity).where(
                exceptions.c.integration_id.in_(mine), exceptions.c.state == "delivered", exceptions.c.at >= since
            )
        ).scalars()
        connection.register("after", pa.table({"identity": pa.array(after, pa.string())}))
        rows = tx.execute(
            sa.select(boxes.c.id, boxes.c.receipts_file).where(
                boxes.c.integration_id.in_(mine), sa.or_(boxes.c.done_at.is_(None), boxes.c.done_at >= since)
            )
        ).all()
    connection.execute("INSERT INTO sent_to_all FROM after")
    paths = context.folder.fetch_all(row.receipts_file for row in rows if row.receipts_file)
    _add_delivered(connection, read_files([path for path in paths if path.exists()], RECEIPT_SCHEMA))
    for row in rows:
        if not row.receipts_file:
            for receipts in receipts_so_far(context, row.id):
                connection.register("open_rows", receipts)
                _add_delivered(connection, "open_rows")
    connection.execute("CREATE TEMP TABLE sent_to AS SELECT DISTINCT identity FROM sent_to_all")


def _add_delivered(connection: duckdb.DuckDBPyConnection, receipts: str) -> None:
    connection.execute(
        f"INSERT INTO sent_to_all SELECT DISTINCT identity FROM {receipts} r SEMI JOIN answered USING (request_id) "  # noqa: S608
        "WHERE state = 'delivered' AND identity IS NOT NULL"
    )
