"""One ``nami-amp run`` over events of 1.2 KB that all carry whole state: DuckDB and SQLite, PostgreSQL, the neighbours.

``python -m bench.whole_state --rows 200000 --repeats 1``; with ``--peer-rows 0`` without the neighbours.
"""

from __future__ import annotations

import sys
from typing import Any

import duckdb

from bench import micro_batch, postgres
from bench.checks import CHECKSUM
from bench.data import APPS, expected, whole_state_warehouse
from bench.part import alone, spread
from bench.receiver import Receiver

TITLE = "One million events with whole state"
GOAL_TIMES = 3


def measure(*, rows: int = 1_000_000, repeats: int = 3, peer_rows: int = 50_000) -> dict[str, Any]:
    """Runs all in turns, so that what disturbs the machine disturbs them all.

    Args:
        rows: of the warehouse; a tenth as many users.
        repeats: of each.
        peer_rows: of the neighbours' warehouse; 0 leaves them out.
    """
    events = whole_state_warehouse(rows)
    ids = expected(events, CHECKSUM)
    neighbours = micro_batch.Neighbours(whole_state_warehouse, peer_rows)
    runs, postgres_runs = [], []
    with Receiver() as receiver, postgres.loaded(events) as server:
        for _ in range(repeats):
            runs.append(micro_batch.run_once(events, ids, receiver))
            neighbours.take_turn(receiver)
            postgres_runs.append(server.run_once(ids, receiver))
        in_postgres = server.figures_of(postgres_runs, runs)
    with duckdb.connect(str(events), read_only=True) as connection:
        ((users, payload),) = connection.execute(
            "SELECT count(DISTINCT user_id), avg(strlen(payload)) FROM nami_events"
        ).fetchall()
    return {
        "rows": rows,
        "apps": len(APPS),
        "users": users,
        "payload_bytes": payload,
        **micro_batch.figures_of(runs),
        **neighbours.to_json(),
        "postgres": {name: value for name, value in in_postgres.items() if name != "duckdb"},
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = f"{result['rows'] / 1e6:g} M events with whole state, DuckDB and SQLite, beside the fastest neighbour"
    return [
        *micro_batch.beside_neighbours(result, what, GOAL_TIMES),
        *postgres.beside_duckdb(result["postgres"], "… PostgreSQL, against DuckDB and SQLite, in turns"),
    ]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    own = result["postgres"]
    return "\n".join(
        [
            f"`nami-amp run` over {result['rows']:,} rows of {result['apps']} apps and {result['users']:,} users. Each "
            f"payload ({result['payload_bytes']:,.0f} bytes on average) has active entitlements, the journey's flags, "
            "two devices and two entries of `external_ids`, and each event is selected. Every event arrived once, "
            "each user's in order: the receiver looked.",
            "",
            *micro_batch.rates_table(result),
            "",
            "Where the time goes, seconds of each stage (medians):",
            "",
            micro_batch.stage_table(result["runs"]),
            "",
            f"With PostgreSQL as warehouse and as store, in turns with the others: {spread(own['events_per_second'])} "
            f"events/s, {spread(own['ratio'], '.2f')} × that of DuckDB and SQLite. {postgres.stages_of(own)}",
        ]
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
