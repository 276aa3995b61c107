"""Enrichments in stage 2: functions of other packages are asked about a segment's events; what they give is kept."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import Enrichment
from nami_amp_pipeline.errors import Blocked, is_out_of_memory
from nami_amp_pipeline.stages.enrich_values import NotUnderstood, columns_of
from nami_amp_pipeline.stages.snapshot_sql import ARROW, snapshot_sql
from nami_amp_pipeline.storage.row_faults import words_of
from nami_amp_pipeline.warehouse.asked import Asked

BATCH_EVENTS: Final = 100_000
"""A function is asked about so many events at once."""

MOST_APART: Final = 20
"""The apps of a batch are asked about one by one, after an error, if they are no more than so many."""

Without = Counter[tuple[str, str]]
"""Events that go without a property, by app and property."""


class Waits(Blocked):
    """Enrichments that events must not go without have failed.

    Args:
        apps: why, by app.
    """

    def __init__(self, apps: Mapping[str, str]) -> None:
        super().__init__("; ".join(dict.fromkeys(apps.values())))
        self.apps = dict(apps)


class Enricher:
    """The enrichments of one pass of stage 2. Functions are called by one thread at a time.

    Args:
        context: the process at work.

    Attributes:
        waits: why an app waits; it is not asked about again in this pass.
    """

    def __init__(self, context: Context) -> None:
        self.waits: dict[str, str] = {}
        self._context = context
        self._too_slow: dict[int, str] = {}  # by number of the enrichment: it may still be at work
        self._lock = threading.Lock()
        self._said: set[tuple[str, str]] = set()

    def fill(self, connection: duckdb.DuckDBPyConnection) -> Without:
        """Makes the table ``enriched``.

        Args:
            connection: has ``snapshots``, ``segment``, ``carried_by_event`` and the macros of ``snapshots_1_parse``.

        Returns:
            The events that go without.

        Raises:
            Waits: some apps have to wait; without them it may succeed.
        """
        batch = connection.sql(_batch_sql()).to_arrow_table()
        waits: dict[str, str] = {}
        without = Without()
        parts = [
            self._given(batch.slice(start, BATCH_EVENTS).combine_chunks(), without, waits)
            for start in range(0, batch.num_rows, BATCH_EVENTS)
        ]
        if waits:
            self.waits |= waits
            raise Waits(waits)
        _create(connection, pa.concat_tables(parts) if parts else None)
        return without

    def _given(self, batch: pa.Table, without: Without, waits: dict[str, str]) -> pa.Table:
        """What all enrichments give of a batch."""
        columns: dict[str, Any] = {}
        is_given = np.zeros(batch.num_rows, bool)
        for number, enrichment in enumerate(contract.ENRICHMENTS):
            found, failures = self._of(number, enrichment, batch)
            missed = pc.is_in(batch["app_id"], pa.array(sorted(failures), pa.string())).to_numpy()
            is_given |= ~missed
            columns |= {name: found[name] for name in enrichment.properties}
            for app_id, why in failures.items():
                line = f"{enrichment.name}: {why}"
                if enrichment.on_failure == "wait":
                    waits.setdefault(app_id, f"{line}; its events wait until it works, as on_failure says")
                    continue
                events = int(pc.sum(pc.equal(batch["app_id"], app_id)).as_py())
                without.update({(app_id, name): events for name in enrichment.properties})
                self._say(app_id, enrichment.name, f"events go without {line}")
        return pa.table({"row": batch["row"], "is_given": pa.array(is_given), **columns})

    def _of(self, number: int, enrichment: Enrichment, batch: pa.Table) -> tuple[pa.Table, dict[str, str]]:
        """What one enrichment gives, null where it failed; and why it failed, by app."""
        apps = batch["app_id"].unique().to_pylist()
        try:
            return self._called(number, enrichment, batch), {}
        except NotUnderstood as error:
            why = str(error)
        if len(apps) == 1 or len(apps) > MOST_APART or number in self._too_slow:
            return _nothing(enrichment, batch.num_rows), dict.fromkeys(apps, why)
        found, rows, failures = [], [], {}
        for app_id in apps:
            here = np.flatnonzero(pc.equal(batch["app_id"], app_id).to_numpy())
            rows.append(here)
            try:
                found.append(self._called(number, enrichment, batch.take(pa.array(here)).combine_chunks()))
            except NotUnderstood as error:
                failures[app_id] = str(error)
                found.append(_nothing(enrichment, len(here)))
        return pa.concat_tables(found).take(pa.array(np.argsort(np.concatenate(rows)))), failures

    def _called(self, number: int, enrichment: Enrichment, batch: pa.Table) -> pa.Table:
        """Calls the function, in a thread that is left alone if it takes too long."""
        with self._lock:
            if number in self._too_slow:
                raise NotUnderstood(self._too_slow[number])
            asked = Asked(self._context.warehouse, enrichment.timeout_seconds, self._context.now())
            answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

            def call() -> None:
                try:
                    answers.put((enrichment.function(_as_declared(enrichment, batch), asked), None))
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is told to whoever waits
                    answers.put((None, error))

            threading.Thread(target=call, name="enrichment", daemon=True).start()
            try:
                answer, error = answers.get(timeout=enrichment.timeout_seconds)
            except queue.Empty:
                why = f"it took longer than {enrichment.timeout_seconds:g} s"
                self._too_slow[number] = f"{why}, and is not asked again in this run"
                raise NotUnderstood(why) from None
        if error is not None:
            if is_out_of_memory(error):
                raise error
            raise NotUnderstood(f"it raised {words_of(error)}")
        return columns_of(enrichment, answer, batch.num_rows)

    def _say(self, app_id: str, name: str, line: str) -> None:
        """Once in a pass."""
        if (app_id, name) not in self._said:
            self._said.add((app_id, name))
            self._context.log.warning("%s: %s", app_id, line)


def create_nothing(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the table ``enriched`` without rows, for what is only tried."""
    _create(connection, None)


def failed_by_sql(context: Context, connection: duckdb.DuckDBPyConnection) -> Without:
    """The events whose value a property's SQL could not compute; each property is told once a segment.

    Args:
        context: for the log.
        connection: has the table ``carried_by_event``.
    """
    if not any(prop.sql for prop in contract.PROPERTIES):
        return Without()
    rows = connection.execute(
        "SELECT app_id, name, count(*), min(id) FROM "
        "(SELECT app_id, id, unnest(raised) AS name FROM carried_by_event) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    found = Without()
    for app_id, name, events, example in rows:
        found[app_id, name] = events
        context.log.warning(
            "%s: %s go without %s: its SQL cannot be computed of them (such as %s)",
            app_id, f"{events:,} event{'s' if events > 1 else ''}", name, example,
        )  # fmt: skip
    return found


def _batch_sql() -> str:
    text = snapshot_sql("snapshots_5_batch")
    return text if any(each.with_payload for each in contract.ENRICHMENTS) else text.replace(", g.payload", "")


def _as_declared(enrichment: Enrichment, batch: pa.Table) -> Any:
    """A batch as the function asks for it."""
    hidden = ["row"] if enrichment.with_payload or "payload" not in batch.column_names else ["row", "payload"]
    shown = batch.drop_columns(hidden)
    return shown.to_pandas() if enrichment.batch == "pandas" else shown


def _nothing(enrichment: Enrichment, rows: int) -> pa.Table:
    return pa.table({name: pa.nulls(rows, ARROW[kind]) for name, kind in enrichment.properties.items()})


def _create(connection: duckdb.DuckDBPyConnection, given: pa.Table | None) -> None:
    if given is None:
        kinds: Sequence[tuple[str, pa.DataType]] = [
            (name, ARROW[kind]) for each in contract.ENRICHMENTS for name, kind in each.properties.items()
        ]
        given = pa.schema([("row", pa.int64()), ("is_given", pa.bool_()), *kinds]).empty_table()
    connection.register("given", given)
    connection.execute(snapshot_sql("snapshots_5_enriched"))
    connection.unregister("given")
