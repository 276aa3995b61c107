"""A thousand apps with an integration each: a tick with news in all of them, in 30, in none.

``python -m bench.many_apps --apps 100 --repeats 1``
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import duckdb

from bench.checks import CHECKSUM
from bench.data import MARKED, insert_copy, new_table, sample_warehouse, selected
from bench.part import alone, say, spread, table
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary
from nami_amp_pipeline import contract

TITLE = "A thousand apps"
EVENTS = 20
FEW = 30
GOALS = {"all": 60.0, "few": 6.0, "none": 3.0}


def measure(*, apps: int = 1_000, repeats: int = 2) -> dict[str, Any]:
    """Ticks over one warehouse: news in all apps, in a few, in none, and again.

    Args:
        apps: with one integration each.
        repeats: of the three.
    """
    base = sample_warehouse(max(1_000, apps * EVENTS * 3 // 2))
    ticks: dict[str, list[dict[str, Any]]] = {name: [] for name in GOALS}
    with Receiver() as receiver, room("many-apps") as folder:
        warehouse = folder / "warehouse.duckdb"
        home = Home(folder / "home", f"duckdb:///{warehouse}")
        home.integrate(receiver.url, [f"app-{number:04}" for number in range(apps)])
        say(f"{apps:,} integrations are there")
        copy = 0
        for _ in range(repeats):
            for name, some in (("all", apps), ("few", min(FEW, apps)), ("none", 0)):
                ids = _news(warehouse, base, copy, some)
                copy += 1
                tick = delivered_all(home, receiver, ids)
                ticks[name].append(tick.to_json())
                say(f"news in {some:,} apps: {tick.took.seconds:.1f} s")
    return {
        "apps": apps,
        "few": min(FEW, apps),
        "ticks": ticks,
        "seconds": {name: summary([one["seconds"] for one in ticks[name]]) for name in ticks},
    }


def _news(warehouse: Path, base: Path, copy: int, apps: int) -> object:
    """Loads new events for each of so many apps; returns the checksum of their ids."""
    types = ", ".join(f"'{name}'" for name in contract.event_type_names())
    with duckdb.connect(str(warehouse)) as connection:
        new_table(connection)
        connection.execute(f"ATTACH '{base}' AS base (READ_ONLY)")
        connection.execute(
            f"""
            CREATE TEMP TABLE news AS
            SELECT * REPLACE ({MARKED} AS payload, now() AS ingested_at) FROM (
                SELECT DISTINCT ON (id) * FROM base.nami_events
                WHERE event_type IN ({types}) ORDER BY id LIMIT {apps * EVENTS}
            )
            """
        )
        connection.execute("UPDATE news SET app_id = format('app-{:04d}', rowid // ?)", [EVENTS])
        connection.execute(insert_copy("news", f"{copy:04x}"))
        checksum = selected(
            connection, f"(SELECT * FROM nami_events WHERE id[5:8] = '{copy:04x}')", CHECKSUM
        )  # fmt: skip
        connection.execute("DETACH base")
    return checksum


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = {
        "all": f"{result['apps']:,} apps, {EVENTS} new events each, one tick",
        "few": f"… with news in {result['few']} of them",
        "none": "… with none",
    }
    return [
        (what[name], f"≤ {goal:.0f} s", f"{spread(result['seconds'][name], '.1f')} s",
         result["seconds"][name]["median"] <= goal)
        for name, goal in GOALS.items()
    ]  # fmt: skip


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    names = {"all": f"all {result['apps']:,}", "few": f"{result['few']}", "none": "none"}
    rows = []
    for name, label in names.items():
        last = result["ticks"][name][-1]
        rows.append(
            [
                label,
                f"{last['delivered']:,}",
                spread(result["seconds"][name], ".1f"),
                f"{last['seconds'] - last['run_seconds']:.1f}",
                *(f"{last['stages'].get(asset, 0.0):.1f}" for asset in STAGES.values()),
            ]
        )
    head = ["apps with news", "events", "seconds", "process", *(f"`{asset}`" for asset in STAGES.values())]
    return (
        f"{result['apps']:,} apps with an integration each, {EVENTS} new events in every app that has news; one "
        "`nami-amp run`, process start included. Stages are of the last repeat.\n\n" + table(head, rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
