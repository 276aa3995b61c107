"""Outboxes as the third stage writes them, without the first three: thousands of histories of delivery alone."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.outbox import LANE_BATCH_ROWS
from nami_amp_pipeline.stages.outbox_writer import OUTBOX_SCHEMA
from nami_amp_pipeline.state import hourly_counts, tables


@dataclass(frozen=True)
class Event:
    """An event to post.

    Attributes:
        id: its insert_id.
        user: Amplitude user id, or None for a device alone.
        device: device id, or None.
        created: in ms since the epoch.
        size: of a text that it carries.
    """

    id: str
    user: str | None
    device: str | None
    created: int
    size: int

    @property
    def identity(self) -> str:
        return f"u:{self.user}" if self.user is not None else f"d:{self.device}"

    @property
    def body(self) -> str:
        fields: dict[str, object] = {"event_type": "e", "time": self.created, "insert_id": self.id}
        if self.user is not None:
            fields["user_id"] = self.user
        if self.device is not None:
            fields["device_id"] = self.device
        fields["event_properties"] = {"text": "x" * self.size}
        return "," + orjson.dumps(fields).decode()


def write_outbox(
    context: Context, integration_ids: Sequence[int], segment_id: int, events: Sequence[Event], lanes: int
) -> None:
    """Writes one outbox file for several integrations, each with all of the events, and makes it count."""
    by_lane: dict[int, list[Event]] = {}
    for event in sorted(events, key=lambda event: (event.created, event.id)):
        by_lane.setdefault(zlib.crc32(event.identity.encode()) % lanes, []).append(event)
    name = context.folder.new_name("outboxes", "arrow")
    parts: dict[int, list[tuple[int, int]]] = {}
    number = 0
    with context.folder.ipc(name, OUTBOX_SCHEMA) as writer:
        for integration_id in integration_ids:
            for lane in by_lane.values():
                parts.setdefault(integration_id, []).append((number, len(lane)))
                for start in range(0, len(lane), LANE_BATCH_ROWS):
                    writer.write_batch(_batch(lane[start : start + LANE_BATCH_ROWS]))
                    number += 1
    hour = hourly_counts.hour_of(context.now())
    context.folder.publish([name])
    with context.store.begin() as tx:
        for integration_id in integration_ids:
            key = tx.execute(
                sa.insert(tables.outboxes).values(
                    integration_id=integration_id,
                    segment_id=segment_id,
                    file=name,
                    rows=len(events),
                    prepared_at=context.now(),
                    run_id="simulation",
                    hour=hour,
                )
            ).inserted_primary_key
            assert key is not None
            rows = [
                {"outbox_id": key[0], "batch": first, "rows": rows, "next_row": 0, "attempt_end": 0}
                for first, rows in parts.get(integration_id, [])
            ]
            if rows:
                tx.execute(sa.insert(tables.lanes), rows)
            context.store.count(tx, integration_id, "captured", len(events))
            hourly_counts.add(context.store, tx, integration_id, {(hour, "e", "captured"): len(events)})


def _batch(events: Sequence[Event]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {
                "id": event.id,
                "event_type": "e",
                "user_id": event.user or "",
                "identity": event.identity,
                "created_date": event.created * 1000,
                "state": "send",
                "row": number,
                "body": event.body,
            }
            for number, event in enumerate(events)
        ],
        schema=OUTBOX_SCHEMA,
    )


def draw_events(rng: random.Random, outbox: int, count: int, users: int, hot: int) -> list[Event]:
    """Events of a few users, some of them without a user id, one of them perhaps with very many."""
    events = []
    for number in range(count + hot):
        person = 0 if number >= count else rng.randrange(users)
        kind = person % 4
        created = 1_789_000_000_000 + outbox * 10_000_000 + rng.randrange(1000) * 1000
        events.append(
            Event(
                f"o{outbox}-e{number}",
                None if kind == 3 else f"user{person}",
                f"device{person // 8 if kind == 1 else person}" if kind in (1, 3) else None,
                created,
                rng.choice((0, 10, 200)),
            )
        )
    return events
