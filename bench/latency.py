"""An Amplitude that takes 200 ms for each answer: one integration, each user's events in order.

``python -m bench.latency --rows 100000 --repeats 1``
"""

from __future__ import annotations

import sys
from typing import Any

import duckdb

from bench.checks import CHECKSUM
from bench.data import APPS, sample_warehouse, selected
from bench.part import alone, say, spread
from bench.receiver import Receiver
from bench.scene import Home, delivered_all, room, summary

TITLE = "Amplitude answering in 200 ms"
GOAL = 10_000


def measure(*, rows: int = 1_000_000, repeats: int = 3, milliseconds: int = 200) -> dict[str, Any]:
    """Runs with one integration, for the first app of the sample.

    Args:
        rows: of the warehouse, of two apps.
        repeats: how often.
        milliseconds: that each answer takes.
    """
    events = sample_warehouse(rows)
    with duckdb.connect(str(events), read_only=True) as connection:
        ids = selected(connection, f"(SELECT * FROM nami_events WHERE app_id = '{APPS[0]}')", CHECKSUM)
    runs = []
    with Receiver() as receiver:
        for _ in range(repeats):
            with room("latency") as folder:
                home = Home(folder, f"duckdb:///{events}")
                home.integrate(receiver.url, APPS[:1])
                runs.append(delivered_all(home, receiver, ids, latency=milliseconds / 1000).to_json())
            say(f"{milliseconds} ms an answer: {runs[-1]['events_per_second']:,.0f} events/s")
    return {
        "rows": rows,
        "milliseconds": milliseconds,
        "runs": runs,
        "events_per_second": summary([one["events_per_second"] for one in runs]),
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    rate = result["events_per_second"]
    return [
        (f"Amplitude answering in {result['milliseconds']} ms, one integration", f"≥ {GOAL:,} events/s",
         spread(rate), rate["median"] >= GOAL)
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    last = result["runs"][-1]
    upload = last["stages"].get("amplitude_deliveries") or last["seconds"]
    return (
        f"One integration with {last['delivered']:,} events, each answer {result['milliseconds']} ms after its "
        f"request: {spread(result['events_per_second'])} events/s for the whole command. The last stage alone posted "
        f"{last['delivered'] / upload:,.0f} events/s in {last['requests']:,} requests. No user's events were out of "
        "order, and no two requests with the same user were under way at once: the receiver looked at both."
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
