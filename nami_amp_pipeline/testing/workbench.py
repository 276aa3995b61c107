"""A home in a temporary folder, with an app and an integration: what suites of declarations run the stages in."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb
import orjson
import pyarrow as pa
import sqlalchemy as sa

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import Enrichment, EventType, Property
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.pipeline import Failed, run_stage
from nami_amp_pipeline.stages.table import CAPTURE, PREPARE, SNAPSHOTS
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.integrations import NewIntegration, add, all_integrations
from nami_amp_pipeline.storage.duckdb_engine import sql

NOON: Final = datetime(2026, 9, 1, 12, tzinfo=UTC)


class Workbench:
    """Everything up to what would be posted.

    Args:
        properties: declared for as long as it is open, if they are not already.
        event_types: the same.
        enrichments: the same.
        tables: more tables of the warehouse, by name.
        integration: what is added for ``app``; by default one for Amplitude, where nothing is ever posted.
        settings: that differ.
        run: id of its run.
    """

    def __init__(
        self,
        properties: Sequence[Property] = (),
        event_types: Sequence[EventType] = (),
        enrichments: Sequence[Enrichment] = (),
        tables: Mapping[str, pa.Table] | None = None,
        *,
        integration: NewIntegration | None = None,
        settings: Mapping[str, Any] | None = None,
        run: str = "suite",
    ) -> None:
        self._before = contract.PROPERTIES, contract.EVENT_TYPES, contract.ENRICHMENTS
        known = {declared.name for declared in contract.PROPERTIES} | set(contract.event_type_names())
        contract.PROPERTIES += tuple(declared for declared in properties if declared.name not in known)
        contract.EVENT_TYPES += tuple(declared for declared in event_types if declared.name not in known)
        contract.add_enrichments(enrichments)
        self._folder = tempfile.TemporaryDirectory()
        self.settings = Settings(home=Path(self._folder.name), **(settings or {}))
        self.now = NOON
        self._began = time.monotonic()
        self.context = Context.open(self.settings, run_id=run, clock=self._clock)
        with duckdb.connect(self.settings.warehouse_url.removeprefix("duckdb:///")) as connection:
            connection.execute(sql("nami_events"))
            for name, table in (tables or {}).items():
                connection.register("given", table)
                connection.execute(f'CREATE TABLE "{name}" AS FROM given')
        new = integration or NewIntegration(
            "app", "main", contract.ENDPOINTS["us"], api_key=Secret("0" * 32), user_id_kind="nami_user_id"
        )
        add(self.context.store, self.context.cipher, new)

    def _clock(self) -> float:
        """Noon, and from there on as time goes: what waits for a moment must see it come."""
        return self.now.timestamp() + time.monotonic() - self._began

    def close(self) -> None:
        """Removes everything, and what was declared for it."""
        contract.PROPERTIES, contract.EVENT_TYPES, contract.ENRICHMENTS = self._before
        self.context.store.close()
        self._folder.cleanup()

    def replace(self, enrichment: Enrichment, other: Enrichment) -> None:
        """Puts an enrichment of the same properties in the place of one that is declared."""
        contract.ENRICHMENTS = tuple(other if each is enrichment else each for each in contract.ENRICHMENTS)

    def load(
        self,
        ident: str,
        payload: Any,
        *,
        minutes: float = 0,
        event_type: str = "user.subscription.renewed",
        user: str = "user",
    ) -> None:
        """Loads an event now that was created some minutes after noon.

        Args:
            ident: its id.
            payload: a JSON value.
            minutes: after noon.
            event_type: of it.
            user: Nami's id of whose event it is.
        """
        with duckdb.connect(self.settings.warehouse_url.removeprefix("duckdb:///")) as connection:
            connection.execute(
                "INSERT INTO nami_events BY NAME SELECT $id AS id, 'app' AS app_id, $type AS event_type, "
                "$user AS user_id, $created AS created_date, $now AS ingested_at, $payload AS payload",
                {
                    "id": ident, "type": event_type, "user": user, "created": NOON + timedelta(minutes=minutes),
                    "now": self.now, "payload": json.dumps(payload),
                },
            )  # fmt: skip

    def snapshotted(self) -> Mapping[str, Any]:
        """Runs the first two stages over what is new; returns what the second says of the app, if it did anything."""
        run_stage(self.context, CAPTURE, ["app"])
        return run_stage(self.context, SNAPSHOTS, ["app"])

    def load_all(self, rows: pa.Table) -> None:
        """Loads rows of the events table; ``ingested_at`` is now."""
        now = pa.scalar(self.now, pa.timestamp("us", tz="UTC"))
        rows = rows.append_column("ingested_at", pa.repeat(now, len(rows)))
        with duckdb.connect(self.settings.warehouse_url.removeprefix("duckdb:///")) as connection:
            connection.register("new_rows", rows)
            connection.execute("INSERT INTO nami_events BY NAME FROM new_rows")

    def prepare(self, failed: Failed | None = None) -> None:
        """Runs the stages up to the outboxes over what is new.

        Args:
            failed: called with each integration that cannot be prepared; without it, the error is raised.
        """
        self.snapshotted()
        run_stage(self.context, PREPARE, all_integrations(self.context.store), failed=failed)
        self.now += timedelta(minutes=1)

    def bodies(self) -> dict[str, str]:
        """The events in outboxes as they would be posted, by id, in the order of the outboxes."""
        with self.context.store.reading() as tx:
            files = tx.execute(sa.select(tables.outboxes.c.file).order_by(tables.outboxes.c.id)).scalars().all()
        found = {}
        for name in files:
            rows = self.context.folder.open_ipc(name).read_all()
            columns = (rows[name].to_pylist() for name in ("id", "state", "body"))
            for ident, state, body in zip(*columns, strict=True):
                if state == "send":
                    found[ident] = body.removeprefix(",")
        return found

    def prepared(self) -> dict[str, dict[str, Any]]:
        """Runs the stages over what is new; returns all events as they would be posted, by id."""
        self.prepare()
        found = {}
        for body in self.bodies().values():
            event = orjson.loads(body)
            found[event["insert_id"]] = event
        return found
