"""Sends again what Amplitude does not hold: as held events, which the next run posts like all others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline.clock import from_datetime
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Busy
from nami_amp_pipeline.reconciliation import MISSING
from nami_amp_pipeline.reconciliation.day import Difference
from nami_amp_pipeline.stages.rebuild import events_again
from nami_amp_pipeline.state import hourly_counts, live_first, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.store import Transaction

OPEN: Final = "their outbox is still being delivered: repair when the run has ended"
GONE: Final = (
    "their rows are not in the data folder any more ('nami-amp backfill' with --resend sends their window again), or "
    "the integration does not send them any more"
)
ALREADY: Final = "they have been sent again since, or wait for it"

_AT_ONCE: Final = 500


@dataclass
class Repaired:
    """The result of a repair.

    Attributes:
        events: how many the next run sends.
        refused: how many it does not send, by cause.
    """

    events: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def send_again(context: Context, integration: Integration, missing: Sequence[Difference]) -> Repaired:
    """Holds missing events for the next run, with the same insert ids.

    Each is looked at again in the transaction that holds it: what was sent again since the comparison is left alone, so
    that this can be repeated, or killed and begun again.

    Args:
        context: the process at work.
        integration: whose events.
        missing: of a comparison.

    Raises:
        Busy: a run delivers for the integration.
        Blocked: a file cannot be read.
    """
    done = Repaired()
    chosen = {event.event_id: event for event in missing if not event.is_open}
    done.refused[OPEN] = len(missing) - len(chosen)
    leases = live_first.acquire(context.store, [f"{live_first.INTEGRATION}{integration.id}"])
    if not leases:
        raise Busy(f"a run is delivering for {integration.key}: repair when the run has ended")
    try:
        seen = 0
        for segment_id, events in events_again(
            context, integration, {event_id: event.segment_id for event_id, event in chosen.items()}
        ):
            seen += events.num_rows
            for start in range(0, events.num_rows, _AT_ONCE):
                rows = events.slice(start, _AT_ONCE).to_pylist()
                context.step("reconcile.repair")
                with context.store.begin(under=leases.values()) as tx:
                    held = _hold(context, tx, integration, segment_id, rows, chosen)
                context.step("reconcile.repaired")
                done.events += held
                done.refused[ALREADY] += len(rows) - held
        done.refused[GONE] = len(chosen) - seen
    finally:
        context.store.release(leases.values())
    done.refused = +done.refused
    return done


def _hold(
    context: Context,
    tx: Transaction,
    integration: Integration,
    segment_id: int,
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Difference],
) -> int:
    """Holds those of some events that are still as they were compared; returns how many."""
    table, now = tables.exceptions, context.now()
    ids = [row["id"] for row in rows]
    mine = sa.and_(table.c.integration_id == integration.id, table.c.event_id.in_(ids))
    known = {row.event_id: row for row in tx.execute(sa.select(table).where(mine))}
    boxes = tables.outboxes
    box = sa.select(sa.func.max(boxes.c.hour)).where(
        boxes.c.integration_id == integration.id, boxes.c.segment_id == segment_id
    )
    hour = tx.execute(box).scalar()
    held = 0
    taken_back: hourly_counts.Tally = Counter()
    for row in rows:
        before, compared = known.get(row["id"]), chosen[row["id"]]
        values = {
            "state": "held",
            "reason": MISSING,
            "body": row["body"],
            "identity": row["identity"],
            "unknown_since": None,  # the export proves that it is absent: delivery must not give it up for its age
            "first_sent_at": compared.delivered_at,
            "at": now,
            "run_id": context.run_id,
        }
        if before is None:
            same = {
                "integration_id": integration.id,
                "event_id": row["id"],
                "event_type": row["event_type"],
                "user_id": row["user_id"],
                "created_date": from_datetime(row["created_date"]),
                "segment_id": segment_id,
                "hour": hour,
            }
            tx.execute(sa.insert(table).values(**same, **values))
        elif before.state == "delivered" and _delivered_at(tx, before) == compared.delivered_at:
            tx.execute(sa.update(table).where(table.c.id == before.id).values(**values))
        else:
            continue
        held += 1
        counted_in = hour if before is None else before.hour
        if counted_in is not None:
            taken_back[counted_in, row["event_type"], "delivered"] -= 1
    context.store.count(tx, integration.id, "delivered", -held)
    hourly_counts.add(context.store, tx, integration.id, taken_back)
    return held


def _delivered_at(tx: Transaction, row: Any) -> int:
    requests = tables.requests
    answered = tx.execute(sa.select(requests.c.answered_at).where(requests.c.id == row.request_id)).scalar()
    return int(row.at if answered is None else answered)
