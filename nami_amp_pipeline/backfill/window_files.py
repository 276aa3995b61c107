"""The rows that a backfill needs: reads the warehouse once, and spreads them over files by their users."""

from __future__ import annotations

import duckdb

from nami_amp_pipeline.backfill.window_sql import in_window, is_needed, is_of, selected_types
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import WarehouseUnavailable
from nami_amp_pipeline.stages.buckets import create_buckets
from nami_amp_pipeline.stages.capture import candidates
from nami_amp_pipeline.stages.captured_rows import write_rows
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration
from nami_amp_pipeline.storage.duckdb_engine import compute, read_files
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA
from nami_amp_pipeline.warehouse.base import one_line


def write_files(context: Context, backfill: Backfill, integration: Integration) -> list[tuple[str, int, int]]:
    """Writes the files of a backfill; returns (file, rows, events in the window) of each.

    A file has all rows of its users that the window needs: its events, and what carries state before them. So memory
    is bounded by a file, and the state of a user as of an event is known from the file alone. No position of live
    reading moves.

    Args:
        context: the process at work.
        backfill: without files.
        integration: that it belongs to.

    Raises:
        WarehouseUnavailable: the warehouse cannot be read; there is no file.
    """
    app_id = integration.app_id
    with compute(context.settings, share=2) as connection:
        with context.warehouse.open(connection, {app_id: None}) as source:
            for warning in source.warnings:
                context.log.warning("%s", warning)
            written: dict[str, int] = {}
            if source.head is not None:
                try:
                    # Of an id that was loaded several times the last row: live may be about to read it.
                    connection.execute(
                        "CREATE TEMP TABLE positions AS SELECT ? AS app_id, NULL::BIGINT AS frontier", [app_id]
                    )
                    connection.execute(f"CREATE TEMP VIEW keys AS SELECT * FROM {source.keys}")  # noqa: S608
                    connection.execute(candidates("max"))
                    create_buckets(connection, source, context.settings.segment_rows)
                    written = write_rows(context, connection, source, wanted=is_needed(backfill))
                except duckdb.IOException as error:
                    raise WarehouseUnavailable(f"cannot read {context.warehouse.name}: {one_line(error)}") from None
        chosen = f"{in_window(backfill)} AND {is_of(selected_types(backfill, integration))}"
        counted = []
        for name, rows in written.items():
            file = read_files([context.folder.path(name)], SEGMENT_SCHEMA)
            ((events,),) = connection.execute(f"SELECT count(*) FROM {file} WHERE {chosen}").fetchall()  # noqa: S608
            counted.append((name, rows, events))
    return counted
