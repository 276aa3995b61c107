"""What histories of backfills and of identifies share: both kinds of work, and who comes in between."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from nami_amp_pipeline.backfill.turns import Work, run_backfill
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Busy, Misconfigured
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sandbox import Options
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline_tests.simulation.late_events import Late
from nami_amp_pipeline_tests.simulation.network import SimulatedWire
from nami_amp_pipeline_tests.simulation.person import Person
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.whole import ListWarehouse
from nami_amp_pipeline_tests.simulation.world import World

BACKFILL_STEPS = tuple(
    f"backfill.{step}" for step in ("spool", "spooled", "computed", "prepare", "prepared", "flag", "flagged", "move")
)


class BesideLive:
    """A world with live delivery, and the backfill or identify ``number``.

    Args:
        seed: of everything.
        folder: of the home.
        batch_events: how many events a request may have; one of these is drawn.
        segment_rows: the same for the rows of a segment.
    """

    number: int
    integration_id: int
    person: Person

    def __init__(self, seed: int, folder: Path, *, batch_events: Sequence[int], segment_rows: Sequence[int]) -> None:
        rng = random.Random(seed)
        settings = Settings.load({"NAMI_AMP_HOME": str(folder)}, folder / "no.env").replace(
            batch_events=rng.choice(batch_events),
            max_lanes=rng.choice((1, 3)),
            run_retry_seconds=60.0,
            lease_seconds=60,
            segment_rows=rng.choice(segment_rows),
            duckdb_threads=1,
        )
        self.warehouse = ListWarehouse()
        world = World(rng, folder, settings, self.warehouse, Options(index_mode=rng.choice(("none", "all"))))
        self.world = world
        self.rng = rng
        self.current: SimulatedWire | None = None
        self._worker = ""
        self._in_between = random.Random(world.rng.random())  # of its own, so that a draw more moves no other
        self.users = [f"user{number}" for number in range(rng.choice((1, 3, 8)))]
        world.before_step = self.note_step

    def load(self, count: int) -> None:
        """Loads new rows."""
        raise NotImplementedError

    def news(self, context: Context, wire: SimulatedWire) -> None:
        """A micro-batch that finds rows of the users whose events are about to be sent."""
        self.load(self.rng.choice((1, 3, 8)))
        self.live(context, wire)

    def live(self, context: Context, wire: SimulatedWire) -> None:
        """A micro-batch."""
        pipeline.capture_apps(context)
        pipeline.snapshot_apps(context)
        pipeline.prepare_integrations(context, registry.all_integrations(context.store))
        self.world.deliver(context, wire)

    def work(self, context: Context, _wire: SimulatedWire) -> None:
        """A process that works on the backfill or identify."""
        rng = random.Random(self.rng.random())
        stop_at = context.monotonic() + 3_000
        self._worker = context.run_id
        world = self.world

        def posts(body: bytes) -> None:
            world._check_right(context.store.owner, body)
            self.person.sees_a_request()

        def fresh() -> SimulatedWire:
            """Each turn has a wire of its own; what an earlier one did not record comes again."""
            if self.current is not None:
                self.current.forgets()
            self.current = SimulatedWire(world.network, posts)
            return self.current

        try:
            stop = Work(stop=lambda: context.monotonic() > stop_at).stop
            done = run_backfill(context, self.number, Work(stop=stop, wire=fresh, background=Late(rng), rng=rng))
            if world.wrong is not None:
                raise world.wrong
            world.check(done.state != "failed", f"it failed: {done.error}")
        except Busy:
            world.facts.met["busy"] += 1
        except Misconfigured:
            world.facts.met["ended before"] += 1
        finally:
            if self.current is not None:
                self.current.alive = False
                self.current.forgets()

    def come_between(self, perils: Perils, mine: object) -> None:
        """Draws where a process ends, and who else comes in between."""
        if mine != self.work:
            return
        if perils.crash_in:
            perils.crash_in = self.rng.choice((*BACKFILL_STEPS, perils.crash_in))
        drawn = self.rng.random()
        act = self.person.wishes if drawn < 0.3 else self._cancel if drawn < 0.5 else lambda: None
        left, at_step = self.rng.randrange(1, 12), perils.at_step
        steps: tuple[str, ...] = ("deliver.", "backfill.")
        if act == self.person.wishes:  # while there is most to post yet: whoever does not look posts on
            steps, left = ("deliver.post",), (left + 3) // 4
        is_overtaken = self._in_between.random() < 0.3

        def step(name: str) -> None:
            nonlocal left, is_overtaken
            if is_overtaken and name == "backfill.computed":  # what was computed holds no more
                is_overtaken = False
                self.world.facts.met["live delivery comes after a file is computed"] += 1
                self.world.tick(Perils(), self.news)
            left -= name.startswith(steps)
            if left == 0:
                left = -1
                act()
            before = self.world.time.true
            at_step(name)
            if self.current is not None and self.world.time.true > before + self.world.settings.lease_seconds / 2:
                self.current.forgets()  # the lease may be lost: what was not recorded comes again

        perils.at_step = step

    def _cancel(self) -> None:
        try:
            self.person.cancels(self.number)
        except Misconfigured:  # it has ended
            self.world.facts.met["cancelled too late"] += 1

    def note_step(self, run_id: str, step: str) -> None:
        """Called before each step of each process."""
        if step == "deliver.committed" and self.current is not None and run_id == self._worker:
            self.current.recorded()

    def pending(self) -> int:
        """Events of live delivery without an end."""
        return sum(one.pending for one in status(self.world.outside, self.world.integrations()))
