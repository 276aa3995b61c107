"""The newest events of an app beside what an integration would post of them; nothing is posted or recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.stages.body_variants import variants_of
from nami_amp_pipeline.stages.prepare import compute_carefully
from nami_amp_pipeline.stages.prepare_inputs import PreparedSegment
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.storage.duckdb_engine import engine

Verdict = Literal["sent", "skipped", "refused", "waiting"]
"""What would become of an event: ``refused`` is a dead letter, ``waiting`` waits for the login of its user."""

VERDICTS: Final[tuple[Verdict, ...]] = ("sent", "skipped", "refused", "waiting")

LOOKED_AT: Final = 100
"""So many of the newest events are computed, to count what would become of them."""

_SEGMENTS: Final = 8
_USERS: Final = 20
_OF_STATE: Final[Mapping[str, Verdict]] = {
    "send": "sent",
    "skipped": "skipped",
    "dead": "refused",
    "waiting": "waiting",
}
_NOBODY: Final = -1
"""An integration's id that the store has nothing of: what was sent already changes nothing, and nobody waits."""


@dataclass(frozen=True)
class PreviewedEvent:
    """An event of Nami's, and what would be posted.

    Attributes:
        id: Nami's.
        event_type: Nami's.
        user_id: Nami's.
        created_date: in µs since the epoch.
        nami: its payload as JSON text, without the fields that never leave; None if there is none.
        amplitude: the event as it would be posted, as JSON text; None if it would not.
        verdict: see :data:`Verdict`.
        reason: why it would not be posted; empty if it would.
    """

    id: str
    event_type: str
    user_id: str
    created_date: int
    nami: str | None
    amplitude: str | None
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class NewestEvents:
    """The newest events of an app that an integration chooses.

    Attributes:
        events: some of them, the newest first.
        verdicts: how many of those that were looked at.
        reasons: the same by verdict and reason.
    """

    events: list[PreviewedEvent]
    verdicts: Mapping[Verdict, int]
    reasons: Mapping[tuple[Verdict, str], int]


def newest_events(
    context: Context,
    integration: Integration,
    *,
    event_type: str | None = None,
    user: str | None = None,
    verdict: Verdict | None = None,
    limit: int = 5,
) -> NewestEvents:
    """Computes what an integration would post of the newest events that were captured of its app.

    Args:
        context: the process at work.
        integration: its settings count, and not where it began or what it sent.
        event_type: only of this type; of all that it chooses without it.
        user: only of this user, by External ID or Nami's id.
        verdict: only of these are events shown.
        limit: so many events are shown.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    types = [name for name in integration.events if event_type in (None, name)]
    users = None if user is None else _users(context, integration.app_id, user)
    asking = replace(integration, id=_NOBODY, start_from=None, rereads=(), enabled=True, halted_reason=None)
    found: list[PreviewedEvent] = []
    left = LOOKED_AT
    for segment_id, file, snapshot_file in _segments(context, integration.app_id):
        rows = _rows(context, file, integration.app_id, types, users, left)
        if rows.num_rows:
            segment = PreparedSegment(segment_id, file, [snapshot_file], [asking], chosen=rows.select(["row"]))
            found += _computed(context, segment)
            left -= rows.num_rows
        if left <= 0:
            break
    found.sort(key=lambda event: (event.created_date, event.id), reverse=True)
    shown = [event for event in found if verdict in (None, event.verdict)][:limit]
    payloads = _payloads(context, integration, shown)
    return NewestEvents(
        [replace(event, nami=payloads.get(event.id)) for event in shown],
        Counter(event.verdict for event in found),
        Counter((event.verdict, event.reason) for event in found),
    )


def _segments(context: Context, app_id: str) -> list[tuple[int, str, str]]:
    """The newest segments with events of an app and their snapshots, the newest first."""
    parts, segments = tables.segment_apps, tables.segments
    query = (
        sa.select(parts.c.segment_id, segments.c.file, parts.c.snapshot_file)
        .join(segments, segments.c.id == parts.c.segment_id)
        .where(parts.c.app_id == app_id, parts.c.snapshot_file.is_not(None))
        .order_by(parts.c.segment_id.desc())
        .limit(_SEGMENTS)
    )
    with context.store.reading() as tx:
        rows = tx.execute(query).tuples().all()
    return [
        (segment_id, file, snapshots)
        for segment_id, file, snapshots in rows
        if context.folder.exists(file) and context.folder.exists(snapshots)
    ]


def _users(context: Context, app_id: str, asked: str) -> list[str]:
    """Nami's ids of a user."""
    table = tables.user_property_snapshots
    query = (
        sa.select(table.c.user_id)
        .where(table.c.app_id == app_id, sa.or_(table.c.external_id == asked, table.c.user_id == asked))
        .limit(_USERS)
    )
    with context.store.reading() as tx:
        return [*tx.execute(query).scalars(), asked]


def _rows(
    context: Context, file: str, app_id: str, types: Sequence[str], users: Sequence[str] | None, limit: int
) -> pa.Table:
    """The newest rows of a segment that are asked for, with their numbers in the column ``row``."""
    table = pq.read_table(context.folder.fetch(file), columns=["app_id", "event_type", "user_id", "created_date"])
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    wanted = pc.and_(
        pc.equal(table["app_id"], app_id), pc.is_in(table["event_type"], value_set=pa.array(types, pa.string()))
    )
    if users is not None:
        wanted = pc.and_(wanted, pc.is_in(table["user_id"], value_set=pa.array(users, pa.string())))
    return table.filter(wanted).sort_by([("created_date", "descending")]).slice(0, limit)


def _computed(context: Context, segment: PreparedSegment) -> list[PreviewedEvent]:
    """What stage 3 makes of the chosen rows of a segment."""
    found = []
    with engine(context.settings) as own:
        for computed in compute_carefully(context, segment, own):
            try:
                if any(part.rows for part in computed.parts.values()):
                    reader = context.folder.open_ipc(computed.file, mapped=False)
                    for number in range(reader.num_record_batches):
                        found += [_event(row) for row in reader.get_batch(number).to_pylist()]
                found += [
                    _event({**row, "body": None})
                    for part in computed.parts.values()
                    for row in part.exceptions
                    if row["state"] in ("dead", "waiting")
                ]
            finally:
                context.folder.remove(computed.file)
    unique = {event.id: event for event in found}
    return list(unique.values())


def _event(row: Mapping[str, Any]) -> PreviewedEvent:
    created = row["created_date"]
    verdict = _OF_STATE[row["state"]]
    return PreviewedEvent(
        id=row["id"] if "id" in row else row["event_id"],
        event_type=row["event_type"],
        user_id=row["user_id"],
        created_date=created if isinstance(created, int) else from_datetime(created),
        nami=None,
        amplitude=row["body"].removeprefix(",") if verdict == "sent" else None,
        verdict=verdict,
        reason="" if verdict == "sent" else row["reason"],
    )


def _payloads(context: Context, integration: Integration, events: Sequence[PreviewedEvent]) -> dict[str, str | None]:
    """The payloads of some events by id, without the fields that never leave."""
    hidden = variants_of([integration], context.cipher).of(integration.id)
    wanted = pa.array([event.id for event in events], pa.string())
    found: dict[str, str | None] = {}
    for _, file, _ in _segments(context, integration.app_id) if events else []:
        table = pq.read_table(
            context.folder.fetch(file),
            columns=["id", "payload"],
            filters=(pc.field("app_id") == integration.app_id) & pc.field("id").isin(wanted),
        )
        for event_id, payload in zip(table["id"].to_pylist(), table["payload"].to_pylist(), strict=True):
            found[event_id] = hidden.redacted(payload)
        if len(found) == len(events):
            break
    return found
