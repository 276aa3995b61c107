"""Which events of a window a backfill sends: the one place for that rule, together with ``backfill_1_choose.sql``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.backfill.known import register_known
from nami_amp_pipeline.backfill.window_sql import in_window, is_of, selected_types
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.prepare import ComputedSegment
from nami_amp_pipeline.stages.rebuild import LOST_FILE
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.backfills import Backfill, BackfillFile
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.storage.duckdb_engine import Engine, execute, read_files
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA

_DAY: Final = 86_400_000_000

NEW, REPEAT = "new", "repeat"
STORED, UNKNOWN = "stored", "unknown"
LEFT_TO_LIVE, DEAD_LETTER = "left_to_live", "dead_letter"

CLASSES: Final = {
    NEW: "never sent to this integration",
    REPEAT: "delivered less than 6 days ago: sent again, and Amplitude recognises the repeat",
    LEFT_TO_LIVE: "left to live delivery, which has them in hand or is about to read them",
    DEAD_LETTER: "dead letters: 'nami-amp dead-letters retry' sends them again",
    STORED: "delivered 6 days ago or more: Amplitude would store them a second time",
    UNKNOWN: "so old that their receipts are gone: Amplitude would perhaps store them a second time",
}
"""What a backfill may find of an event of its window, and what that means."""

STORED_TWICE: Final = (STORED, UNKNOWN)
"""These are sent only if a person wants them sent again."""


@dataclass(frozen=True)
class Choice:
    """The events of one file.

    Attributes:
        rows: the chosen rows, in the column ``row``.
        events: by class and event type.
        users: how many Nami users have chosen events.
        digest: of the ids of what is sent, in any order; 0 where the counts say enough.
        sent_to: of the rows that are sent once more and are to be recognised, the ``identity`` that each was sent with;
            None where there are none.
    """

    rows: pa.Table
    events: dict[tuple[str, str], int]
    users: int
    digest: int = 0
    sent_to: pa.Table | None = None

    @property
    def found(self) -> dict[str, int]:
        """Events by class."""
        found: dict[str, int] = {}
        for (name, _), events in self.events.items():
            found[name] = found.get(name, 0) + events
        return found


@dataclass(frozen=True)
class ComputedFile:
    """A file of a backfill or an identify before anything of it is committed.

    Attributes:
        choice: what is done with each of its events.
        parts: the outbox files, with what they hold.
    """

    choice: Choice
    parts: list[ComputedSegment]


def sent_classes(backfill: Backfill) -> tuple[str, ...]:
    """The classes of events that a backfill sends."""
    return (NEW, REPEAT, *(STORED_TWICE if backfill.resend else ()))


def choose(
    context: Context, backfill: Backfill, file: BackfillFile, integration: Integration, shared: Engine
) -> Choice:
    """Decides on each event of a file.

    Call it under the lease of the integration, where the answer is to hold until the events are in an outbox.

    Args:
        context: the process at work.
        backfill: with its window.
        file: of the backfill.
        integration: that it belongs to, as it is now.
        shared: where it is computed.
    """
    with shared.connection() as connection:
        path = read_files([context.folder.fetch(file.file)], SEGMENT_SCHEMA, "file_row_number")
        connection.execute(
            "CREATE TEMP TABLE window_rows AS SELECT file_row_number AS row, id, event_type, user_id, created_date, "  # noqa: S608
            f"ingested_at FROM {path} WHERE {in_window(backfill)} AND {is_of(selected_types(backfill, integration))}"
        )
        with context.store.reading() as tx:
            every = backfills.of_integration(tx, integration.id, "backfill")
            channels = [other.channel_id for other in every if other.id != backfill.id]
            _register_bounds(context, connection, tx, integration)
            _register_earlier(context, connection, tx, [other for other in every if other.id != backfill.id])
            register_known(context, connection, tx, integration, channels)
        execute(connection, "backfill_1_choose")
        wanted = ", ".join(f"'{name}'" for name in sent_classes(backfill))
        rows = connection.sql(f"SELECT row FROM choice WHERE class IN ({wanted})").to_arrow_table()  # noqa: S608
        ((users,),) = connection.execute(
            f"SELECT count(DISTINCT user_id) FROM choice WHERE class IN ({wanted})"  # noqa: S608
        ).fetchall()
        sent_to = connection.sql(
            f"SELECT row, identity FROM choice WHERE class = '{REPEAT}' AND identity IS NOT NULL"  # noqa: S608
        ).to_arrow_table()
        counted = connection.execute("SELECT class, event_type, count(*) FROM choice GROUP BY ALL").fetchall()
    events = {(name, event_type): events for name, event_type, events in counted}
    return Choice(rows, events, users, sent_to=sent_to if sent_to.num_rows else None)


def _horizon(context: Context) -> int:
    """What was sent before it may have no receipt any more; a day later, for the clocks of loaders."""
    return context.now() - int(context.settings.receipt_retention_days * _DAY) + _DAY


def _register_bounds(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: sa.Connection, integration: Integration
) -> None:
    """Makes the table ``bounds``: from where on live delivery reads, and how far back receipts reach."""
    apps = tables.apps
    frontier = tx.execute(sa.select(apps.c.frontier).where(apps.c.app_id == integration.app_id)).scalar()
    columns = {
        "start_from": integration.start_from,
        "start_of_new": integration.start_of_new,
        "frontier": frontier,
        "horizon": _horizon(context),
    }
    connection.register("bounds", pa.table({name: pa.array([value], pa.int64()) for name, value in columns.items()}))


def _register_earlier(
    context: Context, connection: duckdb.DuckDBPyConnection, tx: sa.Connection, others: Sequence[Backfill]
) -> None:
    """Makes the table ``earlier``: windows of which receipts may be gone, or were lost too long ago for a repeat."""
    horizon, repeats = _horizon(context), context.now() - 6 * _DAY
    counts = tables.counts
    lost = set(
        tx.execute(
            sa.select(counts.c.integration_id).where(
                counts.c.integration_id.in_([other.channel_id for other in others]),
                counts.c.state == "skipped",
                counts.c.reason == LOST_FILE,
                counts.c.events > 0,
            )
        ).scalars()
    )
    gone = [
        other
        for other in others
        if other.started_at is not None and other.started_at < (repeats if other.channel_id in lost else horizon)
    ]
    connection.register(
        "earlier",
        pa.table(
            {
                "since": pa.array([other.since for other in gone], pa.int64()),
                "until": pa.array([other.until for other in gone], pa.int64()),
                "is_by_created": pa.array([other.by == "created_date" for other in gone], pa.bool_()),
            }
        ),
    )
