"""One ``nami-amp run`` over sample events, DuckDB and SQLite, and its neighbours over the same file.

``python -m bench.micro_batch --rows 200000 --repeats 1``; with ``--peer-rows 0`` without the neighbours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench import watch
from bench.checks import CHECKSUM
from bench.data import APPS, expected, sample_warehouse
from bench.part import alone, say, spread, table
from bench.peers import Peer, all_peers
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary

TITLE = "One million events"
GOAL = 60_000
GOAL_TIMES = 5
PEER_START_ROWS = 100
"""What a neighbour takes for these is its start."""


def measure(*, rows: int = 1_000_000, repeats: int = 3, peer_rows: int = 50_000) -> dict[str, Any]:
    """Runs pipeline and neighbours in turns, so that what disturbs the machine disturbs them all.

    Args:
        rows: of the warehouse.
        repeats: of each.
        peer_rows: of the neighbours' warehouse; 0 leaves them out. That they get fewer is no disadvantage to them:
            what they take for next to no rows is taken off, and no event costs them less for coming later.
    """
    events = sample_warehouse(rows)
    ids = expected(events, CHECKSUM)
    peers = all_peers() if peer_rows else []
    fewer = sample_warehouse(peer_rows) if peer_rows else events
    hardly_any = sample_warehouse(PEER_START_ROWS)
    wanted = expected(fewer, "count(*)")
    runs: list[dict[str, Any]] = []
    others: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    with Receiver() as receiver:
        for number in range(repeats):
            with room("micro-batch") as folder:
                home = Home(folder, f"duckdb:///{events}")
                home.integrate(receiver.url)
                tick = delivered_all(home, receiver, ids)
                runs.append(tick.to_json())
            say(f"nami-amp run {number + 1}: {runs[-1]['events_per_second']:,.0f} events/s")
            for peer in peers:
                start = _peer(peer, hardly_any, receiver)[0]
                others[peer.name].append(one := _figures(*_peer(peer, fewer, receiver), start.seconds, wanted))
                say(f"{peer.name}: {one['events_per_second']:,.0f} events/s")
    return {
        "rows": rows,
        "apps": len(APPS),
        "runs": runs,
        "events_per_second": summary([one["events_per_second"] for one in runs]),
        "events_per_second_of_run": summary([one["events_per_second_of_run"] for one in runs]),
        "peer_rows": peer_rows,
        "peers": {
            peer.name: {
                "version": peer.version,
                "runs": others[peer.name],
                "events_per_second": summary([one["events_per_second"] for one in others[peer.name]]),
            }
            for peer in peers
        },
    }


def _peer(peer: Peer, events: Path, receiver: Receiver) -> tuple[watch.Took, dict[str, Any]]:
    receiver.reset()
    with room("peer") as folder:
        took = peer.run(events, receiver.url, folder)
    return took, receiver.report()


def _figures(took: watch.Took, got: dict[str, Any], start: float, wanted: object) -> dict[str, Any]:
    return {
        "seconds": took.seconds,
        "start_seconds": start,
        "cpu": took.cpu,
        "receiver_cpu": got["receiver_cpu"],
        "peak_rss": took.peak_rss,
        "arrived": got["distinct_ids"],
        "repeated": got["events"] - got["distinct_ids"],
        "wanted": wanted,
        "out_of_order": got["out_of_order"],
        "requests": got["requests"],
        "posting_seconds": got["seconds"],
        "events_per_second": got["distinct_ids"] / (took.seconds - start),
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    own = result["events_per_second"]
    found = [
        (
            f"{result['rows'] / 1e6:g} M sample events, DuckDB and SQLite",
            f"≥ {GOAL:,} events/s",
            spread(own),
            own["median"] >= GOAL,
        )
    ]
    if result["peers"]:
        times = own["median"] / _fastest(result)[1]
        found.append(("… beside the fastest neighbour", f"≥ {GOAL_TIMES} ×", f"{times:.1f} ×", times >= GOAL_TIMES))
    return found


def _fastest(result: dict[str, Any]) -> tuple[str, float]:
    rates = {name: peer["events_per_second"]["median"] for name, peer in result["peers"].items()}
    name = max(rates, key=lambda one: rates[one])
    return name, rates[name]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    first = result["runs"][0]
    lines = [
        f"`nami-amp run` over {result['rows']:,} sample rows of {result['apps']} apps, of which an integration of each "
        f"app selects {first['delivered']:,}; the clock runs from the start of the process to its end. Every event "
        "arrived once, each user's in order: the receiver looked.",
        "",
    ]
    rows = [
        ["**nami-amp**, whole command", spread(result["events_per_second"]), *_costs(result["runs"])],
        ["**nami-amp**, from the first stage on", spread(result["events_per_second_of_run"]), "", "", "", ""],
    ]
    for name, peer in result["peers"].items():
        rows.append([f"{name} ({peer['version']})", spread(peer["events_per_second"]), *_costs(peer["runs"])])
    lines.append(
        table(["", "events/s", "seconds", "CPU seconds", "of which receiver's", "peak memory, MB"], rows)
    )  # fmt: skip
    if result["peers"]:
        lost = {
            name: sum(one["wanted"] - one["arrived"] for one in peer["runs"]) for name, peer in result["peers"].items()
        }
        unordered = {
            name: median(one["out_of_order"] for one in peer["runs"]) for name, peer in result["peers"].items()
        }
        lines += [
            "",
            f"The neighbours got {result['peer_rows']:,} rows of the same kind in a DuckDB file of their own, and "
            f"what they take for {PEER_START_ROWS} rows is taken off: their start does not count, that of "
            "nami-amp does. They do less: no state of the user in each event, no record of what was acknowledged, "
            "no order over several requests (SDK), no retry of single events (drt). "
            f"Events that did not arrive: {_listed(lost)}. Events out of their user's order, a run: "
            f"{_listed(unordered)}.",
        ]
    lines += ["", "Where the time goes, seconds of each stage (medians):", "", _stage_table(result["runs"])]
    return "\n".join(lines)


def _costs(runs: list[dict[str, Any]]) -> list[str]:
    return [
        f"{median(one['seconds'] for one in runs):.1f}",
        f"{median(one['cpu'] + one['receiver_cpu'] for one in runs):.1f}",
        f"{median(one['receiver_cpu'] for one in runs):.1f}",
        f"{max(one['peak_rss'] for one in runs) / 1e6:,.0f}",
    ]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value:,.0f}" for name, value in values.items())


def _stage_table(runs: list[dict[str, Any]]) -> str:
    rows = [["start and end of the process", f"{median(one['seconds'] - one['run_seconds'] for one in runs):.2f}"]]
    rows += [
        [f"`{asset}`", f"{median(one['stages'].get(asset, 0.0) for one in runs):.2f}"] for asset in STAGES.values()
    ]
    return table(["stage", "seconds"], rows)


if __name__ == "__main__":
    alone(sys.modules[__name__])
