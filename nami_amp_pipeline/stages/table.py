"""All stages, in the order in which an event passes them. Whatever is done for each stage is a loop over this table.

Assets, ops, the order of the job, descriptions, columns, the facts of a page and the removal of unused files come from
these entries, so a new stage is one more entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.receipts import RECEIPT_SCHEMA
from nami_amp_pipeline.stages.capture import capture
from nami_amp_pipeline.stages.deliver import Means, deliver
from nami_amp_pipeline.stages.facts import (
    describe_captured,
    describe_delivered,
    describe_prepared,
    describe_snapshotted,
)
from nami_amp_pipeline.stages.idle import lacking_snapshots, to_deliver, to_prepare
from nami_amp_pipeline.stages.older_counts import count_older
from nami_amp_pipeline.stages.outbox_writer import OUTBOX_SCHEMA
from nami_amp_pipeline.stages.prepare import prepare
from nami_amp_pipeline.stages.snapshot_sql import snapshot_schema
from nami_amp_pipeline.stages.snapshots import snapshot
from nami_amp_pipeline.stages.stage import References, Run, Stage, Stop
from nami_amp_pipeline.stages.waiting import expire_waiting
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Lease
from nami_amp_pipeline.storage.segment_writer import SEGMENT_SCHEMA


def _capture(
    context: Context, _apps: Sequence[str], leases: Mapping[str, Lease], window: Window | None, _stop: Stop
) -> Mapping[str, Any]:
    return capture(context, leases, window=window)


def _snapshot(
    context: Context, _apps: Sequence[str], leases: Mapping[str, Lease], window: Window | None, _stop: Stop
) -> Mapping[str, Any]:
    return snapshot(context, leases, window=window)


def _prepare(
    context: Context, some: Sequence[Integration], leases: Mapping[int, Lease], window: Window | None, _stop: Stop
) -> Mapping[int, Any]:
    expire_waiting(context, leases)
    count_older(context, leases)
    return prepare(context, some, leases, window=window)


def delivering(**options: Any) -> Run:
    """Stage 4 with :class:`nami_amp_pipeline.stages.deliver.Means` of its own, such as a wire."""

    def run(
        context: Context, some: Sequence[Integration], leases: Mapping[int, Lease], window: Window | None, stop: Stop
    ) -> Mapping[int, Any]:
        return deliver(context, some, leases, Means(stop=stop, **options), window=window)

    return run


def _named_in(column: sa.Column[Any], *conditions: sa.ColumnElement[bool]) -> References:
    return lambda names: sa.select(column).where(column.in_(names), *conditions)


def _segments_or_backfills(names: Sequence[str]) -> sa.Select[tuple[str]]:
    """A backfill's files are of the same kind; each is needed until its outbox is written."""
    files, backfills = tables.backfill_files, tables.backfills
    ended = sa.select(backfills.c.id).where(backfills.c.ended_at.is_not(None))
    segments = _named_in(tables.segments.c.file)(names)
    of_backfills = _named_in(files.c.file, files.c.prepared_at.is_(None), files.c.backfill_id.not_in(ended))(names)
    return sa.select(sa.union_all(segments, of_backfills).subquery().c.file)


_ASKED: Final = (("nami_events", "user_id"), ("nami_events", "created_date"))
"""What an enrichment is asked about, as far as anybody but itself knows."""


def _same(asset: str, *columns: str) -> dict[str, tuple[tuple[str, str], ...]]:
    return {column: ((asset, column),) for column in columns}


CAPTURE: Final = Stage(
    asset="nami_events",
    op="capture",
    per="app",
    upstream=(),
    run=_capture,
    describe=describe_captured,
    summary="Copies new rows of the warehouse into segments. If the warehouse cannot be read, the steps after this one "
    "still deliver what was captured earlier, and the run fails at its end.",
    description="""
New rows of the warehouse table, copied once into immutable Parquet segments. **Partition:** the Nami app.

- Rows are read in order of `ingested_at`; one that becomes visible late (up to `NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS`)
  is still read, once. The same id loaded again is not captured again.
- **Nothing new although there are new rows?** The app needs an integration that is switched on:
  `nami-amp integrations list`.
- **Fails?** The message says what is wrong with the warehouse. Nothing is lost: the next run reads the same rows again.
- Running it again is always safe.
""",
    kinds=frozenset({"duckdb", "parquet"}),
    schema=SEGMENT_SCHEMA,
    files={
        "segments": _segments_or_backfills,
        "ledger": _named_in(tables.captured_ids.c.file),
    },
)

SNAPSHOTS: Final = Stage(
    asset="user_property_snapshots",
    op="snapshot",
    per="app",
    upstream=("nami_events",),
    run=_snapshot,
    describe=describe_snapshotted,
    summary="Computes the state of each user as of each new event.",
    description="""
The state of each user as of each of their `user.*` events: entitlements, SKUs, devices, journey flags.
**Partition:** the Nami app.

- If an event lacks a group, the group comes from the user's newest earlier event that carries it. An event that arrives
  late never moves the current state back.
- `truncated_arrays` counts arrays cut to the 1,024 characters that Amplitude keeps.
- The current state of every user is the table `user_property_snapshots` of the state store.
- Running it again is always safe.
""",
    kinds=frozenset({"duckdb", "parquet"}),
    schema=snapshot_schema(),
    lineage={
        **_same("nami_events", "app_id", "id", "user_id", "created_date"),
        **dict.fromkeys(
            (prop.name for prop in contract.PROPERTIES if prop.group != contract.ENRICHED),
            (("nami_events", "payload"),),
        ),
        **dict.fromkeys((prop.name for each in contract.ENRICHMENTS for prop in each.declared), _ASKED),
    },
    with_work=lacking_snapshots,
    files={"snapshots": _named_in(tables.segment_apps.c.snapshot_file)},
)

PREPARE: Final = Stage(
    asset="amplitude_events",
    op="prepare",
    per="integration",
    upstream=("nami_events", "user_property_snapshots"),
    run=_prepare,
    describe=describe_prepared,
    summary="Writes the events as they will be posted.",
    description="""
The events exactly as they will be posted: one outbox per segment. **Partition:** `<app_id>|<integration>`.

- From here on nothing is computed again: a repeat is the same bytes, with the same `insert_id`.
- **Skipped** events are left out on purpose, mostly because their user has no External ID yet (setting `anonymous`).
  **Dead letters** are malformed, or carry an id that Amplitude reserves: `nami-amp dead-letters list`.
- A partition whose integration does not exist does nothing.
- Running it again is always safe.
""",
    kinds=frozenset({"duckdb", "arrow"}),
    schema=OUTBOX_SCHEMA,
    lineage={
        **_same("nami_events", "id", "event_type", "user_id", "created_date"),
        "identity": (("nami_events", "user_id"), ("nami_events", "payload")),
        "body": (
            ("nami_events", "payload"),
            *(("user_property_snapshots", prop.name) for prop in contract.PROPERTIES),
        ),
    },
    with_work=to_prepare,
    # Once all its integrations are done the file of an outbox is not needed, though its rows are.
    files={"outboxes": _named_in(tables.outboxes.c.file, tables.outboxes.c.done_at.is_(None))},
)

DELIVER: Final = Stage(
    asset="amplitude_deliveries",
    op="upload",
    per="integration",
    upstream=("amplitude_events",),
    run=delivering(),
    describe=describe_delivered,
    summary="Posts events to Amplitude and records every answer. Fails if an integration has an error, after all "
    "others were delivered.",
    description="""
Posted to Amplitude, with a receipt for each event. **Partition:** `<app_id>|<integration>`.

- **A partition fails** when its API key is wrong, its region is down, or a user is throttled for longer than a run
  waits (`NAMI_AMP_RUN_RETRY_SECONDS`). Others are not affected, nothing is lost, and the next run continues.
- **Halted** by a wrong key: the check `not_halted` of the partition says why and what to do. Set the right key
  with `nami-amp integrations update APP/NAME`, then `nami-amp integrations enable APP/NAME`.
- **Where is one event?** `nami-amp trace EVENT_ID`. **What was rejected?** `nami-amp dead-letters list`.
  **Where are all events?** `nami-amp status`.
- *Terminate* is safe: requests under way are finished and recorded.
- Running it again is always safe: each event is sent once, and repeats carry the same `insert_id`.
""",
    kinds=frozenset({"amplitude", "parquet"}),
    schema=RECEIPT_SCHEMA,
    lineage=_same("amplitude_events", "id", "event_type", "user_id", "identity", "created_date", "state", "reason"),
    with_work=to_deliver,
    files={"receipts": _named_in(tables.outboxes.c.receipts_file)},
    finishes_events=True,
    is_stoppable=True,
    renews_leases=True,  # its right to send begins with the renewal, which no other thread may make
)

STAGES: Final = (CAPTURE, SNAPSHOTS, PREPARE, DELIVER)
