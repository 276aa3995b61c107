"""Histories of the fourth stage alone, over outboxes written as the third stage writes them."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import sqlalchemy as sa

from nami_amp_pipeline.sandbox import Fault, Options
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.warehouse.duckdb_file import DuckDBWarehouse
from nami_amp_pipeline_tests.simulation.outboxes import Event, draw_events, write_outbox
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.world import Facts, World
from nami_amp_pipeline_tests.support.fast_start import work_folder

BASE = "http://127.0.0.1:{}/2/httpapi"
DAY = 86_400.0


def simulate(seed: int) -> Facts:
    """Runs one history.

    Raises:
        WrongError: something that must hold does not.
    """
    folder = work_folder()
    try:
        simulation = _Simulation(seed, folder)
        try:
            return simulation.run()
        finally:
            simulation.world.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Simulation:
    def __init__(self, seed: int, folder: Path) -> None:
        rng = self.rng = random.Random(seed)
        settings = Settings.load({"NAMI_AMP_HOME": str(folder)}, folder / "no.env")
        settings = settings.replace(
            batch_events=rng.choice((1, 3, 7, 20, 60, 500, 500)),
            batch_bytes=rng.choice((10_000, 950_000)),
            max_lanes=rng.choice((1, 2, 4, 8)),
            run_retry_seconds=rng.choice((0.0, 10.0, 120.0)),
            lease_seconds=60,
        )
        options = Options(
            index_mode=rng.choice(("first", "all", "none")), dup_counts_in_events_ingested=rng.random() < 0.5
        )
        world = self.world = World(rng, folder, settings, DuckDBWarehouse(settings), options)
        self.names = [f"i{number}" for number in range(rng.randint(1, 3))]
        ports = [9, 9, 10] if rng.random() < 0.5 else [9, 10, 11]
        self.ids = [world.add(name, BASE.format(port)).id for name, port in zip(self.names, ports, strict=False)]
        self.events: list[Event] = []
        self.dead: dict[str, str] = {}
        self.rules: list[Fault] = []
        self.long_gap = rng.random() < 0.1
        # Of what was posted at a time that is a day ahead, nobody knows whether it would still be recognised.
        self.is_age_unknown = False
        # Most histories are short: what goes wrong does so within a few requests, and more of them are more orders.
        self.is_long = rng.random() < 0.05

    def run(self) -> Facts:
        rng, world = self.rng, self.world
        for outbox in range(rng.randint(1, 3) if self.is_long else rng.choice((1, 1, 1, 2))):
            self._outbox(outbox)
            for _ in range(rng.randint(1, 3) if self.is_long else rng.choice((1, 1, 2))):
                world.draw_weather()
                self._troubles()
                if rng.random() < 0.15:
                    world.step_clock(-DAY)
                    self.is_age_unknown |= world.time.error == -DAY
                steps = rng.choice((10, 60, 300)) if self.is_long else rng.choice((6, 12, 40))
                world.tick(world.draw_perils(world.deliver, steps=steps), world.deliver)
                if rng.random() < 0.3:
                    self._enable()
                self._pass(rng.choice((0.0, 1.0, 70.0, 300.0)))
        if self.long_gap:  # an outage begins with answers that do not come, and lasts until repeats are not recognised
            world.network.weather.trouble = {"reset_after": 0.5, "timeout_after": 0.4}
            world.tick(Perils(), world.deliver)
            self._pass(8 * 86_400.0)
        self._to_the_end()
        self._check()
        world.facts.events = len(self.events) * len(self.ids)
        return world.facts

    def _pass(self, seconds: float) -> None:
        self.world.network.advance(self.world.time.true + seconds)

    def _outbox(self, number: int) -> None:
        rng = self.rng
        if self.is_long:
            hot = rng.choice((0, 0, 40, 1_500)) if self.world.settings.batch_events >= 60 else 0
            events = draw_events(rng, number, rng.choice((0, 1, 5, 40, 120)), rng.choice((1, 4, 30)), hot)
        else:
            events = draw_events(rng, number, rng.choice((1, 3, 8, 12)), rng.choice((1, 2, 4, 12)), 0)
        self.events += events
        write_outbox(self.world.outside, self.ids, number + 1, events, self.world.settings.max_lanes)
        for event in rng.sample(events, min(len(events), rng.choice((0, 0, 1, 3)))):
            self._spoil(event)

    def _spoil(self, event: Event) -> None:
        """Makes an event one that Amplitude never takes."""
        rng = self.rng
        kind = rng.choice(("poison", "poison", "403", "413", "silence_device"))
        if kind == "403" and list(self.dead.values()).count("forbidden") >= 3:
            kind = "poison"
        if kind == "silence_device" and event.device is None:
            kind = "413"
        if kind == "poison":
            rule = Fault("poison", insert_id=event.id, indexes=rng.choice(("first", "all", "none")))
            self.dead[event.id] = "rejected"
        elif kind == "403":
            rule = Fault("403", insert_id=event.id)
            self.dead[event.id] = "forbidden"
        elif kind == "413":
            rule = Fault("413", insert_id=event.id)
            self.dead[event.id] = "too_large"
        else:
            rule = Fault("poison", insert_id=event.id, indexes="none")
            self.dead[event.id] = "rejected"
        self.rules.append(rule)
        self.world.sandbox.faults.add(rule)

    def _troubles(self) -> None:
        """Rules of the sandbox that pass."""
        rng, world = self.rng, self.world
        world.keep_only(self.rules)
        if rng.random() < 0.25 and self.events:
            event = rng.choice(self.events)
            kind = rng.choice(("throttle_user", "quota_user"))
            named = {"user_id": event.user} if event.user is not None and rng.random() < 0.7 else {}
            if not named and event.device is not None:
                named = {"device_id": event.device}
            if named:
                world.sandbox.faults.add(Fault(kind, times=rng.randint(1, 4), **named))  # type: ignore[arg-type]
        if rng.random() < 0.08:
            world.sandbox.faults.add(Fault(rng.choice(("invalid_key", "redirect")), times=rng.randint(1, 3)))
        if rng.random() < 0.05:
            self.forbidding = True
            world.sandbox.faults.add(Fault("403"))

    forbidding = False

    def _enable(self) -> None:
        """A person repairs what stopped the integrations; a firewall that refuses everything is found so only then."""
        if self.forbidding:
            return
        self.world.enable_halted()

    def _to_the_end(self) -> None:
        world = self.world
        if self.forbidding:  # until it has stopped whatever still wanted to post
            world.network.weather.trouble = {}
            world.network.weather.outages = []
            world.network.weather.size_limit = None
            world.time.error = 0.0
            world.enable_halted()
            world.keep_only([*self.rules, *(rule for rule in world.sandbox.faults if rule.kind == "403")])
            for _ in range(12):
                self._pass(4_000.0)
                world.tick(Perils(), world.deliver)
        world.fair_weather()
        world.keep_only(self.rules)
        # Without any patience a run is over after one request of those that wait: it would take as many runs.
        world.settings = world.settings.replace(run_retry_seconds=max(10.0, world.settings.run_retry_seconds))
        for _ in range(80):
            world.enable_halted()
            self._pass(4_000.0)
            done = world.tick(Perils(), world.deliver)
            world.check(done, "the last ticks must come to their end")
            if not self._pending():
                return
        world.check(False, f"still pending after all: {self._pending()}")

    def _pending(self) -> int:
        boxes, exceptions = tables.outboxes, tables.exceptions
        with self.world.outside.store.begin() as tx:
            open_boxes = tx.execute(sa.select(sa.func.count()).where(boxes.c.done_at.is_(None))).scalar_one()
            held = tx.execute(sa.select(sa.func.count()).where(exceptions.c.state == "held")).scalar_one()
        return int(open_boxes) + int(held)

    def _check(self) -> None:
        world = self.world
        world.check_audit()
        world.check_status(world.outside)
        world.note_what_was_met()
        wanted = {event.id: event for event in self.events}
        for integration_id, name in zip(self.ids, self.names, strict=True):
            dead = self._dead_letters(integration_id)
            unknown = {event_id for event_id, reason in dead.items() if reason == "outcome_unknown"}
            world.check(
                self.long_gap or self.is_age_unknown or not unknown, f"{name}: given up without need: {unknown}"
            )
            known = {event_id: reason for event_id, reason in dead.items() if event_id not in unknown}
            expected = {event_id: reason for event_id, reason in self.dead.items() if event_id not in unknown}
            if not self.forbidding:
                world.check(known == expected, f"{name}: dead letters {known} instead of {expected}")
        self._check_received(wanted)

    def _check_received(self, wanted: dict[str, Event]) -> None:
        world = self.world
        for integration_id, name in zip(self.ids, self.names, strict=True):
            received = world.received_with(f"key-of-{name}".ljust(32, "0"))
            dead = self._dead_letters(integration_id)
            unknown = {event_id for event_id, reason in dead.items() if reason == "outcome_unknown"}
            missing = wanted.keys() - received.keys() - dead.keys()
            world.check(not missing, f"{name}: lost {sorted(missing)[:5]}")
            # What a firewall refuses that refuses everything may have been taken before, without an answer.
            both = set() if self.forbidding else received.keys() & dead.keys() - unknown
            world.check(not both, f"{name}: both dead and delivered {sorted(both)[:5]}")
            world.check(received.keys() <= wanted.keys(), f"{name}: from nowhere")

    def _dead_letters(self, integration_id: int) -> dict[str, str]:
        table = tables.exceptions
        with self.world.outside.store.begin() as tx:
            rows = tx.execute(
                sa.select(table.c.event_id, table.c.reason).where(
                    table.c.integration_id == integration_id, table.c.state == "dead"
                )
            ).all()
        self.world.check(len({row.event_id for row in rows}) == len(rows), "an event is a dead letter twice")
        return {row.event_id: row.reason for row in rows}
