"""Kills real processes over and over, and asks the sandbox what it saw of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.sandbox import Fault, Options, Sandbox, SandboxServer
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import NewIntegration
from nami_amp_pipeline_tests.support.warehouses import append

_BATCH = 20
_LANES = 3
_PROJECTS = 2
_USERS = 40


class Killing:
    """One warehouse, one state, and a process that never lives long.

    Args:
        folder: for everything.
        seed: what is killed when.
        state_url: of the state store; SQLite in the folder by default.
        warehouse_url: of the warehouse; DuckDB in the folder by default.
    """

    def __init__(self, folder: Path, seed: int, state_url: str | None = None, warehouse_url: str | None = None) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.kills = 0
        self.rows = 0
        self.poison: set[str] = set()
        self.most_under_way = 0
        self._under_way = 0
        self._seen = (0, 0)
        self._environ = {
            "NAMI_AMP_HOME": str(folder),
            "NAMI_AMP_STATE_URL": state_url or f"sqlite:///{folder / 'state.db'}",
            "NAMI_AMP_WAREHOUSE_URL": warehouse_url or f"duckdb:///{folder / 'warehouse.duckdb'}",
            "NAMI_AMP_LATE_COMMIT_WINDOW_SECONDS": "0",
            "NAMI_AMP_BATCH_EVENTS": str(_BATCH),
            "NAMI_AMP_MAX_LANES": str(_LANES),
            "NAMI_AMP_SEGMENT_ROWS": "150",
            "NAMI_AMP_RUN_RETRY_SECONDS": "20",
        }
        self.sandbox = Sandbox(
            options=Options(index_mode="none", latency_ms=3.0, throttle=False), rng=random.Random(seed)
        )
        self.sandbox.faults.add(
            Fault("stored_then_500", probability=0.03, seed=seed),
            Fault("closed_without_answer", probability=0.03, seed=seed + 1, stored=True),
        )
        self.context = Context.open(Settings.load(self._environ, folder / "no.env"))

    def run(self, kills: int) -> None:
        """Loads rows and kills, until so many processes were killed; then lets one come to its end, and checks."""
        with SandboxServer(self.sandbox) as server:
            for number in range(_PROJECTS):
                registry.add(
                    self.context.store,
                    self.context.cipher,
                    NewIntegration(
                        "app",
                        f"i{number}",
                        server.endpoint,
                        Secret(f"key-{number}".ljust(32, "0")),
                        user_id_kind="nami_user_id",
                        allow_custom_endpoint=True,
                    ),
                )
            with subprocess.Popen(
                [sys.executable, "-m", "nami_amp_pipeline_tests.simulation.killed"],
                env={**os.environ, **self._environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as spawner:
                assert spawner.stdin is not None
                assert spawner.stdout is not None
                assert spawner.stdout.readline() == "ready\n"
                while self.kills < kills:
                    self._load(self.rng.choice((0, 100, 400)))
                    self._order(spawner, self._fate())
                for _ in range(10):
                    self._order(spawner, {})
                    if not any(one.pending for one in self.status()) and not self._unread():
                        break
                spawner.stdin.close()
            self._check()

    def _fate(self) -> dict[str, Any]:
        if self.rng.random() < 0.7:
            return {"kill_at": self.rng.choice((self.rng.randint(1, 12), self.rng.randint(1, 150)))}
        return {"after": self.rng.uniform(0.02, 0.9)}

    def _order(self, spawner: subprocess.Popen[str], fate: dict[str, Any]) -> None:
        assert spawner.stdin is not None
        assert spawner.stdout is not None
        spawner.stdin.write(json.dumps(fate) + "\n")
        spawner.stdin.flush()
        answer = json.loads(spawner.stdout.readline())
        self.kills += bool(answer["killed"])
        if not answer["killed"]:
            assert answer["status"] == 0, "a stage failed that nobody killed"
        self.check_conservation()
        self._check_resent()

    def _check_resent(self) -> None:
        """What came again since the last process is what that one had under way, and what had no answer this time."""
        with self.sandbox.locked:
            resent, unanswered = self.sandbox.audit.duplicates, self._unanswered()
        before_resent, before_unanswered = self._seen
        again, lost = resent - before_resent, unanswered - before_unanswered
        allowed = self._under_way + lost * _BATCH
        assert again <= allowed, (
            f"{again} events sent again, {self._under_way} were under way, {lost} answers were lost"
        )
        self._seen = resent, unanswered
        self._under_way = self._recorded_as_posted()
        assert self._under_way <= _LANES * _PROJECTS * _BATCH, self._under_way
        self.most_under_way = max(self.most_under_way, self._under_way)

    def _unanswered(self) -> int:
        return sum(fault.fired for fault in self.sandbox.faults if fault.kind != "poison")

    def _recorded_as_posted(self) -> int:
        """Events of the requests that the process had under way when it ended."""
        lanes, exceptions = tables.lanes, tables.exceptions
        in_lanes = sa.select(sa.func.coalesce(sa.func.sum(lanes.c.attempt_end - lanes.c.next_row), 0))
        held = sa.select(sa.func.count()).where(exceptions.c.state == "held", exceptions.c.unknown_since.is_not(None))
        with self.context.store.begin() as tx:
            unknown = tx.execute(in_lanes.where(lanes.c.unknown_since.is_not(None))).scalar_one()
            return int(unknown) + int(tx.execute(held).scalar_one())

    def _load(self, count: int) -> None:
        """Appends rows; a user's later rows are of later events."""
        now = datetime.now(UTC)
        rows = []
        for number in range(self.rows, self.rows + count):
            created = datetime(2026, 9, 1, tzinfo=UTC) + timedelta(seconds=number)
            payload = {"active_entitlements": [{"entitlement_ref_id": f"e{number}", "sku_ref_id": "s"}], "n": number}
            rows.append(
                {
                    "id": f"event-{number}",
                    "app_id": "app",
                    "event_type": "user.subscription.renewed",
                    "user_id": f"user{self.rng.randrange(_USERS)}",
                    "created_date": created,
                    "ingested_at": now + timedelta(microseconds=number),
                    "payload": orjson.dumps(payload).decode(),
                }
            )
        if count and self.rng.random() < 0.5:
            poison = f"event-{self.rng.randrange(self.rows, self.rows + count)}"
            self.poison.add(poison)
            with self.sandbox.locked:
                self.sandbox.faults.add(Fault("poison", insert_id=poison, indexes="none"))
        self.rows += count
        append(self._environ["NAMI_AMP_WAREHOUSE_URL"], rows)

    def status(self) -> list[IntegrationStatus]:
        """As ``nami-amp status`` reads it."""
        return status(self.context, registry.all_integrations(self.context.store))

    def check_conservation(self) -> None:
        """After each kill, with the state as the dead process left it."""
        for one in self.status():
            ends = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
            assert one.captured == ends + one.pending, one
            assert min(one.delivered, one.pending) >= 0, one

    def _unread(self) -> bool:
        return any(one.captured < self.rows for one in self.status())

    def _check(self) -> None:
        audit = self.sandbox.audit
        for finding in ("accepted_more_than_once", "concurrent_same_user", "order_violations", "changed_repeats"):
            assert getattr(audit, finding).count == 0, (finding, getattr(audit, finding).examples[:3])
        assert audit.accepted == (self.rows - len(self.poison)) * _PROJECTS, (audit.accepted, self.rows)
        for one in self.status():
            assert one.delivered == self.rows - len(self.poison), one
            assert one.dead_letters.get("rejected", 0) == len(self.poison), one
            assert one.pending == 0, one
