"""Histories of all four stages: rows come in, late and repeated; users log in later; processes end anywhere."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.sandbox import Fault, Options
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.warehouse import Finding, Lookup, Places, Source
from nami_amp_pipeline_tests.simulation.delivery import BASE
from nami_amp_pipeline_tests.simulation.history import run_history
from nami_amp_pipeline_tests.simulation.network import START, SimulatedWire
from nami_amp_pipeline_tests.simulation.process import Perils
from nami_amp_pipeline_tests.simulation.world import Facts, World
from nami_amp_pipeline_tests.support import reference
from nami_amp_pipeline_tests.support.current_snapshots import current_snapshots
from nami_amp_pipeline_tests.support.histories import to_batch
from nami_amp_pipeline_tests.support.odd_values import odd_row

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
            yield Source("", None, lambda: "", lambda _: "")
            return
        batch = to_batch(self.rows)
        table = pa.Table.from_batches([batch]).append_column("rid", pa.array(range(batch.num_rows), pa.int64()))
        connection.register("nami_events", table)
        head = max(int(row["ingested_at"].timestamp() * 1_000_000) for row in self.rows)
        yield Source("nami_events", head, lambda: "nami_events", lambda _: "nami_events")

    def oldest(self, connection: duckdb.DuckDBPyConnection, app_ids: Sequence[str], after: int) -> dict[str, int]:
        raise NotImplementedError

    def unread(
        self, connection: duckdb.DuckDBPyConnection, positions: Mapping[str, int | None]
    ) -> dict[str, tuple[int, int]]:
        raise NotImplementedError

    def app_ids(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        raise NotImplementedError

    def find(self, connection: duckdb.DuckDBPyConnection, event_id: str, places: Places | None = None) -> Lookup:
        raise NotImplementedError

    def check(self) -> list[Finding]:
        raise NotImplementedError


def simulate(seed: int) -> Facts:
    """Runs one history.

    Raises:
        WrongError: something that must hold does not.
    """
    return run_history(_Simulation, seed)


class _Simulation:
    def __init__(self, seed: int, folder: Path) -> None:
        rng = self.rng = random.Random(seed)
        self.odd = random.Random(f"odd values of {seed}")  # of its own, so that a seed's history is what it was
        settings = Settings.load({"NAMI_AMP_HOME": str(folder)}, folder / "no.env").replace(
            batch_events=rng.choice((2, 5, 50)),
            max_lanes=rng.choice((1, 3)),
            run_retry_seconds=30.0,
            lease_seconds=60,
            segment_rows=rng.choice((7, 1_000)),
            max_rows_per_tick=rng.choice((15, 1_000)),
            duckdb_threads=1,
        )
        self.warehouse = ListWarehouse()
        self.world = World(rng, folder, settings, self.warehouse, Options(index_mode=rng.choice(("none", "all"))))
        self.anonymous = rng.choice(_ANONYMOUS)
        self.users = [f"user{number}" for number in range(rng.choice((1, 3, 8)))]
        self.dead: dict[str, str] = {}
        self._spoilt: list[Fault] = []
        self._prepared: dict[int, int] = {}
        self._told_to: dict[str, set[int]] = {}
        self._told: dict[tuple[int, int], set[int]] = {}
        self.world.before_step = self._note_logins
        self.world.after_commit = self._note_prepared
        self.plain = self.world.add("plain", BASE.format(9), user_id_kind="nami_user_id")
        self.other = self.world.add("other", BASE.format(9), anonymous=self.anonymous)

    def run(self) -> Facts:
        rng, world = self.rng, self.world
        for _ in range(rng.choice((1, 1, 2))):
            before = self._ids()
            self._load(rng.choice((1, 3, 6, 12, 25)))
            self._spoil(rng.choice((0, 0, 1, 2)), sorted(self._ids() - before))
            world.draw_weather()
            if rng.random() < 0.2:
                world.step_clock()
            world.keep_only(self._spoilt)
            if rng.random() < 0.15:
                world.sandbox.faults.add(
                    Fault("throttle_user", user_id=rng.choice(self.users), times=rng.randint(1, 3))
                )
            world.tick(world.draw_perils(self._stages, steps=rng.choice((6, 14, 60))), self._stages)
            world.network.advance(world.time.true + rng.choice((1.0, 100.0, 400.0)))
        self._to_the_end()
        self._check()
        world.facts.events = len(self.warehouse.rows)
        return world.facts

    def _note_logins(self, run_id: str, step: str) -> None:
        """Remembers which segments had told their logins when a process decided on one."""
        if step == "prepare.commit":
            self._told_to[run_id] = self.world.ledger.snapshotted()

    def _note_prepared(self, run_id: str) -> None:
        """Remembers with which of them a segment was prepared."""
        prepared = self.world.ledger.prepared()
        for integration_id, segment_id in prepared.items():
            if segment_id != self._prepared.get(integration_id, 0):
                self._told[integration_id, segment_id] = self._told_to[run_id]
        self._prepared = prepared

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
                if self.odd.random() < 0.08:
                    row = odd_row(self.odd, row)
            self.warehouse.rows.append(row)

    def _spoil(self, count: int, event_ids: Sequence[str]) -> None:
        """Makes events ones that Amplitude never takes."""
        for event_id in self.rng.sample(event_ids, min(count, len(event_ids))):
            kind = self.rng.choice(("poison", "413"))
            indexes = self.rng.choice(("first", "all", "none"))
            rule = Fault(kind, insert_id=event_id, indexes=indexes)  # type: ignore[arg-type]
            self.dead[event_id] = "rejected" if kind == "poison" else "too_large"
            self._spoilt.append(rule)
            self.world.sandbox.faults.add(rule)

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
        world.keep_only(self._spoilt)
        for _ in range(40):
            world.network.advance(world.time.true + 700.0)
            world.check(world.tick(Perils(), self._stages), "the last ticks must come to their end")
            waiting = [one.pending - one.pending_by.get("waiting_for_login", 0) for one in self._status()]
            captured = len(self._captured())
            if not any(waiting) and captured == len(self._ids()):
                return
        world.check(False, f"still pending after all: {self._status()}")

    def _ids(self) -> set[str]:
        return {row["id"] for row in self.warehouse.rows if row["app_id"] == "app" and reference.is_readable(row)}

    def _status(self) -> list[Any]:
        return status(self.world.outside, self.world.integrations())

    def _captured(self) -> set[str]:
        found: list[str] = []
        for path in self.world.outside.folder.fetch_all(sorted(self._counting())):
            found += pq.read_table(path, columns=["id"])["id"].to_pylist()
        self.world.check(len(found) == len(set(found)), "captured twice")
        return set(found)

    def _counting(self) -> set[str]:
        with self.world.outside.store.begin() as tx:
            return set(tx.execute(sa.select(tables.segments.c.file)).scalars())

    def _check(self) -> None:
        world = self.world
        world.check_audit(order=False)
        world.note_what_was_met()
        segments = [(segment_id, self._rows_of(file)) for segment_id, file in world.ledger.segments()]
        read = {
            row["id"]: (segment_id, reference.moment(row["created_date"]) or row["ingested_at"])
            for segment_id, rows in segments
            for row in rows
        }
        ends = {one.integration: one for one in self._status()}
        for one, wanted in (
            (self.plain, reference.Settings(user_id="nami_user_id")),
            (self.other, reference.Settings(anonymous=self.anonymous)),
        ):
            known = [self._told.get((one.id, segment_id), set()) for segment_id, _ in segments]
            ahead = [
                [row for later, rows in segments if later > segment_id and later in told for row in rows]
                for (segment_id, _), told in zip(segments, known, strict=True)
            ]
            expected = reference.run([rows for _, rows in segments], wanted, ahead=ahead)
            self._check_against(one.name, expected, ends[one.key], read)
        current = {user: snapshot.properties for user, snapshot in expected.current.items()}
        world.check(current_snapshots(world.outside.store) == current, "current snapshots")

    def _rows_of(self, file: str) -> list[dict[str, Any]]:
        """A segment as the rows that were captured."""
        rows: list[dict[str, Any]] = pq.read_table(self.world.outside.folder.fetch(file)).to_pylist()
        originals = {row["id"]: row for row in self.warehouse.rows}
        for row in rows:
            original = originals[row["id"]]
            same = all(
                row[name] == _kept(original[name], most) for name, most in (("event_type", 200), ("user_id", 128))
            ) and row["created_date"] == (reference.moment(original["created_date"]) or row["ingested_at"])
            self.world.check(same, f"{row['id']} was not captured as it stands in the warehouse")
            row.update({name: original[name] for name in ("created_date", "payload")})
            row["user_id"] = (original["user_id"] or "").replace("\0", "")
        return rows

    def _check_against(
        self,
        name: str,
        expected: reference.Outcome,
        end: IntegrationStatus,
        read: Mapping[str, tuple[int, datetime]],
    ) -> None:
        """What an integration received is what the plain reading says: each event whole, each user's in order.

        Args:
            name: of the integration.
            expected: the plain reading.
            end: the integration's numbers.
            read: the segment and the creation of each event.
        """
        world = self.world
        received = world.received_with(f"key-of-{name}".ljust(32, "0"))
        sendable = {event["insert_id"]: event for event in expected.delivered}
        # Read as the sandbox reads it: a number beyond 64 bits as a float.
        due = [orjson.loads(json.dumps(event)) for event_id, event in sendable.items() if event_id not in self.dead]
        world.check(len(sendable) == len(expected.delivered), "the plain reading delivers twice")
        refused = Counter(reason for event_id, reason in self.dead.items() if event_id in sendable)
        missing = {event["insert_id"] for event in due} - received.keys()
        world.check(not missing, f"{name}: lost {sorted(missing)[:5]}")
        world.check(len(received) == len(due), f"{name}: {len(received)} received, {len(due)} due")
        for event in due:
            mine = received[event["insert_id"]]
            differ = [key for key in event.keys() | mine.keys() if event.get(key) != mine.get(key)]
            world.check(not differ, f"{name}: {differ} of {event['insert_id']}: {mine} instead of {event}")
        for identity in {_identity(event) for event in due}:
            came = [event["insert_id"] for event in received.values() if _identity(event) == identity]
            late = _out_of_order(came, read)
            world.check(late is None, f"{name}: {identity} got {came}: {late} should have come earlier")
        world.facts.met["event as history"] += sum("$skip_user_properties_sync" in event for event in due)
        world.facts.met[f"event {self.anonymous}"] += len(due)
        dead = Counter(expected.dead_letters.values()) + refused
        world.check(end.dead_letters == dead, f"{name}: dead letters {end.dead_letters}, due {dict(dead)}")
        skipped = Counter(expected.skipped.values())
        world.check(end.skipped == skipped, f"{name}: skipped {end.skipped}, due {dict(skipped)}")
        numbers = (end.captured, end.delivered, end.pending)
        world.check(
            numbers == (len(expected.captured), len(due), len(expected.pending)),
            f"{name}: captured, delivered, pending are {numbers}",
        )


def _kept(text: str | None, most: int) -> str:
    """What a segment keeps of a text: all of it, unless it is longer than any that can be used."""
    text = (text or "").replace("\0", "")
    return text[:most] if len(text.encode()) > 1_024 or (most == 200 and len(text) > most) else text


def _out_of_order(came: Sequence[str], read: Mapping[str, tuple[int, datetime]]) -> str | None:
    """An event that came after a newer one of its user although it had been read by then; None if there is none.

    What was read later comes later, however old it is, unless the user waited: then it is sorted in.
    """
    for place, event_id in enumerate(came):
        segment_id, created = read[event_id]
        for earlier in came[:place]:
            its_segment, its_creation = read[earlier]
            if (its_creation, earlier) > (created, event_id) and segment_id <= its_segment:
                return event_id
    return None


def _identity(event: Mapping[str, Any]) -> str:
    return f"u:{event['user_id']}" if "user_id" in event else f"d:{event['device_id']}"
