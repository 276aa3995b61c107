"""A backlog of five million events in one run: memory, and whether the rate holds, in each stage too.

``python -m bench.backlog --rows 400000 --less 100000``; ten million of a single app are ``--rows 10000000 --apps 1``.
"""

from __future__ import annotations

import sys
from statistics import mean
from typing import Any

from bench.checks import CHECKSUM
from bench.data import APPS, BASE_ROWS, expected, multiplied
from bench.part import alone, say, table
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room

TITLE = "A backlog"
GOAL_BYTES = 1_000_000_000
GOAL_RATE = 0.9
GOAL_STAGE = 1.15
PATIENCE_SECONDS = 3_600


def measure(*, rows: int = 5_000_000, less: int = 1_000_000, base: int = BASE_ROWS, apps: int = 2) -> dict[str, Any]:
    """One run over all, between two over fewer rows of the same kind.

    Args:
        rows: of the backlog.
        less: of the warehouse that it is compared with.
        base: rows of the sample that both are copies of.
        apps: whose events they are, 1 or 2.
    """
    runs: list[dict[str, Any]] = []
    with Receiver() as receiver:
        for size in (less, rows, less):
            events = multiplied(size, base_rows=min(base, less), of_one_app=apps == 1)
            with room("backlog") as folder:
                home = Home(folder, f"duckdb:///{events}")
                home.integrate(receiver.url, APPS[:apps])
                tick = delivered_all(home, receiver, expected(events, CHECKSUM))
            runs.append({"rows": size, **tick.to_json()})
            say(f"{size:,} rows: {runs[-1]['events_per_second']:,.0f} events/s, {tick.took.peak_rss / 1e6:,.0f} MB")
    before, most, after = runs
    fewer = mean([before["events_per_second"], after["events_per_second"]])
    return {
        "rows": rows,
        "less": less,
        "apps": apps,
        "runs": runs,
        "rate": most["events_per_second"] / fewer,
        "peak_rss": most["peak_rss"],
        "peak_anonymous": most["peak_anonymous"],
    }


def _stages(result: dict[str, Any]) -> dict[str, float]:
    """Seconds an event of each stage in the backlog, against the runs over fewer rows."""
    ratios = {}
    for asset in STAGES.values():
        before, most, after = (run["stages"].get(asset, 0.0) / run["delivered"] for run in result["runs"])
        ratios[asset] = most / mean([before, after]) if before + after else 1.0
    return ratios


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = f"backlog of {result['rows'] / 1e6:g} M events" + (" of one app" if result.get("apps") == 1 else "")
    stages = _stages(result)
    slowest = max(stages, key=lambda asset: stages[asset])
    return [
        (f"{what}: resident memory", "< 1 GB", f"{result['peak_rss'] / 1e9:.2f} GB", result["peak_rss"] < GOAL_BYTES),
        (f"{what}: rate", f"≥ {GOAL_RATE:.0%} of that of {result['less'] / 1e6:g} M", f"{result['rate']:.0%}",
         result["rate"] >= GOAL_RATE),
        (f"{what}: seconds an event of the stage that slows down most (`{slowest}`)", f"≤ {GOAL_STAGE} ×",
         f"{stages[slowest]:.2f} ×", stages[slowest] <= GOAL_STAGE),
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    head = ["rows", "events/s", "seconds", "peak resident, MB", "of which anonymous, MB"]
    head += [f"`{asset}`, µs" for asset in STAGES.values()]
    rows = [
        [
            f"{one['rows']:,}",
            f"{one['events_per_second']:,.0f}",
            f"{one['seconds']:.1f}",
            f"{one['peak_rss'] / 1e6:,.0f}",
            f"{one['peak_anonymous'] / 1e6:,.0f}",
            *(f"{one['stages'].get(asset, 0.0) / one['delivered'] * 1e6:.1f}" for asset in STAGES.values()),
        ]
        for one in result["runs"]
    ]
    return (
        "Everything is new and is read, prepared and posted in one `nami-amp run`, between two runs over fewer rows. "
        "Memory is the highest resident size of the process and its children, looked at every 50 ms; anonymous is the "
        "same without pages of files, which the kernel takes back when it needs them. Of each stage, the microseconds "
        "an event.\n\n" + table(head, rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
