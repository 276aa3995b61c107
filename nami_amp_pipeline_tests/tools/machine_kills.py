"""Kills whole machines of one service, round after round: a worker of Celery, Redis, what is before the object storage.

``python -m nami_amp_pipeline_tests.tools.machine_kills --rounds 100 --seed 1`` prints a line for each round, and a
table at the end. All of it is processes of this machine, killed with ``kill -9``. The object storage is moto's server,
which keeps objects in memory: it is never killed, but what is in front of it is, with the requests that it passes on,
as if the storage were gone and came back with its data.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from nami_amp_pipeline.defs.sensors import BEGINNING_SECONDS
from nami_amp_pipeline.sandbox import Options, Sandbox, SandboxServer
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.support.everything import Everything
from nami_amp_pipeline_tests.support.fast_start import work_folder
from nami_amp_pipeline_tests.support.machines import BUCKET, REDIS, WORKERS, History, Machines, can_be_apart
from nami_amp_pipeline_tests.support.postgres import Postgres
from nami_amp_pipeline_tests.support.scene import GOOD_KEY

APPS: Final = ("app-0", "app-1", "app-2", "app-3")
"""Two in each shard."""

SHARDS: Final = ("1/2", "2/2")
USERS: Final = 8
LEASE_SECONDS: Final = 8
GRACE_SECONDS: Final = 30
"""A shard is taken over within a lease and this."""

PATIENCE_SECONDS: Final = 150

WORKER: Final = "worker"
UNHEARD: Final = "no sign of life yet"
"""Where a worker had taken a run that had not come to its first heartbeat."""

_STEPS: Final = ("capture", "snapshot", "prepare", "upload")
CASES: Final = (
    *((WORKER, stage) for stage in ("taken", *_STEPS)),
    *((REDIS, stage) for stage in ("queued", *_STEPS)),
    *((BUCKET, stage) for stage in _STEPS),
)


@dataclass
class Facts:
    """What happened so far.

    Attributes:
        stages: rounds by victim and the stage in which it died.
        takeovers: seconds from the kill of a worker to the start of the next run of its shard.
        again: events sent again, by victim.
        amid: how often the front was killed with requests under way.
        seconds: of each round.
    """

    stages: Counter[tuple[str, str]] = field(default_factory=Counter)
    takeovers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    again: Counter[str] = field(default_factory=Counter)
    amid: int = 0
    seconds: list[float] = field(default_factory=list)


class Rounds:
    """Rounds over one service.

    Args:
        folder: of everything.
        postgres: has all databases.
        seed: of what happens when.
    """

    def __init__(self, folder: Path, postgres: Postgres, seed: int) -> None:
        self.seed = seed
        self.facts = Facts()
        self.loaded = 0
        self.sandbox = Sandbox(options=Options(throttle=False, latency_ms=300))
        self.server = SandboxServer(self.sandbox)
        self.machines = Machines(
            folder, postgres, NAMI_AMP_TICK_MINUTES="1", NAMI_AMP_SENSOR_SECONDS="5", NAMI_AMP_EARLY_TICK_SECONDS="1",
            NAMI_AMP_BATCH_EVENTS="5", NAMI_AMP_MAX_LANES="2", NAMI_AMP_HTTP_TIMEOUT_SECONDS="4",
            NAMI_AMP_LEASE_SECONDS=str(LEASE_SECONDS), NAMI_AMP_DUCKDB_THREADS="1",
        )  # fmt: skip
        self._cases: list[tuple[str, str]] = []
        self._order = random.Random(seed)

    def play(self, rounds: int) -> None:
        """Starts the service, plays, and stops it."""
        running = self.machines.service
        with self.server as server:
            try:
                self.machines.begin()
                self.every = Everything(running, self.sandbox, server.endpoint)
                for number, app in enumerate(APPS):
                    self.every.add(app, GOOD_KEY[:-1] + str(number))
                self.history = History(running.environ["DAGSTER_PG_URL"])
                running.start("daemon")
                for number in range(rounds):
                    try:
                        self._round(number)
                    except Exception:
                        say(f"round {number} of seed {self.seed} failed:\n{self._logs()}")
                        raise
                self.every.context.store.close()
            finally:
                running.close()

    def _next(self) -> tuple[str, str]:
        """What dies, and when: nearly each case once before any comes again."""
        if not self._cases:
            slow = (WORKER, "taken")  # it takes a minute
            self._cases = [case for case in CASES if case != slow or self._order.random() < 0.4]
            self._order.shuffle(self._cases)
        return self._cases.pop()

    def _round(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        victim, stage = self._next()
        shard = rng.choice(SHARDS)
        begun, facts, audit = time.monotonic(), self.facts, self.sandbox.audit
        again = audit.duplicates
        self._wait(self.history.at_rest)  # Dagster tries a run again, but not that one too
        self._load(rng, number)
        since = self.history.last()
        run_id = self._wait(lambda: self.history.reached(shard, stage, since))
        if victim == BUCKET:
            until = time.monotonic() + 8.0
            while not self.machines.transfers() and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
        elif stage == "upload":
            accepted = audit.accepted
            self._wait(lambda: audit.accepted > accepted, 10)
            time.sleep(rng.uniform(0, 1.5))
        else:
            time.sleep(rng.choice((0.0, rng.uniform(0, 0.3))))
        line = self._kill(rng, victim, shard, str(run_id))
        self._wait(lambda: audit.accepted >= self.loaded and not self.every.pending())
        assert audit.accepted == self.loaded, f"{audit.accepted} accepted of {self.loaded}"
        for name in ("accepted_more_than_once", "order_violations", "concurrent_same_user", "changed_repeats"):
            found = getattr(audit, name)
            assert not found.count, f"{name}: {found.examples}"
        mistaken = self.history.taken_for_dead()
        assert not mistaken, f"called failed while they lived: {mistaken}"
        facts.again[victim] += audit.duplicates - again
        facts.seconds.append(time.monotonic() - begun)
        say(f"{number}: {line}; {audit.duplicates - again} sent again; {facts.seconds[-1]:.1f} s")

    def _kill(self, rng: random.Random, victim: str, shard: str, run_id: str) -> str:
        """Kills, starts it again, and says what happened."""
        machines, facts = self.machines, self.facts
        name = victim
        if victim == WORKER:
            process = self.history.process(run_id)
            name = (machines.worker_of(process) if process else None) or rng.choice(WORKERS)
        amid = machines.transfers() if victim == BUCKET else 0
        machines.service.kill(name)
        at = time.time()
        stage = self.history.stage(run_id)
        if victim == WORKER and stage not in ("over", "upload (ended)") and not self._was_heard_of(run_id):
            stage = UNHEARD
        facts.stages[victim, stage] += 1
        line = f"{name} killed in {stage} of {shard}"
        if victim == BUCKET:
            facts.amid += bool(amid)
            machines.service.log_file(name).write_text("")
            line += f", {amid} requests under way"
        if victim == WORKER and stage != "over":
            if rng.random() < 0.3:  # it is back before anybody noticed
                time.sleep(rng.uniform(0, LEASE_SECONDS))
                machines.start(name)
                line += ", back at once"
            else:
                self._wait(lambda: self.history.next_start(shard, run_id))
                machines.start(name)
            took = float(self._wait(lambda: self.history.next_start(shard, run_id)) or 0) - at
            facts.takeovers[stage].append(took)
            # Who died before the first sign of life is missed later, where a lease is as short as here.
            lease = max(LEASE_SECONDS, BEGINNING_SECONDS) if stage == UNHEARD else LEASE_SECONDS
            assert took < lease + GRACE_SECONDS, f"{line}: taken over after {took:.1f} s"
            return f"{line}, taken over after {took:.1f} s"
        away = rng.uniform(0, 8)
        time.sleep(away)
        machines.start(name)
        return f"{line}, away for {away:.1f} s"

    def _was_heard_of(self, run_id: str) -> bool:
        table = tables.leases
        with self.every.context.store.reading() as tx:
            return bool(tx.execute(sa.select(table.c.name).where(table.c.name == f"run:{run_id}")).all())

    def _load(self, rng: random.Random, number: int) -> None:
        """New events of the same users, in every app."""
        now = datetime.now(UTC)
        rows: list[dict[str, Any]] = []
        for app in APPS:
            for user in range(USERS):
                external = [{"key": "external_id", "type": "uuid", "value": f"account of {user}"}]
                rows += [
                    {
                        "id": f"{app}-{number}-{user}-{event}", "app_id": app, "user_id": f"user-{user}",
                        "event_type": "user.subscription.renewed", "ingested_at": now - timedelta(seconds=2),
                        "created_date": now - timedelta(seconds=10) + timedelta(milliseconds=10 * event),
                        "payload": json.dumps({"external_ids": external, "filling": rng.randbytes(400).hex()}),
                    }
                    for event in range(rng.randint(3, 6))
                ]  # fmt: skip
        rng.shuffle(rows)
        self.every.events.insert(rows)
        self.loaded += len(rows)

    def _wait(self, what: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
        until = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < until, f"not within {seconds:.0f} s"
            time.sleep(0.02)
        return found

    def _logs(self) -> str:
        names = ("daemon", *WORKERS, REDIS)
        logs = "\n".join(f"== {name}\n{self.machines.service.log(name)[-6_000:]}" for name in names)
        audit = self.sandbox.audit
        return f"{logs}\n== runs\n{self.history.runs()}\n== {audit.accepted} accepted of {self.loaded}"

    def summary(self) -> str:
        """What all rounds came to."""
        facts, audit = self.facts, self.sandbox.audit
        if not facts.seconds:
            return "no round"
        lines = [
            f"{len(facts.seconds)} rounds, {statistics.median(facts.seconds):.1f} s each (median), "
            f"{max(facts.seconds):.1f} s the longest; {self.loaded:,} events loaded, {audit.accepted:,} accepted, "
            f"{audit.duplicates} sent again and recognised: {dict(facts.again)}; {facts.amid} kills of the object "
            "storage's front had requests under way"
        ]
        for (victim, stage), times in sorted(facts.stages.items()):
            lines.append(f"  {victim:12} {stage:20} {times}")
        if taken := [each for some in facts.takeovers.values() for each in some]:
            lines.append(
                f"takeovers: {len(taken)}, {statistics.median(taken):.1f} s (median), {max(taken):.1f} s at worst"
            )
        for stage, some in sorted(facts.takeovers.items()):
            lines.append(f"  {stage:20} {_span(some)}")
        return "\n".join(lines)


def _span(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s at worst"


def say(text: str) -> None:
    """For whoever started it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """The command line; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # and ends its processes
    if not can_be_apart():
        say("all workers are on one machine here: that one is gone is seen at once, without waiting for its lease")
    folder, postgres = work_folder(), Postgres()
    rounds = Rounds(folder / "service", postgres, given.seed)
    try:
        rounds.play(given.rounds)
    except Exception:  # noqa: BLE001 - every failure is a finding
        say(traceback.format_exc())
        return 1
    finally:
        say(rounds.summary())
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
