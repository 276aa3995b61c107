"""Opens the channels of a delivery run from the store, and turns them to their next outbox."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
from nami_amp_pipeline.state.among import among
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.state.projects import Projects
from nami_amp_pipeline.state.rows_aside import rows_aside
from nami_amp_pipeline.state.store import Transaction

_LONGEST_PAUSE = 2 * 3_600_000_000
"""A longer pause was noted by a clock that was ahead, and is ignored."""


@dataclass(frozen=True)
class _Next:
    """An outbox that a channel has not turned to yet: its row, those of its lanes, and by lane those aside."""

    box: Any
    lanes: Sequence[Any]
    taken: Mapping[int, set[int]]


@dataclass
class _Waiting:
    """What waits of an integration: identities with held events, and until when each is paused (µs since the epoch).

    Attributes:
        identities: of the held events.
        until: by identity; the empty one is the whole integration.
        refused_alone: see :func:`_refused_alone`.
    """

    identities: list[str] = field(default_factory=list)
    until: dict[str, int] = field(default_factory=dict)
    refused_alone: list[tuple[int | None, int]] = field(default_factory=list)


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
        self._paused: dict[tuple[str, str], int] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._destinations = destinations
        self._rng = rng
        self.shelf = OutboxCache(partial(context.folder.open_ipc, mapped=False))
        self._last: dict[int, int] = {}
        self._next: dict[int, _Next | None] = {}

    def pending(self, integrations: Collection[int]) -> set[int]:
        """Those of these integrations with an unfinished outbox or held events; what :meth:`open` needs is read too."""
        boxes, exceptions, pauses = tables.outboxes, tables.exceptions, tables.pauses
        now = self._context.now()
        with self._context.store.reading() as tx:
            open_boxes = sa.select(boxes.c.integration_id).where(boxes.c.done_at.is_(None)).distinct()
            ids = set(tx.execute(open_boxes).scalars())
            held = sa.select(exceptions.c.integration_id).where(exceptions.c.state == "held").distinct()
            ids |= set(tx.execute(held).scalars())
            ids &= set(integrations)
            self._waiting = {integration_id: _Waiting() for integration_id in ids}
            mine = self._among(exceptions.c.integration_id, ids)
            identities = sa.select(exceptions.c.integration_id, exceptions.c.identity).distinct()
            for integration_id, identity in tx.execute(identities.where(mine, exceptions.c.state == "held")):
                self._waiting[integration_id].identities.append(identity)
            paused = sa.select(pauses.c.integration_id, pauses.c.identity, pauses.c.until)
            for integration_id, identity, until in self._rows(tx, paused, pauses.c.integration_id, ids):
                self._waiting[integration_id].until[identity] = until
            refused = sa.select(exceptions.c.integration_id).distinct()
            is_refused = sa.and_(exceptions.c.state == "dead", exceptions.c.reason == FORBIDDEN)
            for integration_id in tx.execute(refused.where(mine, is_refused)).scalars().all():
                self._waiting[integration_id].refused_alone = _refused_alone(tx, integration_id)
            # Once in a run: there are few, and each run reads them for all its channels.
            self._paused = self._projects.pauses(tx, now)
        return ids

    def open(self, integration: Integration) -> Channel:
        """The channel of an integration that :meth:`pending` has returned, with its held events.

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
        now, waiting = context.now(), self._waiting[integration.id]
        channel.refused_alone = waiting.refused_alone
        for identity in waiting.identities:
            channel.held.wait(identity, _sane(waiting.until.get(identity, now), now))
        channel.rate.pause(_sane(max(waiting.until.get("", 0), self._paused.get(project, 0)), now))
        return channel

    def look_ahead(self, channels: Sequence[Channel]) -> None:
        """Reads the next outboxes of channels in one transaction; :meth:`load_next` takes them from there.

        Raises:
            StoreUnavailable: the store cannot be read.
        """
        boxes, lanes = tables.outboxes, tables.lanes
        behind = {channel.id: self._last.get(channel.id, 0) for channel in channels}
        with self._context.store.reading() as tx:
            still_open = (
                sa.select(boxes.c.integration_id, boxes.c.id)
                .where(boxes.c.done_at.is_(None), boxes.c.id > min(behind.values(), default=0))
                .where(self._among(boxes.c.integration_id, behind))
                .order_by(boxes.c.id)
            )
            following: dict[int, int] = {}
            for channel_id, outbox_id in tx.execute(still_open):
                if outbox_id > behind[channel_id]:
                    following.setdefault(channel_id, outbox_id)
            found = {
                box.integration_id: box for box in self._rows(tx, sa.select(boxes), boxes.c.id, following.values())
            }
            rows: dict[int, list[Any]] = {box.id: [] for box in found.values()}
            for row in self._rows(tx, sa.select(lanes).order_by(lanes.c.id), lanes.c.outbox_id, rows):
                rows[row.outbox_id].append(row)
            taken = rows_aside(tx, self._among(lanes.c.outbox_id, rows)) if rows else {}
        for channel in channels:
            box = found.get(channel.id)
            self._next[channel.id] = None if box is None else _Next(box, rows[box.id], taken)

    def _among(self, column: sa.Column[Any], ids: Iterable[int]) -> sa.ColumnElement[bool]:
        return among(self._context.store, column, ids)

    def _rows(
        self, tx: Transaction, query: sa.Select[Any], column: sa.Column[Any], ids: Collection[int]
    ) -> Sequence[Any]:
        return tx.execute(query.where(self._among(column, ids))).all() if ids else ()

    def load_next(self, channel: Channel) -> bool:
        """Turns a channel to its oldest unfinished outbox; False if there is none.

        Outboxes before the current outbox are done; their receipts may still be under way.

        Raises:
            Blocked: the outbox file cannot be read.
        """
        channel.unload()
        is_fresh = channel.id not in self._next
        if is_fresh:
            self.look_ahead([channel])
        found = self._next.pop(channel.id)
        if found is None:
            return False
        box, rows = found.box, found.lanes
        try:
            if any(row.next_row < row.rows for row in rows):
                self.shelf.batch(box.file, rows[0].batch)
        except (OSError, pa.ArrowException) as error:
            if not is_fresh:  # another process may have taken over since, and finished it
                return self.load_next(channel)
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
                    taken=found.taken.get(row.id, set()),
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
        with self._context.store.reading() as tx:
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
