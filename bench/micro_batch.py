"""One ``nami-amp run`` over sample events, DuckDB and SQLite, and its neighbours over the same file.

``python -m bench.micro_batch --rows 200000 --repeats 1``; with ``--peer-rows 0`` without the neighbours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
GOAL_TIMES = 4
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
    neighbours = Neighbours(sample_warehouse, peer_rows)
    runs = []
    with Receiver() as receiver:
        for _ in range(repeats):
            runs.append(run_once(events, ids, receiver))
            neighbours.take_turn(receiver)
    return {"rows": rows, "apps": len(APPS), **figures_of(runs), **neighbours.to_json()}


def run_once(events: Path, ids: object, receiver: Receiver) -> dict[str, Any]:
    """The figures of one ``nami-amp run`` over a DuckDB file, in a fresh home with SQLite.

    Args:
        events: the file.
        ids: :data:`bench.checks.CHECKSUM` of what must arrive.
        receiver: where the integrations post.

    Raises:
        Wrong: that is not what arrived.
    """
    with room("micro-batch") as folder:
        home = Home(folder, f"duckdb:///{events}")
        home.integrate(receiver.url)
        run = delivered_all(home, receiver, ids).to_json()
    say(f"nami-amp run: {run['events_per_second']:,.0f} events/s")
    return run


def figures_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The pipeline's part of a result: its runs, and the summaries of their rates."""
    return {
        "runs": runs,
        "events_per_second": summary([run["events_per_second"] for run in runs]),
        "events_per_second_of_run": summary([run["events_per_second_of_run"] for run in runs]),
    }


class Neighbours:
    """The neighbours over events of one kind.

    Args:
        warehouse: makes a DuckDB file with so many rows of that kind.
        rows: how many they get; 0: there are no neighbours.
    """

    def __init__(self, warehouse: Callable[[int], Path], rows: int) -> None:
        self._rows = rows
        self._peers = all_peers() if rows else []
        self._runs: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in self._peers}
        if rows:
            self._events = warehouse(rows)
            self._hardly_any = warehouse(PEER_START_ROWS)
            self._wanted = expected(self._events, "count(*)")

    def take_turn(self, receiver: Receiver) -> None:
        """Runs each of them once."""
        for peer in self._peers:
            start = _peer(peer, self._hardly_any, receiver)[0]
            run = _figures(*_peer(peer, self._events, receiver), start.seconds, self._wanted)
            self._runs[peer.name].append(run)
            say(f"{peer.name}: {run['events_per_second']:,.0f} events/s")

    def to_json(self) -> dict[str, Any]:
        """Their part of a result."""
        return {
            "peer_rows": self._rows,
            "peers": {
                peer.name: {
                    "version": peer.version,
                    "runs": self._runs[peer.name],
                    "events_per_second": summary([run["events_per_second"] for run in self._runs[peer.name]]),
                }
                for peer in self._peers
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
    return [
        (
            f"{result['rows'] / 1e6:g} M sample events, DuckDB and SQLite",
            f"≥ {GOAL:,} events/s",
            spread(own),
            own["median"] >= GOAL,
        ),
        *beside_neighbours(result, "… beside the fastest neighbour", GOAL_TIMES),
    ]


def beside_neighbours(result: dict[str, Any], what: str, goal: int) -> list[tuple[str, str, str, bool]]:
    """The verdict on the pipeline's rate against the fastest neighbour's; none where no neighbour ran."""
    if not result["peers"]:
        return []
    fastest = max(peer["events_per_second"]["median"] for peer in result["peers"].values())
    times = result["events_per_second"]["median"] / fastest
    return [(what, f"≥ {goal} ×", f"{times:.1f} ×", times >= goal)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    first = result["runs"][0]
    lines = [
        f"`nami-amp run` over {result['rows']:,} sample rows of {result['apps']} apps, of which an integration of each "
        f"app selects {first['delivered']:,}; the clock runs from the start of the process to its end. Every event "
        "arrived once, each user's in order: the receiver looked.",
        "",
        *rates_table(result),
        "",
        "Where the time goes, seconds of each stage (medians):",
        "",
        stage_table(result["runs"]),
    ]
    return "\n".join(lines)


def rates_table(result: dict[str, Any]) -> list[str]:
    """Lines with the table of pipeline and neighbours, and what is to be known of the neighbours."""
    rows = [
        ["**nami-amp**, whole command", spread(result["events_per_second"]), *_costs(result["runs"])],
        ["**nami-amp**, from the first stage on", spread(result["events_per_second_of_run"]), "", "", "", ""],
    ]
    for name, peer in result["peers"].items():
        rows.append([f"{name} ({peer['version']})", spread(peer["events_per_second"]), *_costs(peer["runs"])])
    lines = [table(["", "events/s", "seconds", "CPU seconds", "of which receiver's", "peak memory, MB"], rows)]
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
    return lines


def _costs(runs: list[dict[str, Any]]) -> list[str]:
    return [
        f"{median(one['seconds'] for one in runs):.1f}",
        f"{median(one['cpu'] + one['receiver_cpu'] for one in runs):.1f}",
        f"{median(one['receiver_cpu'] for one in runs):.1f}",
        f"{max(one['peak_rss'] for one in runs) / 1e6:,.0f}",
    ]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value:,.0f}" for name, value in values.items())


def stage_table(runs: list[dict[str, Any]]) -> str:
    """The table of what each stage took."""
    rows = [["start and end of the process", f"{median(one['seconds'] - one['run_seconds'] for one in runs):.2f}"]]
    rows += [
        [f"`{asset}`", f"{median(one['stages'].get(asset, 0.0) for one in runs):.2f}"] for asset in STAGES.values()
    ]
    return table(["stage", "seconds"], rows)


if __name__ == "__main__":
    alone(sys.modules[__name__])
