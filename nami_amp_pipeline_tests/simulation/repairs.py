"""Histories of repairs: Amplitude loses, cuts and doubles what it took; days are compared, and what is missing is sent.

Live delivery and a second person who repairs come in between, processes end, and the weather is as bad as ever.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.errors import Busy
from nami_amp_pipeline.operations.reconciliation import Day, Reconciliation
from nami_amp_pipeline.operations.status import status
from nami_amp_pipeline.reconciliation import MISSING
from nami_amp_pipeline.reconciliation.day import DAY
from nami_amp_pipeline.sandbox import Fault, Options
from nami_amp_pipeline.sandbox.store import ProjectStore
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.delivery import BASE
from nami_amp_pipeline_tests.simulation.exports import SimulatedExport
from nami_amp_pipeline_tests.simulation.history import run_history
from nami_amp_pipeline_tests.simulation.network import START, SimulatedWire
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.whole import ListWarehouse
from nami_amp_pipeline_tests.simulation.world import Facts, World

_TYPES = ("user.subscription.purchased", "user.subscription.renewed", "device.impression")
_KEY = "key-of-main".ljust(32, "0")
_HOUR = 3_600.0
_STEPS = ("reconcile.compared", "reconcile.repair", "reconcile.repaired")
_IDS = re.compile(rb'"insert_id":"([^"]*)"')


def simulate(seed: int) -> Facts:
    """Runs one history.

    Raises:
        WrongError: something that must hold does not.
    """
    return run_history(_Simulation, seed)


class _Simulation:
    def __init__(self, seed: int, folder: Path) -> None:
        rng = self.rng = random.Random(seed)
        settings = Settings.load({"NAMI_AMP_HOME": str(folder)}, folder / "no.env").replace(
            batch_events=rng.choice((2, 5, 50)),
            max_lanes=rng.choice((1, 3)),
            run_retry_seconds=60.0,
            lease_seconds=60,
            segment_rows=rng.choice((7, 1_000)),
            duckdb_threads=1,
        )
        self.warehouse = ListWarehouse()
        self.world = World(rng, folder, settings, self.warehouse, Options(index_mode="all"))
        self.users = [f"user{number}" for number in range(rng.choice((1, 3, 8)))]
        (settings.data_dir / "spill").mkdir(parents=True, exist_ok=True)
        self.source = SimulatedExport(self.world.sandbox, _KEY, settings.data_dir / "spill")
        self.posted: Counter[str] = Counter()
        self.posted_before: dict[str, int] = {}
        self.held: dict[str, tuple[int, frozenset[str]]] = {}
        self.repaired: list[tuple[str, int, frozenset[str]]] = []
        self.world.after_commit = self._note_held
        check_right = self.world._check_right

        def posts(owner: str, body: bytes) -> None:
            check_right(owner, body)
            self.posted.update(found.decode() for found in _IDS.findall(body))

        self.world._check_right = posts  # type: ignore[method-assign]

    def run(self) -> Facts:
        rng, world = self.rng, self.world
        world.network.advance(START + rng.choice((1.0, 2_790.0, 35_190.0)))  # also just before an hour, or a day, ends
        self.key = world.add("main", BASE.format(9), user_id_kind="nami_user_id", start_from=None).key
        for _ in range(rng.choice((1, 1, 2))):
            world.draw_weather()
            self._draw_losses()
            for _ in range(rng.choice((1, 2))):
                self._load(rng.choice((2, 6, 15)))
                world.tick(world.draw_perils(self._live, steps=60), self._live)
                world.network.advance(world.time.true + rng.choice((1.0, 5.0, 400.0)))
            if rng.random() < 0.3:
                world.fair_weather()
            world.network.advance(world.time.true + rng.choice((1.5, 2.2, 5.0, 5.0, 9 * 24.0)) * _HOUR)
            if rng.random() < 0.7:
                world.keep_only([])
            perils = world.draw_perils(self._others, steps=4)
            perils.crash_in = rng.choice((*_STEPS[1:], "", ""))
            if rng.random() < 0.4:
                perils.at_step = self._meanwhile()
            world.tick(perils, self._mend)
        self._to_the_end()
        world.facts.events = len(self.warehouse.rows)
        return world.facts

    # -- what processes do -----------------------------------------------------------------------------------------

    def _live(self, context: Context, wire: SimulatedWire) -> None:
        pipeline.capture_apps(context)
        pipeline.snapshot_apps(context)
        pipeline.prepare_integrations(context, registry.all_integrations(context.store))
        self.world.deliver(context, wire)

    def _mend(self, context: Context, _wire: SimulatedWire) -> None:
        """Somebody compares the days of all deliveries, and has what is missing sent again."""
        work = Reconciliation(context, self.key, self.source)
        days = []
        for at in self._delivery_days():
            lost = self._lost()  # others may come as soon as the comparison is over
            for day in work.compare(at, at):
                self._check_day(day, lost)
                days.append(day)
        try:
            done = work.repair(days)
        except Busy:
            self.world.facts.met["busy"] += 1
            return
        self.world.facts.met["repaired"] += done.events
        self.world.facts.met.update({f"not repaired: {why}": events for why, events in done.refused.items()})

    def _others(self, context: Context, wire: SimulatedWire) -> None:
        """What goes on between a comparison and its repair: new events, or somebody else who repairs, and a tick."""
        if self.rng.random() < 0.4:
            self._load(self.rng.choice((1, 4)))
        else:
            self._mend(context, wire)
        self._live(context, wire)

    def _meanwhile(self) -> Callable[[str], None]:
        """Lets others do their work after the first comparison, so that what it found holds no more."""
        left = ["reconcile.compared"]

        def step(name: str) -> None:
            if name in left:
                left.remove(name)
                self.world.facts.met["others come after a comparison"] += 1
                self.world.tick(Perils(), self._others)

        return step

    def _delivery_days(self) -> list[int]:
        table = tables.requests
        with self.world.outside.store.reading() as tx:
            times = tx.execute(sa.select(table.c.answered_at).where(table.c.outcome == "delivered")).scalars()
            return sorted({at // DAY * DAY for at in times})

    # -- what happens ----------------------------------------------------------------------------------------------

    def _draw_losses(self) -> None:
        rng, faults = self.rng, self.world.sandbox.faults
        if rng.random() < 0.3:
            faults.add(Fault("lost_after_200", event_type=rng.choice(_TYPES)))
        else:
            faults.add(Fault("lost_after_200", probability=rng.choice((0.3, 0.6, 1.0))))
        if rng.random() < 0.3:
            faults.add(Fault("cut_property", probability=0.3, property_name="text", characters=3))
        if rng.random() < 0.3:
            faults.add(Fault("stored_twice", probability=0.2))
        if rng.random() < 0.2:
            faults.add(Fault("throttle_user", user_id=rng.choice(self.users), times=rng.randint(1, 3)))

    def _load(self, count: int) -> None:
        rng, now = self.rng, self.world.time.true
        for _ in range(count):
            number = len(self.warehouse.rows)
            user, event_type = rng.choice(self.users), rng.choice(_TYPES)
            payload: dict[str, Any] = {"n": number, "text": "a long text"}
            if event_type.startswith("device."):
                payload["device_id"] = f"device-of-{user}"
            elif rng.random() < 0.8:
                payload["active_entitlements"] = [{"entitlement_ref_id": f"pro{number}", "sku_ref_id": f"sku{number}"}]
            self.warehouse.rows.append(
                {
                    "id": f"e{number:04}",
                    "app_id": "app",
                    "event_type": event_type,
                    "user_id": user,
                    "created_date": datetime.fromtimestamp(now - rng.choice((0, 0, 500)), UTC)
                    + timedelta(milliseconds=number),
                    "ingested_at": datetime.fromtimestamp(now, UTC) + timedelta(microseconds=number),
                    "payload": orjson.dumps(payload).decode(),
                }
            )

    def _note_held(self, _run_id: str) -> None:
        """Remembers when an event was held for a repair, and what had been posted by then."""
        held = self.world.ledger.held_for(MISSING)
        for event_id in held - self.held.keys():
            # What waits itself is on its way no more.
            self.held[event_id] = len(self._arrivals()), frozenset(self.posted.keys() - held)
            self.posted_before[event_id] = self.posted[event_id]
            self.repaired.append((event_id, *self.held[event_id]))
        for event_id in self.held.keys() - held:
            del self.held[event_id]

    def _project(self) -> ProjectStore | None:
        return next(iter(self.world.sandbox.stores()), None)

    def _arrivals(self) -> list[dict[str, Any]]:
        """Every event that Amplitude took as a new one, in the order in which they came."""
        project = self._project()
        return [event for batch in project.batches for event in batch.events()] if project is not None else []

    def _lost(self) -> set[str]:
        """What Amplitude took and does not hold."""
        project = self._project()
        if project is None:
            return set()
        held = {event["insert_id"] for batch in project.batches for _, _, event in batch.held()}
        return {event["insert_id"] for event in self._arrivals()} - held

    def _dead(self) -> set[str]:
        """What nobody sends again by itself: whether it was stored is not known, and it is too old."""
        table = tables.exceptions
        with self.world.outside.store.reading() as tx:
            return set(tx.execute(sa.select(table.c.event_id).where(table.c.state == "dead")).scalars())

    # -- what must hold --------------------------------------------------------------------------------------------

    def _check_day(self, day: Day, lost: set[str]) -> None:
        """A comparison calls nothing missing that is held; nobody writes while it reads."""
        missing = {difference.event_id for difference in day.of("missing")}
        wrong = missing - lost
        self.world.facts.met["found missing"] += len(missing)
        self.world.facts.met["found altered"] += day.counts["altered"]
        self.world.facts.met["found twice"] += day.counts["twice"]
        self.world.facts.met["found not yet exported"] += day.counts["not_yet_exported"]
        self.world.check(not wrong, f"{day.date}: {sorted(wrong)[:3]} are held, and called missing")

    def _to_the_end(self) -> None:
        world = self.world
        world.fair_weather()
        world.keep_only([])
        for _ in range(20):
            world.network.advance(world.time.true + 5 * _HOUR)
            (numbers,) = status(world.outside, world.integrations())
            if numbers.pending or numbers.captured < len(self.warehouse.rows):
                world.check(world.tick(Perils(), self._live), "the last ticks must come to their end")
            elif self._lost() - self._dead():
                world.check(world.tick(Perils(), self._mend), "the last repairs must come to their end")
            else:
                world.check(world.tick(Perils(), self._mend), "one more repair must come to its end")
                self._check()
                return
        world.check(False, f"{sorted(self._lost())[:5]} are lost for good, or pending: {numbers}")

    def _check(self) -> None:
        world = self.world
        for name in ("accepted_more_than_once", "concurrent_same_user"):
            finding = getattr(world.sandbox.audit, name)
            world.check(finding.count == 0, f"{name}: {finding.count}, {finding.examples[:3]}")
        again, unheard = world.sandbox.audit.duplicates, world.network.unheard
        world.check(again <= unheard, f"{again} events came again, {unheard} had no answer")
        world.note_what_was_met()
        dead = self._dead()
        given_up = {event for event, times in self.posted_before.items() if self.posted[event] == times} & dead
        world.check(not given_up, f"{sorted(given_up)[:3]} were to be sent again, and were given up")
        gone = {row["id"] for row in self.warehouse.rows} - world.received_with(_KEY).keys() - dead
        world.check(not gone, f"{sorted(gone)[:5]} never came")
        arrivals = self._arrivals()
        self._check_order([event["insert_id"] for event in arrivals])
        self._check_turns(arrivals)
        self._check_profiles(dead)
        world.facts.met["event as history"] += sum("$skip_user_properties_sync" in event for event in arrivals)

    def _check_order(self, came: list[str]) -> None:
        """From the moment that an event waits to be sent again, no newer one of its user comes before it."""
        rows = {row["id"]: row for row in self.warehouse.rows}
        for event_id, since, posted in self.repaired:
            mine = rows[event_id]
            ends = self._next(came, event_id, since)
            for other in came[since : ends[0]] if ends else ():
                row = rows[other]
                is_newer = (row["created_date"], other) > (mine["created_date"], event_id)
                # What was posted before may have been on its way for long.
                wrong = row["user_id"] == mine["user_id"] and is_newer and other not in posted
                self.world.check(not wrong, f"{other} came before {event_id}, which waited to be sent again")

    def _check_turns(self, arrivals: list[dict[str, Any]]) -> None:
        """Whatever sets a profile is not older than what set it before.

        A request that got no answer is posted again as it was, also if its events were lost meanwhile.
        """
        came = [event["insert_id"] for event in arrivals]
        counting = {came.index(event_id) for event_id in came}
        counting |= {place for event_id, since, _ in self.repaired for place in self._next(came, event_id, since)}
        newest: dict[str, int] = {}
        for place in sorted(counting):
            event = arrivals[place]
            if "user_properties" not in event or "$skip_user_properties_sync" in event:
                continue
            before = newest.get(event["user_id"], event["time"])
            self.world.check(before <= event["time"], f"{event['insert_id']} turned the profile back")
            newest[event["user_id"]] = event["time"]

    @staticmethod
    def _next(came: list[str], event_id: str, since: int) -> list[int]:
        """Where an event came first from some place on; nothing if it did not."""
        return [place for place in range(since, len(came)) if came[place] == event_id][:1]

    def _check_profiles(self, dead: set[str]) -> None:
        """A profile holds what its user's newest event says."""
        project = self._project()
        if project is None:
            return
        while not project.catch_up():
            pass
        received = self.world.received_with(_KEY)
        for user in self.users:
            mine = [row for row in self.warehouse.rows if row["user_id"] == user and row["event_type"][:5] == "user."]
            if not mine or dead & {row["id"] for row in mine}:
                continue
            newest = max(mine, key=lambda row: (row["created_date"], row["id"]))["id"]
            wanted = json.loads(json.dumps(received[newest].get("user_properties", {})))
            profile = project.profiles.get(user)
            held = profile.user_properties if profile is not None else {}
            differ = [name for name in wanted if held.get(name) != wanted[name]]
            self.world.check(not differ, f"{user}: {differ} of {held} instead of {wanted}, as {newest} says")
