"""The world around the pipeline: time, network, sandbox, files, and processes that come and go."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Blocked, LostLease
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.sandbox import Fault, Options, Sandbox
from nami_amp_pipeline.sandbox.settings import key_digest
from nami_amp_pipeline.secrets import Cipher, Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state.integrations import Integration, NewIntegration
from nami_amp_pipeline.storage.cached_folder import CachedFolder
from nami_amp_pipeline.storage.data_folder import DataFolder
from nami_amp_pipeline.warehouse import Warehouse
from nami_amp_pipeline_tests.simulation.late_events import Late
from nami_amp_pipeline_tests.simulation.ledger import Ledger
from nami_amp_pipeline_tests.simulation.network import KINDS, Crash, Network, SimulatedWire, Time, Weather
from nami_amp_pipeline_tests.simulation.process import STEPS, MortalStore, Perils
from nami_amp_pipeline_tests.support.fast_start import fresh_store
from nami_amp_pipeline_tests.support.objects_in_memory import Objects

ENCRYPTION_KEY = "bmFtaS1hbXAtc2ltdWxhdGlvbi1rZXktMDEyMzQ1Njc="
MOST_WAITS = 30_000


class WrongError(AssertionError):
    """What must hold does not."""


@dataclass
class Facts:
    """What happened, for the report of a run of many seeds; ``met`` names the situations that came up, each counted."""

    ticks: int = 0
    crashes: int = 0
    takeovers: int = 0
    requests: int = 0
    commits: int = 0
    store_failures: int = 0
    events: int = 0
    met: Counter[str] = field(default_factory=Counter)


@dataclass
class World:
    """One seed's world.

    Attributes:
        rng: everything is drawn from it.
        folder: for state and files.
        settings: of the pipeline.
        warehouse: where rows come from.
    """

    rng: random.Random
    folder: Path
    settings: Settings
    warehouse: Warehouse
    options: Options

    def __post_init__(self) -> None:
        self.time = Time()
        self.sandbox = Sandbox(lambda: self.time.true, options=self.options, rng=random.Random(self.rng.random()))
        self.network = Network(self.time, self.sandbox, random.Random(self.rng.random()))
        self.facts = Facts()
        self.wrong: WrongError | None = None
        self._processes = 0
        self._names: dict[bytes, str] = {}
        self._wires: list[SimulatedWire] = []
        self._key = Cipher(ENCRYPTION_KEY, self.folder / "unused")
        # Of its own, so that what else is drawn stays what it was.
        self._is_fair = False
        self._machines_rng = random.Random(f"machines {self.rng.getstate()[1][:4]}")
        self.objects = Objects(lambda: int(self.time.true * 1e6)) if self._machines_rng.random() < 0.4 else None
        path = Path(self.settings.state_url.removeprefix("sqlite:///"))
        fresh_store(path)
        self.ledger = Ledger(path)
        self.before_step: Callable[[str, str], None] = lambda _run_id, _step: None
        self.after_commit: Callable[[str], None] = lambda _run_id: None
        self.outside = self.process(Perils())

    def process(self, perils: Perils) -> Context:
        """A process as it starts."""
        self._processes += 1
        store = MortalStore(
            self.settings.state_url,
            self.time.clock,
            self.settings.lease_seconds,
            f"process {self._processes}",
            perils,
            random.Random(self.rng.random()),
        )
        context = Context(
            settings=self.settings,
            store=store,
            folder=self._files(perils),
            warehouse=self.warehouse,
            cipher=self._key,
            clock=self.time.clock,
            run_id=f"run {self._processes}",
            monotonic=lambda: self.time.true,
            sleep=lambda seconds: self.network.advance(self.time.true + seconds),
            step=store.step,
        )
        store.committed = lambda: self._committed(context.run_id)
        return context

    def _files(self, perils: Perils) -> DataFolder:
        """The files as a process sees them: on one disk for all, or with a bucket, and often on a new machine."""
        if self.objects is None:
            return DataFolder(self.settings.data_dir)
        rng, outside = self._machines_rng, self._processes == 1
        if not outside and not self._is_fair and rng.random() < 0.3:
            perils.files_fail = rng.choice((0.1, 0.3))
        is_new = outside or rng.random() < 0.5
        root = self.folder / f"machine {self._processes}" if is_new else self.settings.data_dir
        self.facts.met["machine, new" if is_new else "machine, as before"] += 1
        storage = self.objects.seen_from(random.Random(rng.random()), perils.files_fail)
        return CachedFolder(root, storage, most_bytes=10**9, unused_seconds=10**9)

    def add(self, name: str, endpoint: str, **more: object) -> Integration:
        """Adds an integration of app ``app``, with an API key of its own."""
        new = NewIntegration(
            "app",
            name,
            endpoint,
            Secret(f"key-of-{name}".ljust(32, "0")),
            allow_custom_endpoint=True,
            **more,  # type: ignore[arg-type]
        )
        return registry.add(self.outside.store, self._key, new)

    def integrations(self) -> list[Integration]:
        """As the store has them now."""
        return registry.all_integrations(self.outside.store)

    def _check_right(self, owner: str, body: bytes) -> None:
        """Whoever posts for an integration holds its lease."""
        key = body[12:44]
        if key not in self._names:
            self._names = {f"key-of-{one.name}".ljust(32, "0").encode(): one.name for one in self.integrations()}
        name = self._names[key]
        holder = self.ledger.holder(name)
        self.check(owner == holder, f"{owner} posts for {name}, and {holder} holds the lease")

    def check(self, truth: bool, message: str) -> None:
        """Raises where something does not hold."""
        if not truth:
            # What it is raised into may take it for a bug of the pipeline, and go on.
            self.wrong = self.wrong or WrongError(message)
            raise self.wrong

    def _committed(self, run_id: str) -> None:
        self.facts.commits += 1
        wrong = self.ledger.wrong()
        self.check(not wrong, f"not conserved: {wrong}")
        if self.objects is not None:
            nowhere = self.ledger.named_files() - self.objects.stored.keys()
            self.check(not nowhere, f"a row names what no other machine can read: {nowhere}")
        self.after_commit(run_id)

    def check_status(self, context: Context) -> None:
        """The same as ``nami-amp status`` says it."""
        for one in status(context, registry.all_integrations(context.store)):
            ends = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
            numbers = (one.delivered, one.pending, *one.skipped.values(), *one.dead_letters.values())
            numbers += tuple(one.pending_by.values())
            if one.captured != ends + one.pending or min(numbers) < 0:
                raise WrongError(f"not conserved: {one}")

    # -- processes -------------------------------------------------------------------------------------------------

    def tick(self, perils: Perils, stages: Callable[[Context, SimulatedWire], None]) -> bool:
        """One process does its work until it is done, fails or ends; whether it came to the end."""
        self.facts.ticks += 1
        context = self.process(perils)
        wire = SimulatedWire(self.network, lambda body: self._check_right(context.store.owner, body))
        store = context.store
        assert isinstance(store, MortalStore)
        before = self.network.requests
        at_step = perils.at_step

        def step(name: str) -> None:
            if name == "deliver.committed":
                wire.recorded()
            self.before_step(context.run_id, name)
            at_step(name)

        perils.at_step = step
        self._wires.append(wire)
        try:
            stages(context, wire)
        except Crash:
            self.facts.crashes += 1
            self.facts.met[f"ends at {perils.crashed_at}"] += 1
            return False
        except (Blocked, LostLease) as error:
            self.facts.store_failures += 1
            self.facts.met[f"gives up: {type(error).__name__}"] += 1
            return False
        finally:
            wire.alive = False
            wire.forgets()
            self._wires.remove(wire)
            store.dead = True
            store.engine.dispose()
            self.facts.requests += self.network.requests - before
        self.check_status(self.outside)
        return True

    def deliver(self, context: Context, wire: SimulatedWire) -> None:
        """The fourth stage."""
        pipeline.deliver_integrations(
            context,
            registry.all_integrations(context.store),
            wire=wire,
            background=Late(random.Random(self.rng.random())),
            rng=random.Random(self.rng.random()),
        )

    def draw_perils(self, stages: Callable[[Context, SimulatedWire], None], *, steps: int) -> Perils:
        """What befalls the next process."""
        rng = self.rng
        perils = Perils(crash_at=rng.randrange(1, steps) if rng.random() < 0.4 else None)
        if rng.random() < 0.5:
            perils.crash_in = rng.choice(STEPS)
        if rng.random() < 0.2:
            perils.store_fails = rng.choice((0.02, 0.1))
        if rng.random() < 0.25:
            moment = rng.randrange(1, steps)
            asleep = rng.random() < 0.7

            def come_between(step: str) -> None:
                if perils.steps == moment:
                    self._take_over(stages, step, asleep=asleep)

            perils.at_step = come_between
        return perils

    def _take_over(self, stages: Callable[[Context, SimulatedWire], None], step: str, *, asleep: bool) -> None:
        """Another process works while this one stands still, perhaps for longer than its leases last."""
        self.facts.takeovers += 1
        self.facts.met[f"{'sleeps' if asleep else 'others come'} at {step}"] += 1
        if asleep:
            for wire in self._wires:
                wire.forgets()
            self.network.advance(self.time.true + self.settings.lease_seconds * self.rng.uniform(1.1, 3))
        self.tick(Perils(), stages)

    def draw_weather(self) -> None:
        """The troubles of the next while."""
        rng = self.rng
        weather = Weather(slowest=rng.choice((0.01, 0.2, 2.0, 20.0, 50.0)))
        if rng.random() < 0.7:
            kinds = rng.sample(KINDS, rng.randint(1, 5))
            weather.trouble = {kind: rng.choice((0.02, 0.1, 0.3)) for kind in kinds}
        if rng.random() < 0.2:
            begin = self.time.true + rng.uniform(0, 20)
            weather.outages.append((begin, begin + rng.choice((5.0, 60.0, 900.0)), rng.choice(KINDS[:7])))
        if rng.random() < 0.15:
            weather.size_limit = rng.choice((1_500, 4_000))
        self.network.weather = weather

    def step_clock(self, *far: float) -> None:
        """The clock that the pipeline reads is set: by little, or by some seconds that are given."""
        self.time.error = self.rng.choice((0.0, -5.0, -3_600.0, 3_600.0, 90.0, *far))

    def fair_weather(self) -> None:
        """From now on nothing goes wrong."""
        self.network.weather = Weather(slowest=0.1)
        self._is_fair = True
        self.time.error = 0.0

    def keep_only(self, kept: Sequence[Fault]) -> None:
        """Removes the sandbox's other rules."""
        for fault in self.sandbox.faults:
            if fault not in kept:
                self.sandbox.faults.remove(fault.id)

    def enable_halted(self) -> list[str]:
        """A person switches on again what stopped; why it had."""
        reasons = []
        for one in self.integrations():
            if one.halted_reason:
                reasons.append(one.halted_reason)
                registry.set_enabled(self.outside.store, one.key, enabled=True)
        return reasons

    # -- from outside ----------------------------------------------------------------------------------------------

    def note_what_was_met(self) -> None:
        """Adds what the store remembers of requests and exceptions, and what the network did, to the facts."""
        met = self.facts.met
        met.update({f"answer {outcome}": requests for outcome, requests in self.ledger.outcomes().items()})
        met.update({f"event {what}": events for what, events in self.ledger.exceptions().items()})
        met.update({f"network {kind}": times for kind, times in self.network.met.items()})
        met["event sent again"] += self.sandbox.audit.duplicates
        if self.objects is not None:
            met.update({f"objects {what}": times for what, times in self.objects.asked.items()})

    def close(self) -> None:
        """OutcomeRecorder the world."""
        self.outside.store.close()
        self.ledger.close()

    def received_with(self, api_key: str) -> dict[str, dict[str, Any]]:
        """The events that the sandbox took with this key, by insert_id."""
        found: dict[str, dict[str, Any]] = {}
        for project in self.sandbox.stores():
            if project.digest == key_digest(api_key):
                for batch in project.batches:
                    found.update({event["insert_id"]: event for event in batch.events()})
        return found

    def check_audit(self, *, order: bool = True) -> None:
        """What the sandbox noticed about the sender; rows that are loaded late are out of order, and may be."""
        audit = self.sandbox.audit
        for name in (
            "accepted_more_than_once",
            "concurrent_same_user",
            "changed_repeats",
            *["order_violations"] * order,
        ):
            finding = getattr(audit, name)
            self.check(finding.count == 0, f"{name}: {finding.count}, {finding.examples[:3]}")
        self.check(
            audit.duplicates <= self.network.unheard,
            f"{audit.duplicates} events came again, {self.network.unheard} had no answer",
        )
