"""Runs rounds of trouble, in several scenes at once, as most of the time is spent waiting."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from nami_amp_pipeline_tests.adversity.disk import PLACES, Disk, NoMount, small_disk
from nami_amp_pipeline_tests.adversity.locks import Locks
from nami_amp_pipeline_tests.adversity.restarts import Restarts
from nami_amp_pipeline_tests.adversity.workers import Workers
from nami_amp_pipeline_tests.support.postgres import Postgres

Playing = Workers | Disk | Locks | Restarts


def workers(_stack: ExitStack, folder: Path, _number: int, seed: int) -> Playing:
    """See :mod:`nami_amp_pipeline_tests.adversity.workers`."""
    return Workers(folder, seed)


def locks(_stack: ExitStack, folder: Path, _number: int, seed: int) -> Playing:
    """See :mod:`nami_amp_pipeline_tests.adversity.locks`."""
    return Locks(folder, seed)


def disk(stack: ExitStack, folder: Path, number: int, seed: int) -> Playing:
    """See :mod:`nami_amp_pipeline_tests.adversity.disk`."""
    place = PLACES[number % len(PLACES)]
    try:
        small = stack.enter_context(small_disk(folder / "disk", 500 if place == "spill" else 64))
    except NoMount as error:
        say(f"{error}; the size of files is limited instead")
        return Disk(folder, seed, place, None)
    return Disk(folder, seed, place, small)


def postgres_workers(stack: ExitStack, folder: Path, _number: int, seed: int) -> Playing:
    """The same as ``workers``, on a PostgreSQL."""
    server = Postgres()
    stack.callback(server.stop)
    return Workers(folder, seed, {"NAMI_AMP_STATE_URL": server.fresh_database()})


def restarts(stack: ExitStack, folder: Path, _number: int, seed: int) -> Playing:
    """See :mod:`nami_amp_pipeline_tests.adversity.restarts`."""
    server = Postgres()
    stack.callback(server.stop)
    return Restarts(folder, seed, server)


def warehouse_restarts(stack: ExitStack, folder: Path, _number: int, seed: int) -> Playing:
    """The same, of the warehouse alone."""
    server = Postgres()
    stack.callback(server.stop)
    return Restarts(folder, seed, server, store=False)


KINDS: dict[str, Callable[[ExitStack, Path, int, int], Playing]] = {
    "workers": workers,
    "disk": disk,
    "locks": locks,
    "postgres-workers": postgres_workers,
    "restarts": restarts,
    "warehouse-restarts": warehouse_restarts,
}


def play(kind: str, rounds: int, seed: int, scenes: int) -> list[str]:
    """Plays the rounds; returns what was wrong."""
    begun = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="adversity-"))
    numbers = count()
    facts: Counter[str] = Counter()
    said: Counter[str] = Counter()
    wrong: list[str] = []

    def scene(number: int) -> None:
        with ExitStack() as stack:
            playing = KINDS[kind](stack, base / f"scene{number}", number, seed * 1_000 + number)
            try:
                with playing.scene:
                    while next(numbers) < rounds and not wrong:
                        playing.round()
                        playing.scene.facts["rounds"] += 1
            except Exception:  # noqa: BLE001 - every failure is a finding
                wrong.append(f"scene {number} of seed {seed}:\n{traceback.format_exc()}")
            most = max(facts.pop("most sent again in a round", 0), playing.scene.facts["most sent again in a round"])
            facts.update(playing.scene.facts)
            facts["most sent again in a round"] = most
            facts["rows"] += playing.scene.rows
            said.update(playing.scene.said)

    try:
        with ThreadPoolExecutor(scenes) as pool:
            list(pool.map(scene, range(scenes)))
    finally:
        if not wrong:
            shutil.rmtree(base, ignore_errors=True)
    say(f"{kind}: {facts.pop('rounds')} rounds in {time.monotonic() - begun:.0f} s, {scenes} scenes at once")
    for name, number in sorted(facts.items()):
        say(f"  {number:>7,} {name}")
    for line, number in said.most_common():
        say(f"  {number:>7,} x {line}")
    for text in wrong:
        say(f"FAILED {text}(its files: {base})")
    return wrong


def say(text: str) -> None:
    """Tells whoever reads."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """The command line; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=6)
    given = parser.parse_args()
    return int(bool(play(given.kind, given.rounds, given.seed, given.scenes)))


if __name__ == "__main__":
    sys.exit(main())
