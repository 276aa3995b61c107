"""Two workers of the same partitions at once, and one that is stopped past its lease and wakes up again."""

from __future__ import annotations

import time
from pathlib import Path

from nami_amp_pipeline_tests.adversity.scene import LEASE_SECONDS, Process, Scene
from nami_amp_pipeline_tests.support.nursery import IN_TRANSACTION
from nami_amp_pipeline_tests.support.stopping import PLACES

NAMED = (
    "capture.commit", "snapshot.commit", "prepare.commit", "prepare.committed", "deliver.post", "deliver.post",
    "deliver.commit", "deliver.committed", "deliver.answered", "deliver.answered", "receipts.commit",
)  # fmt: skip
KINDS = (
    "two at once", "stopped at a step", "stopped at a moment", "stopped in a transaction", "stopped at the send"
)  # fmt: skip
_WEIGHTS = (20, 30, 20, 10, 20)


class Workers:
    """Rounds of two workers.

    Args:
        folder: for everything.
        seed: of what happens when.
        environ: other settings than the usual, such as the state store's address.
    """

    def __init__(self, folder: Path, seed: int, environ: dict[str, str] | None = None) -> None:
        self.scene = Scene(folder, seed, environ)
        self._rng = self.scene.rng

    def round(self, kind: str | None = None, place: str | None = None) -> None:
        """Loads rows, and lets workers at them; ``place`` is where one is stopped at the send."""
        scene, rng = self.scene, self._rng
        scene.load(rng.choice((60, 200, 400)))
        kind = kind or rng.choices(KINDS, _WEIGHTS)[0]
        scene.facts[kind] += 1
        if kind == "two at once":
            for process in [scene.start(), scene.start()]:
                scene.wait(process)
            stopped = 0
        else:
            stopped = self._with_a_sleeper(kind, place)
        self._settle()
        scene.check(broken_off=stopped)

    def _with_a_sleeper(self, kind: str, place: str | None) -> int:
        scene, rng = self.scene, self._rng
        stop = None
        if kind == "stopped at a step":
            name = rng.choice(NAMED)
            stop = (name, rng.randint(1, 8) if name.startswith("deliver.") else rng.randint(1, 2))
        elif kind == "stopped in a transaction":
            stop = (IN_TRANSACTION, rng.randint(1, 40))
        elif kind == "stopped at the send":
            stop = (place or rng.choice(list(PLACES)), rng.randint(1, 6) if place is None else 2)
        sleeper = scene.start(stop=stop)
        beside = scene.start() if place is None and rng.random() < 0.4 else None
        if stop is None:
            time.sleep(rng.uniform(0.3, 2.5))
            scene.facts["signals"] += 1
            scene.signal(sleeper, stop=True)
        if not scene.is_stopped(sleeper):
            scene.facts["ended before it could be stopped"] += 1
            for process in [sleeper, *([beside] if beside else [])]:
                scene.wait(process)
            return 0
        scene.facts[f"stopped: {stop[0] if stop else 'at a moment'}"] += 1
        if place is not None:
            time.sleep(LEASE_SECONDS)  # until then others could do nothing
        self._others_go_on(beside, sleeper)
        woken = scene.wait(sleeper)
        scene.facts["sleepers that noticed"] += "another process" in woken.err
        return 1

    def _others_go_on(self, beside: Process | None, sleeper: Process) -> None:
        """Lets others work until all is delivered, or until they say that the sleeper keeps the store locked."""
        scene, rng = self.scene, self._rng
        began = time.monotonic()
        early = rng.uniform(LEASE_SECONDS, LEASE_SECONDS + 3) if rng.random() < 0.25 else None
        while time.monotonic() - began < 150:
            outcome = self._one(beside or scene.start(), sleeper, began + early if early else None)
            beside = None
            if outcome == "woken":
                return
            if outcome == "locked":
                scene.facts["said that the store is locked"] += 1
                scene.signal(sleeper, stop=False)
                return
            if outcome == "done" and scene.all_accepted:
                scene.facts["took over and finished"] += 1
                scene.signal(sleeper, stop=False)
                return
            time.sleep(rng.uniform(0.2, 2.0))
        raise AssertionError("others could not finish what the sleeper held")

    def _one(self, other: Process, sleeper: Process, wake_at: float | None) -> str:
        """One run of another worker; the sleeper may wake up in the middle of it."""
        scene, woken = self.scene, False
        while wake_at is not None and not woken and not scene.has_ended(other):
            if time.monotonic() >= wake_at:
                scene.signal(sleeper, stop=False)
                woken = True
                scene.facts["woke up while others worked"] += 1
            time.sleep(0.01)
        outcome = scene.wait(other)
        if woken:
            return "woken"
        if outcome.locked:
            return "locked"
        return "done" if outcome.status == 0 else "again"

    def _settle(self) -> None:
        for _ in range(4):
            if self.scene.run().status == 0 and self.scene.all_accepted:
                return
        raise AssertionError("with nobody in the way, workers could not finish")
