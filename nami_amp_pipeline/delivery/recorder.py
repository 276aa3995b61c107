"""Records the changes of channels under their leases, which renews their right to send."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.channel import Channel
from nami_amp_pipeline.delivery.store_changes import write
from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.state.store import Lease

STORE_PATIENCE_SECONDS = 60.0
"""How long answers wait to be recorded before the run ends."""

MARGIN_SECONDS = 0.25
"""The right to send ends this much early: a margin for clocks and for the timer that ends a stopped process."""


@dataclass
class _Written:
    """A transaction that was tried.

    Attributes:
        lost: ids of the channels whose lease belongs to another process.
        begun: the monotonic time before it began, in seconds.
        commits: the number of this transaction, from a lease that it renewed; None before that.
    """

    lost: set[int] = field(default_factory=set)
    begun: float = 0.0
    commits: tuple[Lease, int] | None = None


class Recorder:
    """See the module's docstring.

    A request may be sent until its channel's ``send_until``: the time before the transaction that last prolonged its
    lease began, plus the lease, minus the time that a request may take. So a request that is sent in time has ended
    before another process can take the lease.

    Args:
        context: the process at work.
        leases: by channel id.
        channels: the channels to record; the caller removes channels whose lease is lost.
        now: µs since the epoch, never going back.
    """

    def __init__(
        self,
        context: Context,
        leases: Mapping[int, Lease],
        channels: Mapping[int, Channel],
        now: Callable[[], int],
    ) -> None:
        self._context = context
        self._leases = leases
        self._channels = channels
        self._now = now
        self._changed: dict[int, Channel] = {}
        self._lease_micros = int(context.settings.lease_seconds * 1e6)
        settings = context.settings
        self._right_seconds = settings.lease_seconds - settings.http_timeout_seconds - MARGIN_SECONDS
        self._renewed_at = now()

    @property
    def changed(self) -> list[Channel]:
        """The channels with changes to record or a lease to renew."""
        return list(self._changed.values())

    def note(self, channel: Channel) -> None:
        """A channel has changed."""
        self._changed[channel.id] = channel

    def forget(self, channel_id: int) -> None:
        """A channel is given up."""
        self._changed.pop(channel_id, None)

    def renew(self, now: int) -> None:
        """Marks all leases that are due for renewal, also of idle channels: this process still works for them."""
        if now - self._renewed_at >= self._lease_micros // 4:
            self._changed.update(self._channels)

    def renew_for(self, channel: Channel) -> bool:
        """Marks a channel's lease for renewal if its right to send has expired; returns whether it has."""
        if self._context.monotonic() <= channel.send_until:
            return False
        self.note(channel)
        return True

    def commit(self) -> list[int]:
        """Records the changes; returns the ids of the channels whose lease is lost.

        Raises:
            StoreUnavailable: the store has been unavailable for too long.
        """
        if not self._changed:
            return []
        changed = self.changed
        is_whole = len(changed) == len(self._channels)
        began_at = self._now()
        written = self._write(changed, began_at)
        for channel in changed:
            channel.changes.clear()
            if channel.id not in written.lost:
                channel.send_until = written.begun + self._right_seconds
        self._changed.clear()
        if is_whole:
            self._renewed_at = began_at
        self._context.step("deliver.committed")
        return sorted(written.lost)

    def _write(self, changed: Sequence[Channel], began_at: int) -> _Written:
        context = self._context
        tried = _Written()
        while True:
            context.step("deliver.commit")
            try:
                if tried.commits is not None and context.store.commits(tried.commits[0]) == tried.commits[1]:
                    return tried  # it went through all the same: the connection was lost just then
                tried = _Written(begun=context.monotonic())
                with context.store.begin() as tx:
                    of = {self._leases[channel.id]: channel for channel in changed}
                    renewed = context.store.prolong(tx, list(of))
                    tried.lost = {of[lease].id for lease in renewed.lost}
                    tried.commits = next(iter(renewed.commits.items()), None)
                    ours = [channel.changes for channel in changed if channel.id not in tried.lost]
                    write(context.store, tx, [changes for changes in ours if changes])
                return tried
            except StoreUnavailable:
                # Nothing may be posted before this is recorded; what was answered meanwhile waits in memory.
                if self._now() - began_at > STORE_PATIENCE_SECONDS * 1e6:
                    raise
                context.log.warning("the state store cannot be written; trying again")
                context.sleep(1.0)
