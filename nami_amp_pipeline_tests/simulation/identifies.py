"""Histories of identifies beside live delivery: users who change meanwhile, late rows, and processes that end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import NewIdentify
from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.beside_live import BesideLive
from nami_amp_pipeline_tests.simulation.delivery import BASE
from nami_amp_pipeline_tests.simulation.history import run_history
from nami_amp_pipeline_tests.simulation.network import START
from nami_amp_pipeline_tests.simulation.person import Person
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.world import Facts

_TYPES = ("user.subscription.purchased", "user.odd", "user.odd", "device.impression")
_KEY = "key-of-main".ljust(32, "0")
_IDENTIFY = "$identify"


def simulate(seed: int) -> Facts:
    """Runs one history.

    Raises:
        WrongError: something that must hold does not.
    """
    return run_history(_Simulation, seed)


class _Simulation(BesideLive):
    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed, folder, batch_events=(1, 2, 5), segment_rows=(3, 1_000))
        self.started = 0

    def run(self) -> Facts:
        rng, world = self.rng, self.world
        world.network.advance(START + 1.0)
        main = world.add("main", BASE.format(9), user_id_kind="nami_user_id", start_from=None)
        self.integration_id = main.id
        self.person = Person(world, main.id)
        self.load(rng.choice((4, 10, 25)))
        world.tick(Perils(), self.live)
        self._begin()
        for _ in range(rng.choice((1, 2, 3))):
            world.draw_weather()
            if rng.random() < 0.6:
                self.load(rng.choice((1, 3, 8)))
            if rng.random() < 0.3:
                world.sandbox.faults.add(
                    Fault("throttle_user", user_id=rng.choice(self.users), times=rng.choice((1, 3, 8)))
                )
            mine, others = (self.work, self.news) if rng.random() < 0.7 else (self.live, self.work)
            perils = world.draw_perils(others, steps=rng.choice((6, 14, 40)))
            self.come_between(perils, mine)
            world.tick(perils, mine)
            world.network.advance(world.time.true + rng.choice((1.0, 100.0, 400.0)))
            if show(world.outside, self.number).backfill.state in ("done", "cancelled") and rng.random() < 0.5:
                self._begin()
        self._to_the_end()
        world.facts.events = len(self.warehouse.rows)
        return world.facts

    def _begin(self) -> None:
        """Another identify, once the one before has come to its end."""
        if self.started and show(self.world.outside, self.number).backfill.state == "cancelled":
            backfills.cancel(self.world.outside, self.number)
        self.number = backfills.create(self.world.outside, NewIdentify("app/main")).id
        self.started += 1
        self.person.begins_anew()

    def load(self, count: int) -> None:
        """Rows of some users, created within ten minutes and loaded now; states come back."""
        rng, now = self.rng, max(self.world.time.true, START)
        for _ in range(count):
            number = len(self.warehouse.rows)
            user, event_type = rng.choice(self.users), rng.choice(_TYPES)
            payload: dict[str, Any] = {"n": number}
            if event_type.startswith("device."):
                payload["device_id"] = f"device-of-{user}"
            elif rng.random() < 0.9:
                payload["active_entitlements"] = [{"entitlement_ref_id": rng.choice(("silver", "gold"))}]
            loaded = datetime.fromtimestamp(now, UTC) - timedelta(seconds=rng.choice((0, 30)))
            self.warehouse.rows.append(
                {
                    "id": f"e{number:04}",
                    "app_id": "app",
                    "event_type": event_type,
                    "user_id": user,
                    "created_date": datetime.fromtimestamp(now - rng.randrange(600), UTC),
                    "ingested_at": loaded + timedelta(microseconds=number),
                    "payload": orjson.dumps(payload).decode(),
                }
            )

    def note_step(self, run_id: str, step: str) -> None:
        super().note_step(run_id, step)
        if step == "backfill.prepared":
            self._check_nobody_waits()

    def _check_nobody_waits(self) -> None:
        """Users whose events are held are left to those."""
        held, boxes = tables.exceptions, tables.outboxes
        outside: Context = self.world.outside
        with outside.store.reading() as tx:
            waiting = set(
                tx.execute(
                    sa.select(held.c.identity).where(
                        held.c.integration_id == self.integration_id, held.c.state == "held"
                    )
                ).scalars()
            )
            channel = show(outside, self.number).backfill.channel_id
            names = tx.execute(
                sa.select(boxes.c.file).where(boxes.c.integration_id == channel, boxes.c.done_at.is_(None))
            ).scalars()
            sent = {
                identity
                for name in names
                for identity in outside.folder.open_ipc(name, mapped=False).read_all()["identity"].to_pylist()
            }
        self.world.facts.met["somebody's events are held"] += bool(waiting)
        self.world.check(not waiting & sent, f"{sorted(waiting & sent)} are not left to their events")

    def _to_the_end(self) -> None:
        world = self.world
        world.fair_weather()
        world.keep_only([])
        state = ""
        for _ in range(40):
            world.network.advance(world.time.true + 700.0)
            world.check(world.tick(Perils(), self.live), "the last ticks must come to their end")
            state = show(world.outside, self.number).backfill.state
            if state == "cancelled":
                self._begin()
                continue
            world.check(world.tick(Perils(), self.work), "the identify must come to its end")
            state = show(world.outside, self.number).backfill.state
            if state == "done" and not self.pending():
                break
        world.check(state == "done", f"still pending after all: {show(world.outside, self.number).to_json()}")
        self._begin()
        world.check(world.tick(Perils(), self.work), "one more identify must come to its end")
        self._begin()
        world.check(world.tick(Perils(), self.work), "a repeat must come to its end")
        found = show(world.outside, self.number).found
        world.check(set(found) <= {"unchanged", "no_state"}, f"a repeat found {found}")
        self._check()

    def _check(self) -> None:
        world = self.world
        for name in ("accepted_more_than_once", "concurrent_same_user", "changed_repeats"):
            finding = getattr(world.sandbox.audit, name)
            world.check(finding.count == 0, f"{name}: {finding.count}, {finding.examples[:3]}")
        world.note_what_was_met()
        received = world.received_with(_KEY)
        wanted = {row["id"] for row in self.warehouse.rows if row["event_type"] != "user.odd"}
        world.check(wanted <= received.keys(), f"lost {sorted(wanted - received.keys())[:5]}")
        self._check_turns(received)
        self._check_profiles()
        for made in range(1, self.number + 1):
            status = show(world.outside, made)
            world.check(status.pending == 0, f"pending: {status}")
            world.facts.met.update({f"found {name}": users for name, users in status.found.items()})
            world.facts.met.update({f"skipped {why}": users for why, users in status.skipped.items()})
        world.facts.met["identify"] += sum(event["event_type"] == _IDENTIFY for event in received.values())
        world.facts.met["event as history"] += sum("$skip_user_properties_sync" in event for event in received.values())

    def _check_turns(self, received: Mapping[str, Mapping[str, Any]]) -> None:
        """Whatever sets a profile is newer than what set it before, in the order in which it came."""
        newest: dict[str, int] = {}
        for ident, event in received.items():
            if "user_properties" not in event or "$skip_user_properties_sync" in event:
                continue
            before = newest.get(event["user_id"], event["time"])
            self.world.check(before <= event["time"], f"{ident} turned the profile of {event['user_id']} back")
            newest[event["user_id"]] = event["time"]

    def _check_profiles(self) -> None:
        """After the last identify, a profile holds what its user's newest event with state says."""
        (project,) = [store for store in self.world.sandbox.stores() if len(store.batches)]
        while not project.catch_up():
            pass
        for user in self.users:
            mine = [
                (row["created_date"], row["id"], orjson.loads(row["payload"]).get("active_entitlements"))
                for row in self.warehouse.rows
                if row["user_id"] == user and row["event_type"].startswith("user.")
            ]
            states = sorted(row for row in mine if row[2])
            if not states:
                continue
            wanted = [item["entitlement_ref_id"] for item in states[-1][2]]
            profile = project.profiles.get(user)
            held = profile.user_properties.get("namiml_active_entitlements") if profile else None
            self.world.check(held == wanted, f"{user} has {held} instead of {wanted}, as {states[-1][1]} says")
