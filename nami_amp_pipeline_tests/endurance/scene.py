"""The pipeline's side of a long run: a warehouse, a state, the stages, and a clock that can be moved on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract, sample
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.delivery.request_threads import Wire
from nami_amp_pipeline.operations.status import IntegrationStatus, status
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages import pipeline
from nami_amp_pipeline.state import integrations as registry
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import Integration
from nami_amp_pipeline.storage.duckdb_engine import literal, sql
from nami_amp_pipeline_tests.endurance.report import Report

NEVER = "00000000-none"


class MovedClock:
    """The machine's clock, ahead by as much as it was moved."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def skip(self, seconds: float) -> None:
        """Moves on."""
        self.ahead += max(0.0, seconds)

    def reach(self, moment: float) -> None:
        """Moves on to a moment; never back."""
        self.skip(moment - self())


def key_of(app_id: str) -> str:
    """The API key of an app's integration."""
    return f"key-of-{app_id}".ljust(32, "0")


def load_sample(path: Path, rows: int, apps: Sequence[str], *, seed: int = 7) -> None:
    """Adds sample events to a warehouse file, which is made where it is missing."""
    fresh = not path.exists()
    with duckdb.connect(str(path)) as connection:
        if fresh:
            connection.execute(sql("nami_events"))
        for batch in sample.generate(max(1, rows // 10), rows=rows, apps=apps, seed=seed):
            connection.register("sample", pa.Table.from_batches([batch]))
            connection.execute("INSERT INTO nami_events BY NAME SELECT * FROM sample")


def event_ids(path: Path, app_id: str) -> set[str]:
    """The distinct events of an app that an integration of all types is to deliver."""
    types = ", ".join(map(literal, contract.event_type_names()))
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.execute(
            f"SELECT DISTINCT id FROM nami_events WHERE app_id = ? AND event_type IN ({types})", [app_id]
        ).fetchall()
    return {row[0] for row in rows}


class Scene:
    """A state of its own over a warehouse file.

    Args:
        home: where the state and the files are.
        warehouse: the DuckDB file.
        report: told when the numbers of the state do not add up.
        environ: settings, without ``NAMI_AMP_``.
    """

    def __init__(self, home: Path, warehouse: Path, report: Report, environ: Mapping[str, object]) -> None:
        given = {"HOME": home, "WAREHOUSE_URL": f"duckdb:///{warehouse}", "DUCKDB_THREADS": 2, **environ}
        self.settings = Settings.load({f"NAMI_AMP_{name}": str(value) for name, value in given.items()}, home / NEVER)
        self.clock = MovedClock()
        self.context = Context.open(self.settings, run_id="endurance", clock=self.clock)
        self._report = report

    def add(self, app_id: str, endpoint: str, api_key: str | None = None) -> Integration:
        """Adds an integration that delivers everything of an app."""
        new = registry.NewIntegration(
            app_id,
            "main",
            endpoint,
            Secret(api_key or key_of(app_id)),
            anonymous="nami_user_id",
            allow_custom_endpoint=True,
        )
        return registry.add(self.context.store, self.context.cipher, new)

    def move(self, app_id: str, endpoint: str, api_key: str | None = None) -> None:
        """Gives an integration another endpoint, and another key perhaps."""
        values = {"endpoint": endpoint}
        if api_key is not None:
            values["api_key"] = self.context.cipher.encrypt(Secret(api_key))
        self._update(app_id, **values)

    def switch_off(self, app_id: str) -> None:
        """Switches an integration off."""
        self._update(app_id, enabled=False)

    def _update(self, app_id: str, **values: object) -> None:
        table = tables.integrations
        with self.context.store.begin() as tx:
            tx.execute(sa.update(table).where(table.c.app_id == app_id).values(**values))

    @property
    def integrations(self) -> list[Integration]:
        """As the store has them now."""
        return registry.all_integrations(self.context.store)

    def read(self) -> None:
        """The first three stages."""
        pipeline.capture_apps(self.context)
        pipeline.snapshot_apps(self.context)
        pipeline.prepare_integrations(self.context, self.integrations)

    def deliver(self, wire: Wire | None = None, stop: Callable[[], bool] = lambda: False) -> None:
        """The fourth stage."""
        pipeline.deliver_integrations(self.context, self.integrations, wire=wire, stop=stop)

    def numbers(self) -> list[IntegrationStatus]:
        """Where every event is; each must be in one place."""
        found = status(self.context, self.integrations)
        for one in found:
            ended = one.delivered + sum(one.skipped.values()) + sum(one.dead_letters.values())
            self._report.check(one.captured == ended + one.pending, f"not conserved: {one}")
        return found

    def pending(self) -> int:
        """Events without an end state, over all integrations."""
        return sum(one.pending for one in self.numbers())

    def dead(self, app_id: str) -> list[str]:
        """The event ids of an app's dead letters."""
        table, integrations = tables.exceptions, tables.integrations
        query = (
            sa.select(table.c.event_id)
            .join(integrations, integrations.c.id == table.c.integration_id)
            .where(table.c.state == "dead", integrations.c.app_id == app_id)
        )
        with self.context.store.begin() as tx:
            return list(tx.execute(query).scalars())

    def close(self) -> None:
        """Closes the store."""
        self.context.store.engine.dispose()
        self.context.store.close()
