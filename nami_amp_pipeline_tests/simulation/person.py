"""What people and live delivery do to a backfill or an identify at any step of it: a cancel, a wish for its lease."""

from __future__ import annotations

from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.state import backfills, live_first
from nami_amp_pipeline_tests.simulation.world import World

GRACE_SECONDS = 0.25
"""So long after a cancel or a wish a request may still start: it is looked for every 100 ms."""

_WISH_SECONDS = 30.0


class Person:
    """Comes in between, and remembers what must not happen from then on.

    Args:
        world: around the process.
        integration_id: whose backfill or identify it is.
    """

    def __init__(self, world: World, integration_id: int) -> None:
        self._world = world
        self._integration_id = integration_id
        self._cancelled_at: float | None = None
        self._wished: tuple[float, float] | None = None

    def cancels(self, number: int) -> None:
        """Cancels it; whoever works on it notices later."""
        self._cancelled_at = self._world.time.true
        with self._world.outside.store.begin() as tx:
            backfills.move(self._world.outside.store, tx, number, "cancelled")
        self._world.facts.met["cancelled"] += 1

    def begins_anew(self) -> None:
        """Another one is under way."""
        self._cancelled_at = None

    def wishes(self) -> None:
        """Live delivery wants the lease, for a while; it gets it only if the process gives it up."""
        store, now = self._world.outside.store, self._world.time.true
        name = f"{live_first.WISH}{self._integration_id}"
        taken = store.acquire([name])
        if not taken:
            return
        self._wished = now, now + _WISH_SECONDS
        self._world.facts.met["live wants the lease"] += 1

        def release() -> None:
            try:
                store.release(taken.values())
            except NamiAmpError:  # it ran out meanwhile
                return

        self._world.network.at(now + _WISH_SECONDS, release)

    def sees_a_request(self) -> None:
        """Raises if a request starts that must not."""
        now = self._world.time.true
        if self._cancelled_at is not None:
            self._world.check(now <= self._cancelled_at + GRACE_SECONDS, "what was cancelled goes on")
        if self._wished is not None and self._wished[0] + GRACE_SECONDS < now < self._wished[1]:
            self._world.check(False, "live delivery wants the lease, and requests still start")
