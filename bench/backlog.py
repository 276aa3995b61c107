"""A backlog of five million events in one run: memory, and whether the rate holds.

``python -m bench.backlog --rows 400000 --less 100000``
"""

from __future__ import annotations

import sys
from statistics import mean
from typing import Any

from bench.checks import CHECKSUM
from bench.data import BASE_ROWS, expected, multiplied
from bench.part import alone, say, table
from bench.receiver import Receiver
from bench.scene import Home, delivered_all, room

TITLE = "A backlog of five million events"
GOAL_BYTES = 1_000_000_000
GOAL_RATE = 0.9


def measure(*, rows: int = 5_000_000, less: int = 1_000_000, base: int = BASE_ROWS) -> dict[str, Any]:
    """One run over all, between two over fewer rows of the same kind.

    Args:
        rows: of the backlog.
        less: of the warehouse that it is compared with.
        base: rows of the sample that both are copies of.
    """
    runs: list[dict[str, Any]] = []
    with Receiver() as receiver:
        for size in (less, rows, less):
            events = multiplied(size, base_rows=min(base, less))
            with room("backlog") as folder:
                home = Home(folder, f"duckdb:///{events}")
                home.integrate(receiver.url)
                tick = delivered_all(home, receiver, expected(events, CHECKSUM))
            runs.append({"rows": size, **tick.to_json()})
            say(f"{size:,} rows: {runs[-1]['events_per_second']:,.0f} events/s, {tick.took.peak_rss / 1e6:,.0f} MB")
    fewer = mean(one["events_per_second"] for one in runs if one["rows"] == less)
    (most,) = [one for one in runs if one["rows"] == rows] if rows != less else runs[1:2]
    return {
        "rows": rows,
        "less": less,
        "runs": runs,
        "rate": most["events_per_second"] / fewer,
        "peak_rss": most["peak_rss"],
        "peak_anonymous": most["peak_anonymous"],
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = f"backlog of {result['rows'] / 1e6:g} M events"
    return [
        (f"{what}: resident memory", "< 1 GB", f"{result['peak_rss'] / 1e9:.2f} GB", result["peak_rss"] < GOAL_BYTES),
        (f"{what}: rate", f"≥ {GOAL_RATE:.0%} of that of {result['less'] / 1e6:g} M", f"{result['rate']:.0%}",
         result["rate"] >= GOAL_RATE),
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    rows = [
        [
            f"{one['rows']:,}",
            f"{one['events_per_second']:,.0f}",
            f"{one['seconds']:.1f}",
            f"{one['peak_rss'] / 1e6:,.0f}",
            f"{one['peak_anonymous'] / 1e6:,.0f}",
        ]
        for one in result["runs"]
    ]
    return (
        "Everything is new and is read, prepared and posted in one `nami-amp run`, between two runs over fewer rows. "
        "Memory is the highest resident size of the process and its children, looked at every 50 ms; anonymous is the "
        "same without pages of files, which the kernel takes back when it needs them.\n\n"
        + table(["rows", "events/s", "seconds", "peak resident, MB", "of which anonymous, MB"], rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
