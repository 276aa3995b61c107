"""Histories of backfills beside live delivery: rows before and after an integration's start, and processes that end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.operations import backfills
from nami_amp_pipeline.operations.backfill_status import show
from nami_amp_pipeline.operations.backfills import NewBackfill
from nami_amp_pipeline.sandbox import Fault
from nami_amp_pipeline.stages.window import Window
from nami_amp_pipeline.state import tables
from nami_amp_pipeline_tests.simulation.beside_live import BesideLive
from nami_amp_pipeline_tests.simulation.delivery import BASE
from nami_amp_pipeline_tests.simulation.history import run_history
from nami_amp_pipeline_tests.simulation.network import START
from nami_amp_pipeline_tests.simulation.person import Person
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.world import Facts

_TYPES = ("user.subscription.purchased", "user.subscription.renewed", "user.odd", "device.impression")
_KEY = "key-of-main".ljust(32, "0")


def simulate(seed: int) -> Facts:
    """Runs one history.

    Raises:
        WrongError: something that must hold does not.
    """
    return run_history(_Simulation, seed)


class _Simulation(BesideLive):
    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed, folder, batch_events=(2, 5, 50), segment_rows=(7, 1_000))
        self.loaded_from = datetime.fromtimestamp(START - 600, UTC)

    def run(self) -> Facts:
        rng, world = self.rng, self.world
        self.load(rng.choice((5, 12, 30)))
        self.loaded_from = datetime.fromtimestamp(START + 1, UTC)
        world.network.advance(START + 1.0)
        # The start of the integration is among the rows: live delivery never sends those before it.
        start = rng.choice((None, int((START - rng.choice((0, 200, 400))) * 1e6), int((START + 1) * 1e6)))
        main = world.add("main", BASE.format(9), user_id_kind="nami_user_id", start_from=start)
        self.integration_id, self.person = main.id, Person(world, main.id)
        if rng.random() < 0.5:
            world.add("other", BASE.format(9), user_id_kind="nami_user_id")
        if rng.random() < 0.5:
            world.tick(Perils(), self.live)
        window = Window(
            int((START - 1_000) * 1e6), int((START + 100_000) * 1e6), rng.choice(("created_date", "ingested_at"))
        )
        self.new = NewBackfill(main.key, window)
        self._begin()
        for _ in range(rng.choice((1, 2, 4))):
            world.draw_weather()
            if rng.random() < 0.5:
                self.load(rng.choice((1, 4, 10)))
            if rng.random() < 0.15:
                world.sandbox.faults.add(
                    Fault("throttle_user", user_id=rng.choice(self.users), times=rng.randint(1, 3))
                )
            mine, others = (self.work, self.live) if rng.random() < 0.7 else (self.live, self.work)
            perils = world.draw_perils(others, steps=rng.choice((6, 14, 60)))
            self.come_between(perils, mine)
            world.tick(perils, mine)
            world.network.advance(world.time.true + rng.choice((1.0, 100.0, 400.0)))
        self._to_the_end()
        self._check(start)
        world.facts.events = len(self.warehouse.rows)
        return world.facts

    def _begin(self) -> None:
        """The backfill, or one more after it was cancelled."""
        if hasattr(self, "number"):
            backfills.cancel(self.world.outside, self.number)
        self.number = backfills.create(self.world.outside, self.new).id
        self.person.begins_anew()

    def load(self, count: int) -> None:
        """Rows of some users, created within ten minutes; those of the beginning are the backfill's."""
        rng = self.rng
        now = max(self.world.time.true, START)
        for _ in range(count):
            number = len(self.warehouse.rows)
            user, event_type = rng.choice(self.users), rng.choice(_TYPES)
            payload: dict[str, Any] = {"n": number}
            if event_type.startswith("device."):
                payload["device_id"] = f"device-of-{user}"
            elif rng.random() < 0.8:
                payload["active_entitlements"] = [{"entitlement_ref_id": f"pro{number}", "sku_ref_id": f"sku{number}"}]
                payload["customer_journey_state"] = {"in_grace_period": rng.random() < 0.5}
            loaded = datetime.fromtimestamp(now, UTC) - timedelta(seconds=rng.choice((0, 0, 30, 300, 500)))
            self.warehouse.rows.append(
                {
                    "id": f"e{number}",
                    "app_id": "app",
                    "event_type": event_type,
                    "user_id": user,
                    "created_date": datetime.fromtimestamp(now - rng.randrange(600), UTC),
                    # What is loaded later is live delivery's: a backfill reads the warehouse once.
                    "ingested_at": max(loaded, self.loaded_from) + timedelta(microseconds=number),
                    "payload": orjson.dumps(payload).decode(),
                }
            )

    def _to_the_end(self) -> None:
        world = self.world
        world.fair_weather()
        world.keep_only([])
        for _ in range(40):
            world.network.advance(world.time.true + 700.0)
            world.check(world.tick(Perils(), self.live), "the last ticks must come to their end")
            if show(world.outside, self.number).backfill.state == "cancelled":
                self._begin()
            world.check(world.tick(Perils(), self.work), "the backfill must come to its end")
            state = show(world.outside, self.number)
            if state.backfill.state == "done" and not self.pending() and not self._missing():
                return
        world.check(False, f"still pending after all: {show(world.outside, self.number).to_json()}")

    def _missing(self) -> set[str]:
        wanted = {row["id"] for row in self.warehouse.rows if row["event_type"] != "user.odd"}
        return wanted - self.world.received_with(_KEY).keys() - self._given_up()

    def _given_up(self) -> set[str]:
        """Events of a backfill that was cancelled while nobody knew whether they were stored."""
        table = tables.exceptions
        with self.world.outside.store.reading() as tx:
            return set(tx.execute(sa.select(table.c.event_id).where(table.c.state == "dead")).scalars())

    def _check(self, start: int | None) -> None:
        world = self.world
        audit = world.sandbox.audit
        for name in ("accepted_more_than_once", "concurrent_same_user"):
            finding = getattr(audit, name)
            world.check(finding.count == 0, f"{name}: {finding.count}, {finding.examples[:3]}")
        made = [show(world.outside, number) for number in range(1, self.number + 1)]
        repeats = sum(status.found.get("repeat", 0) for status in made)
        world.check(
            audit.duplicates <= world.network.unheard + repeats,
            f"{audit.duplicates} events came again, {world.network.unheard} had no answer, {repeats} were meant to",
        )
        world.note_what_was_met()
        world.check(not self._missing(), f"lost {sorted(self._missing())[:5]}")
        received = world.received_with(_KEY)
        self._check_profiles(received)
        self._check_order(received, start)
        end = show(world.outside, self.number)
        world.check(end.pending == 0, f"pending: {end}")
        world.facts.met.update({f"found {name}": events for name, events in end.found.items()})
        world.facts.met["event as history"] += sum("$skip_user_properties_sync" in event for event in received.values())

    def _check_profiles(self, received: Mapping[str, Mapping[str, Any]]) -> None:
        """A profile holds what its user's newest event says."""
        rows = {row["id"]: row for row in self.warehouse.rows}
        given_up = self._given_up()
        (project,) = [store for store in self.world.sandbox.stores() if len(store.batches) and _has(store, received)]
        while not project.catch_up():
            pass
        for user in self.users:
            mine = [
                ident
                for ident in received
                if rows[ident]["user_id"] == user and rows[ident]["event_type"].startswith("user.")
            ]
            if not mine or any(rows[ident]["user_id"] == user for ident in given_up):
                continue  # what was given up may have been the newest, so that the others came as history
            newest = max(mine, key=lambda ident: (rows[ident]["created_date"], ident))
            profile = project.profiles.get(user)
            self.world.check(profile is not None, f"{user} has no profile")
            held = profile.user_properties if profile is not None else {}
            wanted = json.loads(json.dumps(received[newest].get("user_properties", {})))
            differ = [name for name in wanted if held.get(name) != wanted[name]]
            self.world.check(not differ, f"{user}: {differ} of {held} instead of {wanted}, as {newest} says")

    def _check_order(self, received: Mapping[str, Mapping[str, Any]], start: int | None) -> None:
        """What only the backfill sends comes in the order of creation, for each user."""
        rows = {row["id"]: row for row in self.warehouse.rows}
        newest: dict[str, tuple[datetime, str]] = {}
        for ident in received:
            row = rows[ident]
            if start is None or row["ingested_at"].timestamp() * 1e6 >= start:
                continue
            key = (row["created_date"], ident)
            self.world.check(newest.get(row["user_id"], key) <= key, f"{ident} of {row['user_id']} came too late")
            newest[row["user_id"]] = key


def _has(store: Any, received: Mapping[str, Any]) -> bool:
    from nami_amp_pipeline.sandbox.settings import key_digest

    return bool(received) and store.digest == key_digest(_KEY)
