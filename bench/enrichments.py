"""What declared user properties cost stage 2: by SQL, and by functions over Arrow and pandas.

``python -m bench.enrichments --rows 60000 --repeats 1``
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from bench.data import APPS, sample_warehouse
from bench.part import alone, say, spread, table
from bench.scene import room, summary
from nami_amp_pipeline import contract
from nami_amp_pipeline.context import Context
from nami_amp_pipeline.contract import Enrichment, Property
from nami_amp_pipeline.secrets import Secret
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.stages.pipeline import capture_apps, snapshot_apps
from nami_amp_pipeline.state.integrations import NewIntegration, add

TITLE = "Declared user properties"
PER: Final = 100_000
"""Events that a figure is of."""


def _arrow(batch: pa.Table, _context: Any) -> Any:
    return {"bench": pc.utf8_length(batch["user_id"])}


def _pandas(batch: Any, _context: Any) -> Any:
    return {"bench": batch["user_id"].str.len()}


def _asked(batch: pa.Table, context: Any) -> Any:
    found = context.query("SELECT user_id, ltv FROM user_ltv WHERE user_id IN $users", users=batch["user_id"])
    joined = batch.select(["user_id"]).append_column("n", pa.array(range(batch.num_rows)))
    return {"bench": joined.join(found, "user_id").sort_by("n")["ltv"]}


_NUMBER: Final = {"bench": "number"}
_SQL: Final = "len((payload -> '$.devices')::JSON[])"
WAYS: Final[Mapping[str, Property | Enrichment | None]] = {
    "nothing": None,
    "property by SQL": Property("bench", "devices", kind="number", sql=_SQL, means="devices"),
    "function over Arrow": Enrichment(_NUMBER, _arrow),  # type: ignore[arg-type]
    "function over pandas": Enrichment(_NUMBER, _pandas, batch="pandas"),  # type: ignore[arg-type]
    "… over Arrow that asks the warehouse": Enrichment(_NUMBER, _asked),  # type: ignore[arg-type]
    "… over Arrow with the payload": Enrichment(_NUMBER, _arrow, with_payload=True),  # type: ignore[arg-type]
}


def measure(*, rows: int = 200_000, repeats: int = 3) -> dict[str, Any]:
    """Runs the first two stages in this process, in turns, and takes the CPU time of the second.

    Args:
        rows: of the warehouse.
        repeats: of each way.
    """
    took: dict[str, list[float]] = {name: [] for name in WAYS}
    events = 0
    for number in range(repeats + 1):
        for name, declared in WAYS.items():
            with room("enrichments") as folder, _declared(declared):
                seconds, events = _once(folder, rows)
            if number:  # not the first, which imports and fills caches
                took[name].append(seconds * PER / events)
        say(f"enrichments {number}: {', '.join(f'{name} {times[-1]:.3f}' for name, times in took.items() if times)}")
    return {"rows": rows, "events": events, "seconds": {name: summary(times) for name, times in took.items()}}


@contextmanager
def _declared(declared: Property | Enrichment | None) -> Iterator[None]:
    before = contract.PROPERTIES, contract.ENRICHMENTS
    if isinstance(declared, Property):
        contract.PROPERTIES += (declared,)
    elif declared is not None:
        contract.add_enrichments([declared])
    try:
        yield
    finally:
        contract.PROPERTIES, contract.ENRICHMENTS = before


def _once(folder: Any, rows: int) -> tuple[float, int]:
    warehouse = folder / "events.duckdb"
    with duckdb.connect(str(warehouse)) as connection:
        connection.execute(f"ATTACH '{sample_warehouse(rows)}' AS sample (READ_ONLY)")
        connection.execute("CREATE TABLE nami_events AS FROM sample.nami_events")
        connection.execute(
            "CREATE TABLE user_ltv AS SELECT user_id, random() * 100 AS ltv FROM nami_events GROUP BY user_id"
        )
    context = Context.open(Settings(home=folder / "home", warehouse_url=f"duckdb:///{warehouse}"), run_id="bench")
    try:
        for app_id in APPS:
            key = Secret(app_id.encode().hex().ljust(32, "0")[:32])
            new = NewIntegration(app_id, "main", contract.ENDPOINTS["us"], api_key=key, start_from=None)
            add(context.store, context.cipher, new)
        capture_apps(context)
        began = time.process_time()
        done = snapshot_apps(context)
        return time.process_time() - began, sum(each.events for each in done.values())
    finally:
        context.store.close()


def verdicts(_result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Nothing must hold: a function costs what it costs."""
    return []


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    nothing = result["seconds"]["nothing"]["median"]
    lines = [
        [name, spread(figures, ".2f"), "" if name == "nothing" else f"{figures['median'] - nothing:+.2f}"]
        for name, figures in result["seconds"].items()
    ]
    return (
        f"CPU seconds of stage 2 for {PER:,} events with a snapshot, of {result['events']:,} in segments of up to "
        "100,000 rows. What is declared is one number; the warehouse is a DuckDB file.\n\n"
        + table(["declared", f"CPU seconds per {PER:,} events", "more"], lines)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
