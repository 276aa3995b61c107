"""Opens the channels of a delivery run from the store, and turns them to their next outbox."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial

import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.attempt import Limits
from nami_amp_pipeline.delivery.channel import FORBIDDEN_IN_A_ROW, Channel
from nami_amp_pipeline.delivery.destination import FORBIDDEN, Destination, Target
from nami_amp_pipeline.delivery.held_queue import HeldEvent
from nami_amp_pipeline.delivery.lane import Lane
from nami_amp_pipeline.delivery.outbox import OutboxCache
from nami_amp_pipeline.delivery.rate_limit import ProjectRates
from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.state import own_fields, tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.projects import Projects
from nami_amp_pipeline.state.rows_aside import rows_aside
from nami_amp_pipeline.state.store import Transaction

_LONGEST_PAUSE = 2 * 3_600_000_000
"""A longer pause was noted by a clock that was ahead, and is ignored."""


class ChannelLoader:
    """Reads pending work from the store.

    Args:
        context: the process at work.
        rng: for the jitter of the channels.
        destinations: by name.
        rates: of the projects, for all runs of the process that share them.
    """

    def __init__(
        self,
        context: Context,
        rng: random.Random,
        destinations: Mapping[str, Destination],
        rates: ProjectRates | None = None,
    ) -> None:
        self._context = context
        self._rates = rates or ProjectRates()
        self._rates.begin(context.now())
        self._projects = Projects(context.cipher)
        self._paused: dict[tuple[str, str], int] | None = None
        self._destinations = destinations
        self._rng = rng
        self.shelf = OutboxCache(partial(context.folder.open_ipc, mapped=False))
        self._last: dict[int, int] = {}

    def pending(self) -> set[int]:
        """The integrations with an unfinished outbox or held events."""
        boxes, exceptions = tables.outboxes, tables.exceptions
        with self._context.store.begin() as tx:
            open_boxes = sa.select(boxes.c.integration_id).where(boxes.c.done_at.is_(None)).distinct()
            ids = set(tx.execute(open_boxes).scalars())
            held = sa.select(exceptions.c.integration_id).where(exceptions.c.state == "held").distinct()
            return ids | set(tx.execute(held).scalars())

    def open(self, integration: Integration) -> Channel:
        """The channel of an integration, with its held events.

        Raises:
            Misconfigured: its API key cannot be decrypted, its destination is unknown, or lacks a field.
        """
        context = self._context
        destination = self._destinations.get(integration.destination)
        if destination is None:
            raise Misconfigured(f"{integration.key}: unknown destination {integration.destination!r}")
        secrets = tuple(own_fields.secrets_of(destination, integration, context.cipher).values())
        destination = own_fields.as_set(integration, context.cipher, destination)
        api_key = context.cipher.decrypt(integration.api_key)
        target = Target(destination, integration.endpoint, api_key, secrets)
        project = integration.endpoint, self._projects.of(api_key)
        channel = Channel(
            integration.id,
            target,
            self.shelf,
            lambda identity, most: self._held(integration.id, identity, most),
            limits=Limits(context.settings.batch_events, context.settings.batch_bytes, context.settings.max_lanes),
            run_id=context.run_id,
            rng=self._rng,
            rate=self._rates.of(*project, target.limits.events_per_second),
        )
        table, pauses = tables.exceptions, tables.pauses
        now = context.now()
        with context.store.begin() as tx:
            held = sa.and_(table.c.integration_id == integration.id, table.c.state == "held")
            identities = tx.execute(sa.select(table.c.identity).where(held).distinct()).scalars().all()
            until = dict(
                tx.execute(
                    sa.select(pauses.c.identity, pauses.c.until).where(pauses.c.integration_id == integration.id)
                )
                .tuples()
                .all()
            )
            if self._paused is None:  # once in a run: there are few, and each run reads them for all its channels
                self._paused = self._projects.pauses(tx, now)
            channel.refused_alone = _refused_alone(tx, integration.id)
        for identity in identities:
            channel.held.wait(identity, _sane(until.get(identity, now), now))
        channel.rate.pause(_sane(max(until.get("", 0), self._paused.get(project, 0)), now))
        return channel

    def load_next(self, channel: Channel) -> bool:
        """Turns a channel to its oldest unfinished outbox; False if there is none.

        Outboxes before the current outbox are done; their receipts may still be under way.

        Raises:
            Blocked: the outbox file cannot be read.
        """
        boxes, lanes = tables.outboxes, tables.lanes
        channel.unload()
        with self._context.store.begin() as tx:
            box = tx.execute(
                sa.select(boxes)
                .where(
                    boxes.c.integration_id == channel.id,
                    boxes.c.done_at.is_(None),
                    boxes.c.id > self._last.get(channel.id, 0),
                )
                .order_by(boxes.c.id)
                .limit(1)
            ).one_or_none()
            if box is None:
                return False
            rows = tx.execute(sa.select(lanes).where(lanes.c.outbox_id == box.id).order_by(lanes.c.id)).all()
            taken = rows_aside(tx, lanes.c.outbox_id == box.id)
        try:
            if any(row.next_row < row.rows for row in rows):
                self.shelf.batch(box.file, rows[0].batch)
        except (OSError, pa.ArrowException) as error:
            raise Blocked(
                f"outbox {box.file} cannot be read: {type(error).__name__}; 'nami-amp repair' rebuilds a lost outbox"
            ) from None
        self._last[channel.id] = box.id
        channel.load(
            box.id,
            box.segment_id,
            box.file,
            [
                Lane(
                    row.id,
                    row.batch,
                    row.rows,
                    row.next_row,
                    row.attempt_end,
                    row.unknown_since,
                    taken=taken.get(row.id, set()),
                )
                for row in rows
            ],
            box.hour,
        )
        return True

    def _held(self, integration_id: int, identity: str, most: int) -> Sequence[HeldEvent]:
        table = tables.exceptions
        event_id = table.c.event_id if self._context.store.is_sqlite else sa.collate(table.c.event_id, "C")
        query = (
            sa.select(table.c.id, table.c.identity, table.c.body, table.c.unknown_since)
            .where(table.c.integration_id == integration_id, table.c.state == "held", table.c.identity == identity)
            .order_by(table.c.created_date, event_id)
            .limit(most)
        )
        with self._context.store.begin() as tx:
            return [
                HeldEvent(row.id, row.identity, (row.body or "").encode().removeprefix(b","), row.unknown_since)
                for row in tx.execute(query)
            ]


def _refused_alone(tx: Transaction, integration_id: int) -> list[tuple[int | None, int]]:
    """The places of the single events that were refused with 403 since the last delivery, oldest first."""
    table, requests = tables.exceptions, tables.requests
    rows = tx.execute(
        sa.select(table.c.id, table.c.request_id)
        .where(table.c.integration_id == integration_id, table.c.state == "dead", table.c.reason == FORBIDDEN)
        .order_by(table.c.id.desc())
        .limit(FORBIDDEN_IN_A_ROW - 1)
    ).all()
    if not rows:
        return []
    delivered = tx.execute(
        sa.select(sa.func.max(requests.c.id)).where(
            requests.c.integration_id == integration_id, requests.c.outcome == "delivered"
        )
    ).scalar()
    return [(None, row.id) for row in reversed(rows) if (row.request_id or 0) > (delivered or 0)]


def _sane(until: int, now: int) -> int:
    return until if until <= now + _LONGEST_PAUSE else now
