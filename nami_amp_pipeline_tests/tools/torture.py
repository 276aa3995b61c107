"""Runs simulated histories and the fuzzer of payload bytes, and kills real processes, for as long as told.

``python -m nami_amp_pipeline_tests.tools.torture --minutes 10`` runs new seeds on all cores and prints those that fail;
``--kind delivery --seed 17`` runs one of them again; ``--kind payloads`` fuzzes payloads only; ``--kills 500``
kills so many real processes instead.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import time
import traceback
from collections import Counter

from nami_amp_pipeline_tests.simulation import backfills, delivery, identifies, payloads, repairs, whole
from nami_amp_pipeline_tests.simulation.killing import Killing
from nami_amp_pipeline_tests.support.fast_start import work_folder
from nami_amp_pipeline_tests.support.postgres import Postgres

_KINDS = {
    "delivery": delivery.simulate,
    "payloads": payloads.simulate,
    "whole": whole.simulate,
    "backfill": backfills.simulate,
    "identify": identifies.simulate,
    "repair": repairs.simulate,
}
_COUNTED = ("ticks", "crashes", "takeovers", "requests", "commits", "store_failures", "events")


def attempt(job: tuple[str, int]) -> tuple[str, int, str | None, Counter[str], Counter[str]]:
    """One seed: its kind, itself, what was wrong if anything was, what happened, and which situations came up."""
    logging.disable(logging.CRITICAL)
    kind, seed = job
    try:
        facts = _KINDS[kind](seed)
    except Exception:  # noqa: BLE001 - every failure is a finding
        return kind, seed, traceback.format_exc(limit=-3), Counter(), Counter()
    return kind, seed, None, Counter({name: getattr(facts, name) for name in _COUNTED}), facts.met


def simulate(minutes: float, first: int, kind: str | None) -> int:
    """Runs seeds until the time is over; returns how many failed."""
    end = time.monotonic() + minutes * 60
    totals: Counter[str] = Counter()
    met: Counter[str] = Counter()
    failed: list[str] = []
    begun = time.monotonic()
    rng = random.Random(first)

    def jobs() -> list[tuple[str, int]]:
        kinds = (
            [kind] * 64
            if kind
            else ["delivery"] * 46 + ["payloads"] * 4 + ["whole"] * 6 + ["backfill"] * 4 + ["identify"] * 4
        )
        return [(one, rng.randrange(2**40)) for one in kinds]

    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), gc.freeze) as pool:
        while time.monotonic() < end:
            for one, seed, wrong, facts, situations in pool.imap_unordered(attempt, jobs()):
                totals[one] += 1
                totals.update(facts)
                met.update(situations)
                if wrong is not None:
                    failed.append(f"--kind {one} --seed {seed}")
                    _say(f"FAILED {failed[-1]}\n{wrong}")
        pool.close()
        pool.join()
    took = time.monotonic() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seeds = sum(totals[one] for one in _KINDS)
    each = (used.ru_utime + used.ru_stime) / seeds
    _say(
        f"{seeds} seeds in {took:.0f} s ({seeds / took * 60:.0f} a minute, {each * 1_000:.0f} ms of a core for each): "
        f"{dict(totals)}"
    )
    for group in ("ends at", "sleeps at", "others come at", "gives up", "network", "answer", "event"):
        mine = {name.removeprefix(group).strip(": "): met[name] for name in sorted(met) if name.startswith(group)}
        _say(f"  {group}: {', '.join(f'{name} {times:,}' for name, times in mine.items())}")
    for line in failed:
        _say(f"again: python -m nami_amp_pipeline_tests.tools.torture {line}")
    return len(failed)


def kill(kills: int, seed: int, *, postgres: bool) -> None:
    """Kills real processes, of a SQLite store or of one in a PostgreSQL of our own."""
    begun = time.monotonic()
    folder = work_folder()
    server = Postgres() if postgres else None
    try:
        killing = Killing(folder, seed, server.fresh_database() if server else None)
        killing.run(kills)
    finally:
        if server:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    audit = killing.sandbox.audit
    _say(
        f"{killing.kills} kills in {time.monotonic() - begun:.0f} s: {killing.rows} rows, {audit.accepted} events, "
        f"{audit.duplicates} sent again, after each kill no more than were under way (at most "
        f"{killing.most_under_way}) and had no answer since; none lost, none twice, {audit.requests} requests"
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """The command line; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="how long; 1 by default")
    parser.add_argument("--seed", type=int, help="run this one; with --minutes or --kills, where to begin")
    parser.add_argument("--kind", choices=sorted(_KINDS))
    parser.add_argument("--kills", type=int, help="kill so many real processes instead")
    parser.add_argument("--postgres", action="store_true", help="with --kills: the state store is a PostgreSQL")
    given = parser.parse_args()
    if given.kills:
        kill(given.kills, given.seed or 1, postgres=given.postgres)
        return 0
    if given.seed is not None and given.kind and given.minutes is None:
        _, _, wrong, facts, met = attempt((given.kind, given.seed))
        _say(wrong or f"well: {dict(facts)} {dict(met)}")
        return int(wrong is not None)
    first = given.seed if given.seed is not None else time.time_ns()
    _say(f"seeds drawn from {first}")
    return int(simulate(given.minutes or 1.0, first, given.kind) > 0)


if __name__ == "__main__":
    sys.exit(main())
