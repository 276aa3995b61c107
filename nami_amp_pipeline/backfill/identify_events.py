"""What an identify does with the users of one file, and the events that it sends of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.backfill.channels import IDENTIFY, channel_of
from nami_amp_pipeline.backfill.choice import Choice, ComputedFile
from nami_amp_pipeline.backfill.known import unprepared
from nami_amp_pipeline.backfill.profiles import USER
from nami_amp_pipeline.backfill.superseded import SUPERSEDED
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.receipts import receipts_so_far
from nami_amp_pipeline.stages.body_variants import variants_of
from nami_amp_pipeline.stages.outbox_writer import write_outbox
from nami_amp_pipeline.stages.prepare import ComputedSegment
from nami_amp_pipeline.stages.prepare_inputs import (
    PreparedSegment,
    register_identities,
    register_released,
    register_targets,
)
from nami_amp_pipeline.stages.snapshot_sql import snapshot_sql, stored_table
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.among import among
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.state.store import Transaction
from nami_amp_pipeline.state.users import COLUMNS, read_sent_states, read_snapshots
from nami_amp_pipeline.storage.duckdb_engine import Engine, engine, execute

NEW: Final = "new"

USER_CLASSES: Final = {
    NEW: "their current snapshot was not sent by an identify",
    "unchanged": "an earlier identify sent the same, and nothing else was sent since",
    "left_to_events": "left to their pending events, which carry the snapshot",
    "newer_sent": "were sent newer state already",
    "never_sent": "were never sent anything, and the integration does not take events of each environment",
    "same_user": "another Nami user is the same user of Amplitude, and has newer state",
    "no_state": "nothing is known that could be sent",
    "no_external_id": "have no External ID yet",
    "reserved_user_id": "have an id that Amplitude reserves",
    "long_user_id": "have an id of more than 1,024 characters",
}
"""What an identify may find of a Nami user, and what that means."""

_SENT: Final = """
SELECT {integration_id}::BIGINT AS integration_id, amplitude_user_id AS user_id, as_of_date, as_of_event,
    id AS identify_id
FROM choice WHERE class = 'new' ORDER BY user_id
"""


def found_users(context: Context, backfill: Backfill, file: BackfillFile, integration: Integration) -> Choice:
    """What is found of each user of a file as of now."""
    with engine(context.settings) as own, _begun(context, backfill, file, integration, own) as connection:
        return _choice(connection)


def compute_identifies(
    context: Context, backfill: Backfill, file: BackfillFile, integration: Integration
) -> ComputedFile:
    """Decides on each user of a file, and writes the outbox file; it counts after a commit.

    Call it under the lease of the integration, where the answer is to hold until the events are in an outbox.

    Args:
        context: the process at work.
        backfill: an identify.
        file: with Nami users.
        integration: that it belongs to, as it is now.
    """
    channel = channel_of(backfill, integration)
    with engine(context.settings) as own, _begun(context, backfill, file, integration, own) as connection:
        choice = _choice(connection)
        if not choice.rows.num_rows:
            return ComputedFile(choice, [])
        name = context.folder.new_name("outboxes", "arrow")
        execute(connection, "identify_4_events")
        execute(connection, "prepare_4_lanes")
        parts = write_outbox(context, connection, name)
        sent = connection.sql(_SENT.format(integration_id=integration.id)).to_arrow_table()
        segment = PreparedSegment(file.segment_id, file.file, [], [channel])
        return ComputedFile(choice, [ComputedSegment(segment, name, parts, sent)])


def replace_dead(context: Context, tx: Transaction, backfill: Backfill, parts: Sequence[ComputedSegment]) -> None:
    """Takes back the dead letters of earlier identifies of users who are sent a new one: they count as skipped.

    Args:
        context: for the store.
        tx: the transaction that registers the outbox.
        backfill: an identify.
        parts: what is registered.
    """
    table = tables.exceptions
    earlier = [made.channel_id for made in backfills.of_integration(tx, backfill.integration_id, "identify")]
    for part in parts:
        people = [f"{USER}{user}" for user in part.sent["user_id"].to_pylist()]
        which = sa.and_(
            table.c.integration_id.in_(earlier), table.c.state == "dead", among(context.store, table.c.identity, people)
        )
        columns = (table.c.integration_id, table.c.reason)
        dead = tx.execute(sa.select(*columns, sa.func.count().label("events")).where(which).group_by(*columns)).all()
        tx.execute(sa.update(table).where(which).values(state="skipped", reason=SUPERSEDED))
        for row in dead:
            context.store.count(tx, row.integration_id, "dead", {row.reason: -row.events})
            context.store.count(tx, row.integration_id, "skipped", {SUPERSEDED: row.events})


def _choice(connection: duckdb.DuckDBPyConnection) -> Choice:
    rows = connection.sql(f"SELECT row FROM choice WHERE class = '{NEW}'").to_arrow_table()  # noqa: S608
    counted = connection.execute("SELECT class, count(*) FROM choice GROUP BY ALL").fetchall()
    # An id hashes the user and the snapshot; of millions, 32 bits each add up to what 64 bits hold.
    ids = f"SELECT coalesce(sum(('0x' || right(id, 8))::BIGINT), 0)::BIGINT FROM choice WHERE class = '{NEW}'"  # noqa: S608
    ((digest,),) = connection.execute(ids).fetchall()
    return Choice(rows, {(name, IDENTIFY): users for name, users in counted}, rows.num_rows, digest)


@contextmanager
def _begun(
    context: Context, backfill: Backfill, file: BackfillFile, integration: Integration, shared: Engine
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the table ``choice``, and all that it is made from."""
    channel = channel_of(backfill, integration)
    users: list[str] = pq.read_table(context.folder.fetch(file.file))["user_id"].to_pylist()
    variants = variants_of([channel], context.cipher)
    with shared.connection() as connection:
        with context.store.reading() as tx:
            stored = read_snapshots(context.store, tx, integration.app_id, users, COLUMNS)
        connection.register("stored", stored_table(stored))
        connection.execute(snapshot_sql("identify_1_states"))
        execute(connection, "prepare_0_macros")
        register_targets(context, connection, file.segment_id, [channel], variants)
        variants.distinct[0].create_macros(connection)
        execute(connection, "identify_2_rows")
        register_identities(context, connection, PreparedSegment(file.segment_id, file.file, [], [channel]))
        execute(connection, "prepare_2_decide")
        register_released(context, connection, [], {})
        with context.store.reading() as tx:
            _register_sent(context, connection, tx, integration)
            _register_pending(context, connection, tx, integration, users)
        connection.execute("SET VARIABLE integration = ?", [integration.key])
        connection.execute("SET VARIABLE only_known = ?", [integration.sandbox != "send"])
        execute(connection, "identify_3_choose")
        yield connection


def _people(connection: duckdb.DuckDBPyConnection, column: str) -> list[str]:
    query = f"SELECT DISTINCT {column} FROM decided WHERE state = 'send' AND {column} IS NOT NULL"  # noqa: S608
    return [person for (person,) in connection.execute(query).fetchall()]


def _register_sent(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: Transaction, integration: Integration
) -> None:
    """Makes the tables ``sent`` and ``dead_identifies``."""
    sent = read_sent_states(context.store, tx, integration.id, _people(connection, "amplitude_user_id"))
    integrations = pa.repeat(pa.scalar(integration.id, pa.int64()), sent.num_rows)
    connection.register("sent", sent.append_column("integration_id", integrations))
    table = tables.exceptions
    ids = [text for text in sent["identify_id"].to_pylist() if text is not None]
    dead = tx.execute(
        sa.select(table.c.event_id).where(among(context.store, table.c.event_id, ids), table.c.state == "dead")
    ).scalars()
    connection.register("dead_identifies", pa.table({"id": pa.array(dead, pa.string())}))


def _register_pending(
    context: Context,
    connection: duckdb.DuckDBPyConnection,
    tx: Transaction,
    integration: Integration,
    users: Sequence[str],
) -> None:
    """Makes the tables of the users with pending events: ``pending_users`` of Nami, ``pending_identities``."""
    table, boxes = tables.exceptions, tables.outboxes
    channels = [integration.id, *(made.channel_id for made in backfills.of_integration(tx, integration.id))]
    waits = [table.c.integration_id.in_(channels), table.c.state.in_(("held", "waiting"))]
    by_user = tx.execute(
        sa.select(table.c.user_id).where(*waits, among(context.store, table.c.user_id, users)).distinct()
    ).scalars()
    connection.register("held_users", pa.table({"user_id": pa.array(by_user, pa.string())}))
    connection.execute("CREATE TEMP TABLE pending_users AS FROM held_users")
    for rows, values in unprepared(context, tx, integration):
        connection.execute(f"INSERT INTO pending_users SELECT DISTINCT user_id FROM ({rows})", values)  # noqa: S608
    identities = _people(connection, "identity")
    by_identity = tx.execute(
        sa.select(table.c.identity).where(*waits, among(context.store, table.c.identity, identities)).distinct()
    ).scalars()
    connection.register("held_identities", pa.table({"identity": pa.array(by_identity, pa.string())}))
    connection.execute("CREATE TEMP TABLE pending_identities AS FROM held_identities")
    open_boxes = sa.select(boxes.c.id).where(boxes.c.integration_id.in_(channels), boxes.c.done_at.is_(None))
    for box_id in tx.execute(open_boxes).scalars().all():
        for receipts in receipts_so_far(context, box_id):
            connection.register("open_rows", receipts.select(["identity", "state"]))
            connection.execute(
                "INSERT INTO pending_identities SELECT DISTINCT identity FROM open_rows "
                "WHERE state IN ('send', 'held') AND identity IS NOT NULL"
            )
