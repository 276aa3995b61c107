"""Request bodies with gzip and without: bytes on the wire, and what they cost.

``python -m bench.compression --rows 100000 --repeats 1``
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import duckdb

from bench.checks import CHECKSUM
from bench.data import APPS, sample_warehouse, selected
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import Home, delivered_all, room, summary

TITLE = "gzip"
GOAL = 0.15


def measure(*, rows: int = 1_000_000, repeats: int = 2) -> dict[str, Any]:
    """Runs in turns with one integration, for the first app of the sample.

    Args:
        rows: of the warehouse, of two apps.
        repeats: of each.
    """
    events = sample_warehouse(rows)
    with duckdb.connect(str(events), read_only=True) as connection:
        ids = selected(connection, f"(SELECT * FROM nami_events WHERE app_id = '{APPS[0]}')", CHECKSUM)
    runs: dict[str, list[dict[str, Any]]] = {"false": [], "true": []}
    with Receiver() as receiver:
        for _ in range(repeats):
            for gzip, done in runs.items():
                with room("compression") as folder:
                    home = Home(folder, f"duckdb:///{events}", NAMI_AMP_GZIP=gzip)
                    home.integrate(receiver.url, APPS[:1])
                    done.append(delivered_all(home, receiver, ids).to_json())
                say(f"gzip {gzip}: {done[-1]['events_per_second']:,.0f} events/s")
    return {
        "rows": rows,
        "runs": runs,
        "events_per_second": {name: summary([one["events_per_second"] for one in done]) for name, done in runs.items()},
        "wire": median(one["bytes"] / one["uncompressed_bytes"] for one in runs["true"]),
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    rate = spread(result["events_per_second"]["true"])
    return [
        ("gzip on: bytes on the wire", f"≤ {GOAL:.0%}", f"{result['wire']:.1%}, at {rate} events/s",
         result["wire"] <= GOAL)
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    rows = []
    for name, label in (("false", "off (default)"), ("true", "on")):
        last = result["runs"][name][-1]
        rows.append(
            [
                label,
                spread(result["events_per_second"][name]),
                f"{last['bytes'] / 1e6:,.0f}",
                f"{last['bytes'] / last['uncompressed_bytes']:.1%}",
                f"{median(one['cpu'] for one in result['runs'][name]):.1f}",
            ]
        )
    return (
        f"One integration with {result['runs']['true'][-1]['delivered']:,} events, `NAMI_AMP_GZIP` off and on in "
        "turns. The limits of a request are counted before compression.\n\n"
        + table(["gzip", "events/s", "MB on the wire", "of the bodies", "CPU seconds"], rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
