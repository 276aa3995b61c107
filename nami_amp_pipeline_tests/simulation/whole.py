"""Histories of all four stages: rows come in, late and repeated; users log in later; processes end anywhere."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline import pipeline
from nami_amp_pipeline.amplitude.sandbox import Options
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.status import status
from nami_amp_pipeline.warehouse import EventRow, Finding, Source
from nami_amp_pipeline_tests import reference
from nami_amp_pipeline_tests.histories import to_batch
from nami_amp_pipeline_tests.simulation.delivery import BASE, work_folder
from nami_amp_pipeline_tests.simulation.network import START, SimulatedWire
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.world import Facts, World

_TYPES = (
    "user.subscription.purchased",
    "user.subscription.renewed",
    "user.weird",
    "device.impression",
    "device.transaction",
)
_ANONYMOUS = ("skip", "nami_user_id", "device_id", "wait_for_login")


class ListWarehouse:
    """A warehouse of rows in memory."""

    name = "a list"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def open(self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]) -> Iterator[Source]:
        if not self.rows:
            yield Source("", None, lambda: "")
            return
        batch = to_batch(self.rows)
        table = pa.Table.from_batches([batch]).append_column("rid", pa.array(range(batch.num_rows), pa.int64()))
        connection.register("nami_events", table)
        head = max(int(row["ingested_at"].timestamp() * 1_000_000) for row in self.rows)
        yield Source("nami_events", head, lambda: "nami_events")

    def oldest(self, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str], after: int) -> dict[str, int]:
        raise NotImplementedError

    def find(self, connection: duckdb.DuckDBPyConnection, event_id: str) -> list[EventRow]:
        raise NotImplementedError

    def check(self) -> list[Finding]:
        raise NotImplementedError


def simulate(seed: int) -> Facts:
    """Runs one history.

    Raises:
        WrongError: something that must hold does not.
    """
    folder = work_folder()
    try:
        return _Simulation(seed, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Simulation:
    def __init__(self, seed: int, folder: Path) -> None:
        rng = self.rng = random.Random(seed)
        settings = replace(
            Settings.load({"NAMI_AMP_HOME": str(folder)}, folder / "no.env"),
            batch_events=rng.choice((2, 5, 50)),
            max_lanes=rng.choice((1, 3)),
            run_retry_seconds=30.0,
            lease_seconds=60,
            segment_rows=rng.choice((7, 1_000)),
            max_rows_per_tick=rng.choice((15, 1_000)),
            duckdb_threads=1,
        )
        self.warehouse = ListWarehouse()
        self.world = World(rng, folder, settings, self.warehouse, Options(index_mode="none"))
        self.anonymous = rng.choice(_ANONYMOUS)
        self.plain = self.world.add("plain", BASE.format(9), user_id_kind="nami_user_id")
        self.other = self.world.add("other", BASE.format(9), anonymous=self.anonymous)
        self.users = [f"user{number}" for number in range(rng.choice((1, 3, 8)))]

    def run(self) -> Facts:
        rng, world = self.rng, self.world
        for _ in range(rng.randint(1, 2)):
            self._load(rng.choice((0, 1, 6, 25)))
            world.draw_weather()
            if rng.random() < 0.2:
                world.step_clock()
            world.tick(world.draw_perils(self._stages, steps=rng.choice((6, 14, 60))), self._stages)
            world.network.advance(world.time.true + rng.choice((1.0, 100.0, 400.0)))
        self._to_the_end()
        self._check()
        world.facts.events = len(self.warehouse.rows)
        return world.facts

    def _stages(self, context: Context, wire: SimulatedWire) -> None:
        pipeline.capture_apps(context)
        pipeline.snapshot_apps(context)
        pipeline.prepare_integrations(context, registry.all_integrations(context.store))
        self.world.deliver(context, wire)

    def _load(self, count: int) -> None:
        """Rows become visible: some of them up to nine minutes late, some a second time."""
        rng = self.rng
        now = datetime.fromtimestamp(self.world.time.true, UTC)
        for _ in range(count):
            late = timedelta(seconds=rng.choice((0, 0, 0, 30, 300, 530)))
            ingested = max(now - late, datetime.fromtimestamp(START, UTC)) + timedelta(
                microseconds=rng.randrange(10**6)
            )
            if self.warehouse.rows and rng.random() < 0.15:
                row = {**rng.choice(self.warehouse.rows), "ingested_at": ingested}
            else:
                row = self._row(len(self.warehouse.rows), ingested)
            self.warehouse.rows.append(row)

    def _row(self, number: int, ingested: datetime) -> dict[str, Any]:
        rng = self.rng
        event_type, user = rng.choice(_TYPES), rng.choice(self.users)
        created = datetime.fromtimestamp(START, UTC) - timedelta(seconds=rng.randrange(500))
        payload: dict[str, Any] = {"id": f"e{number}", "n": number}
        if event_type.startswith("device."):
            payload |= {"device_id": f"device-of-{user}", "amount": 1.5}
        elif rng.random() < 0.7:
            payload["active_entitlements"] = [{"entitlement_ref_id": f"pro{number}", "sku_ref_id": "sku"}]
            payload["customer_journey_state"] = {"former_subscriber": rng.random() < 0.5, "in_grace_period": False}
        if rng.random() < 0.3:
            payload["external_ids"] = [{"key": "external_id", "type": "x", "value": f"{user}@example.com"}]
        text = orjson.dumps(payload).decode()
        return {
            "id": f"e{number}",
            "app_id": "app",
            "event_type": event_type,
            "user_id": user,
            "created_date": created,
            "ingested_at": ingested,
            "payload": text if rng.random() < 0.95 else rng.choice((None, "[]", "{")),
        }

    def _to_the_end(self) -> None:
        world = self.world
        world.fair_weather()
        for _ in range(40):
            world.network.advance(world.time.true + 700.0)
            world.check(world.tick(Perils(), self._stages), "the last ticks must come to their end")
            waiting = [one.pending - one.pending_by.get("waiting_for_login", 0) for one in self._status()]
            captured = len(self._captured())
            if not any(waiting) and captured == len({row["id"] for row in self.warehouse.rows}):
                return
        world.check(False, f"still pending after all: {self._status()}")

    def _status(self) -> list[Any]:
        return status(self.world.outside, self.world.integrations())

    def _captured(self) -> set[str]:
        found: list[str] = []
        for path in (self.world.settings.data_dir / "segments").glob("*.parquet"):
            if path.name in self._counting():
                found += pq.read_table(path, columns=["id"])["id"].to_pylist()
        self.world.check(len(found) == len(set(found)), "captured twice")
        return set(found)

    def _counting(self) -> set[str]:
        with self.world.outside.store.begin() as tx:
            return {Path(name).name for name in tx.execute(sa.select(tables.segments.c.file)).scalars()}

    def _check(self) -> None:
        world = self.world
        world.check_audit(order=False)
        self._check_order()
        plain, other = (
            reference.run([self.warehouse.rows], reference.Settings(user_id="nami_user_id")),
            reference.run([self.warehouse.rows], reference.Settings(anonymous=self.anonymous)),
        )
        ends = {one.integration: one for one in self._status()}
        # Whatever the order of reading and the crashes, these come to the same.
        received = world.received_with("key-of-plain".ljust(32, "0"))
        world.check(
            received.keys() == {event["insert_id"] for event in plain.delivered}, "plain: other events than due"
        )
        world.check(
            ends["app/plain"].dead_letters.get("malformed_payload", 0) == len(plain.dead_letters), "plain: dead"
        )
        for event in plain.delivered:
            mine = received[event["insert_id"]]
            for name in ("event_type", "user_id", "time", "event_properties", "device_id", "price"):
                world.check(mine.get(name) == event.get(name), f"plain: {name} of {event['insert_id']}")
        one = ends["app/other"]
        known = world.received_with("key-of-other".ljust(32, "0")).keys()
        world.check(one.captured == len(other.captured), f"other: captured {one.captured}, due {len(other.captured)}")
        world.check(one.delivered == len(known), f"other: {one.delivered} delivered, {len(known)} received")
        if self.anonymous == "wait_for_login":
            world.check(known == {event["insert_id"] for event in other.delivered}, "other: other events than due")
            world.check(one.pending == len(other.pending), f"other: {one.pending} wait, due {len(other.pending)}")

    def _check_order(self) -> None:
        """States go out in the order of the user's life, but for those that are history and say so."""
        for name in ("plain", "other"):
            newest: dict[str, int] = {}
            for event in self.world.received_with(f"key-of-{name}".ljust(32, "0")).values():
                if "user_properties" not in event or event.get("$skip_user_properties_sync"):
                    continue
                before = newest.get(event["user_id"], event["time"])
                self.world.check(event["time"] >= before, f"{name}: {event['insert_id']} out of order")
                newest[event["user_id"]] = event["time"]
