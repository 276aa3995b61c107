"""Somebody else holds the write lock of the store, or writes to the DuckDB warehouse, for a while."""

from __future__ import annotations

import time
from pathlib import Path

from nami_amp_pipeline_tests.adversity.scene import Scene

PATIENCE = {"sqlite": 30.0, "duckdb": 10.0}
KINDS = ("sqlite, short", "sqlite, long", "duckdb, short", "duckdb, long", "both")
_WEIGHTS = (30, 25, 20, 15, 10)


class Locks:
    """Rounds of locks.

    Args:
        folder: for everything.
        seed: of what happens when.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.scene = Scene(folder, seed)
        self._rng = self.scene.rng

    def round(self, kind: str | None = None) -> None:
        """Loads rows, and locks something before or while a worker runs."""
        scene, rng = self.scene, self._rng
        scene.load(rng.choice((60, 200, 400)))
        kind = kind or rng.choices(KINDS, _WEIGHTS)[0]
        scene.facts[kind] += 1
        what, _, length = kind.partition(", ")
        held = [self._hold(one, length) for one in (("sqlite", "duckdb") if what == "both" else (what,))]
        first = rng.random() < 0.4
        worker = None if first else scene.start()
        if worker is not None:
            time.sleep(rng.uniform(0.0, 2.0))
        # A process may have the DuckDB file open, for reading, so that a writer waits: both must get their turn.
        holders = [scene.hold(one, path, seconds) for one, path, seconds in held]
        outcome = scene.wait(worker or scene.start())
        if outcome.status == 0:
            scene.facts["carried on"] += 1
        else:
            scene.facts["said it in a line"] += 1
            assert length != "short", outcome
            assert outcome.locked, outcome
        for holder in holders:
            scene.end(holder)
        if outcome.status or not scene.all_accepted:
            again = scene.run()
            assert again.status == 0, again
        scene.check(broken_off=int(outcome.status != 0))

    def _hold(self, what: str, length: str) -> tuple[str, Path, float]:
        rng, patience = self._rng, PATIENCE[what]
        seconds = rng.uniform(0.1, patience * 0.6) if length == "short" else rng.uniform(patience, patience * 2)
        if length == "short" and what == "sqlite":
            seconds = rng.uniform(0.1, 8.0)
        elif length == "long" and rng.random() < 0.2:
            seconds = 130.0  # longer than answers wait to be recorded
        return what, self.scene.store_file if what == "sqlite" else self.scene.warehouse, seconds
