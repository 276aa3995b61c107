"""A PostgreSQL, warehouse and state store at once, that restarts under workers: as a crash would do it, or politely."""

from __future__ import annotations

import time
from pathlib import Path

from nami_amp_pipeline_tests.adversity.scene import Scene
from nami_amp_pipeline_tests.support.postgres import Postgres


class Restarts:
    """Rounds of restarts.

    Args:
        folder: for everything.
        seed: of what happens when.
        server: is restarted.
        store: whether the state store is there too, or is SQLite.
    """

    def __init__(self, folder: Path, seed: int, server: Postgres, *, store: bool = True) -> None:
        self._server = server
        self._restarts = (1, 1, 2, 3) if store else (15,)  # a reading is short, and is to be met
        places = {"NAMI_AMP_WAREHOUSE_URL": server.fresh_database()}
        if store:
            places["NAMI_AMP_STATE_URL"] = server.fresh_database()
        self.scene = Scene(folder, seed, places)

    def round(self) -> None:
        """Loads rows, and restarts the server once or more while a worker is at them."""
        scene, rng = self.scene, self.scene.rng
        scene.load(rng.choice((60, 200, 400)))
        worker = scene.start()
        for _ in range(rng.choice(self._restarts)):
            time.sleep(rng.uniform(0.0, 2.0 if len(self._restarts) > 1 else 0.3))
            if scene.has_ended(worker):
                break
            mode = rng.choice(("immediate", "fast"))
            scene.facts[f"restarts, {mode}"] += 1
            self._server.restart(mode)
        outcome = scene.wait(worker)
        scene.facts["carried on" if outcome.status == 0 else "said it in a line"] += 1
        broken = int(outcome.status != 0)
        for _ in range(3):
            if outcome.status == 0 and scene.all_accepted:
                break
            outcome = scene.run()
        assert scene.all_accepted, outcome
        scene.check(broken_off=max(broken, 1))
