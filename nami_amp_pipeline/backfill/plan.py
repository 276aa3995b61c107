"""The dry run of a backfill: counts of what it would send, before anything is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from nami_amp_pipeline.backfill.choice import STORED_TWICE, ComputedFile
from nami_amp_pipeline.backfill.kinds import KINDS, found_now
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.state import backfills, tables
from nami_amp_pipeline.state.backfills import Backfill
from nami_amp_pipeline.state.integration_rows import Integration

PREVIEWED: Final = 10

_USUAL_REQUEST_SECONDS: Final = 0.5
"""How long a request takes where no request of the integration is known."""


@dataclass
class Plan:
    """What a backfill would do.

    Attributes:
        found: by class (:data:`nami_amp_pipeline.backfill.choice.CLASSES`), how many events of the window.
        by_type: events that would be posted, by Nami's type.
        skipped, dead_letters: by reason, events of the window that would be given no request.
        users: users of Amplitude, or devices, that would get events.
        requests: that would be made, if none has to be repeated.
        bytes: of their events.
        seconds: about how long that would take.
        preview: the first few events as they would be posted, as JSON texts.
        digest: of the snapshots that an identify would send; 0 of a backfill, and of plans of older versions.
    """

    found: Counter[str] = field(default_factory=Counter)
    by_type: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    users: int = 0
    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0
    preview: list[str] = field(default_factory=list)
    digest: int = 0

    @property
    def events(self) -> int:
        """Events that would be posted."""
        return self.by_type.total()

    @property
    def stored_twice(self) -> int:
        """Events that Amplitude would store a second time, perhaps."""
        return sum(self.found[name] for name in STORED_TWICE)

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it."""
        return {
            "found": dict(self.found),
            "by_type": dict(sorted(self.by_type.items())),
            "skipped": dict(self.skipped),
            "dead_letters": dict(self.dead_letters),
            "users": self.users,
            "requests": self.requests,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "preview": self.preview,
            **({"digest": self.digest} if self.digest else {}),
        }

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`."""
        counted = ("found", "by_type", "skipped", "dead_letters")
        values: dict[str, Any] = {name: Counter(value) if name in counted else value for name, value in saved.items()}
        return Plan(**values)


def make_plan(context: Context, backfill: Backfill, integration: Integration) -> Plan:
    """Computes everything as a backfill would, file by file, and keeps only the counts.

    Args:
        context: the process at work.
        backfill: with its files, none of which is prepared.
        integration: that it belongs to.
    """
    with context.store.reading() as tx:
        files = backfills.files_of(tx, backfill.id)
    plan = Plan()
    for file in files:
        _add(context, plan, KINDS[backfill.kind].compute(context, backfill, file, integration))
    lanes = max(1, context.settings.max_lanes)
    plan.seconds = round(plan.requests * _request_seconds(context, integration) / lanes, 1)
    return plan


def _add(context: Context, plan: Plan, computed: ComputedFile) -> None:
    plan.found.update(computed.choice.found)
    plan.digest += computed.choice.digest
    for segment in computed.parts:
        for part in segment.parts.values():
            plan.skipped.update(part.done.skipped)
            plan.dead_letters.update(part.done.dead)
        if any(part.rows for part in segment.parts.values()):
            _add_outbox(context, plan, segment.file)
        for part in segment.parts.values():
            for lane in part.lanes:
                plan.requests += max(1, -(-lane.rows // context.settings.batch_events))
        context.folder.remove(segment.file)


def _add_outbox(context: Context, plan: Plan, file: str) -> None:
    reader = context.folder.open_ipc(file, mapped=False)
    users: list[pa.Array] = []
    for number in range(reader.num_record_batches):
        rows = reader.get_batch(number)
        rows = rows.filter(pc.equal(rows["state"], "send"))
        users.append(rows["identity"])
        plan.by_type.update(
            {entry["values"]: entry["counts"] for entry in rows["event_type"].value_counts().to_pylist()}
        )
        plan.bytes += pc.sum(pc.binary_length(rows["body"])).as_py() or 0
        wanted = PREVIEWED - len(plan.preview)
        plan.preview += [body[1:] for body in rows["body"].slice(0, wanted).to_pylist()]
    plan.users += len(pa.chunked_array(users, pa.string()).unique())


def _request_seconds(context: Context, integration: Integration) -> float:
    """How long a request of an integration took, of late."""
    table = tables.requests
    newest = (
        sa.select((table.c.answered_at - table.c.sent_at).label("took"))
        .where(table.c.integration_id == integration.id, table.c.outcome == "delivered")
        .order_by(table.c.id.desc())
        .limit(100)
        .subquery()
    )
    with context.store.reading() as tx:
        took = tx.execute(sa.select(sa.func.avg(newest.c.took))).scalar()
    return float(took) / 1e6 if took is not None else _USUAL_REQUEST_SECONDS


def moved_since(context: Context, backfill: Backfill, integration: Integration) -> list[str]:
    """What is not as it is in the saved plan, in words; nothing if the plan holds.

    Args:
        context: the process at work.
        backfill: with a plan, none of its files prepared.
        integration: that it belongs to, as it is now.
    """
    assert backfill.plan is not None
    plan = Plan.from_json(backfill.plan)
    was, (now, digest) = plan.found, found_now(context, backfill, integration)
    moved = [
        f"{name} {was[name]:,} then and {now[name]:,} now" for name in sorted({*was, *now}) if was[name] != now[name]
    ]
    if not moved and plan.digest and plan.digest != digest:
        moved = ["the snapshots of some users are other ones now"]
    return moved


def save_plan(context: Context, backfill: Backfill, plan: Plan) -> None:
    """Keeps a plan with its backfill."""
    with context.store.begin() as tx:
        backfills.note(tx, backfill.id, plan=orjson.dumps(plan.to_json()).decode())
