"""Turns channels from a done outbox to the next, with patience while store or files are unavailable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from nami_amp_pipeline.delivery.channel import Channel
from nami_amp_pipeline.delivery.outbox_finisher import TRY_AGAIN_MICROS, OutboxFinisher
from nami_amp_pipeline.errors import FilesUnavailable, StoreUnavailable


class Loader(Protocol):
    """Gives channels their next outboxes."""

    def look_ahead(self, channels: Sequence[Channel]) -> None:
        """Reads the next outboxes of many channels at once."""

    def load_next(self, channel: Channel) -> bool:
        """Turns a channel to its next outbox; False if there is none."""


class OutboxTurner:
    """See the module's docstring.

    Args:
        loader: gives channels their next outboxes.
        finishing: where outboxes that are done are finished.
        patience: how long it keeps trying while store or files are unavailable, in µs.
    """

    def __init__(self, loader: Loader, finishing: OutboxFinisher, patience: int) -> None:
        self._loader = loader
        self._finishing = finishing
        self._patience = patience
        self._again_at: dict[int, int] = {}
        self._away_since: dict[int, int] = {}

    def is_due(self, channel: Channel) -> bool:
        """Whether its outbox is done, or could not be exchanged because the store was unavailable."""
        return channel.outbox_done or channel.id in self._again_at

    def overdue(self, now: int) -> list[int]:
        """The channels to retry now."""
        return [channel_id for channel_id, at in self._again_at.items() if at <= now]

    def next_at(self, channels: Collection[int]) -> int | None:
        """When to retry one of these channels, in µs since the epoch."""
        return min((at for channel_id, at in self._again_at.items() if channel_id in channels), default=None)

    def look_ahead(self, channels: Sequence[Channel]) -> None:
        """Reads what :meth:`turn` needs for all of these channels; what cannot be read now is read then."""
        turning = [channel for channel in channels if channel.outbox_id is None or channel.outbox_done]
        if len(turning) > 1:
            with suppress(StoreUnavailable):
                self._loader.look_ahead(turning)

    def turn(self, channel: Channel, now: int) -> None:
        """Starts the receipts of a done outbox, and turns the channel to the next outbox.

        Raises:
            NamiAmpError: it failed for good; while store or files are unavailable, it is retried for a while.
        """
        self._again_at.pop(channel.id, None)
        try:
            while channel.outbox_id is None or channel.outbox_done:
                if channel.outbox_id is not None:
                    self._finishing.start(channel.id, channel.outbox_id, now)
                if not self._loader.load_next(channel):
                    return
        except (StoreUnavailable, FilesUnavailable) as error:
            if now - self._away_since.setdefault(channel.id, now) < self._patience:
                self._again_at[channel.id] = now + TRY_AGAIN_MICROS
            elif isinstance(error, FilesUnavailable):  # of the store, the run ends by itself
                raise
        else:
            self._away_since.pop(channel.id, None)
