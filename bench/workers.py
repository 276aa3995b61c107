"""Several Celery workers beside a single one, with an Amplitude that takes 200 ms for each answer.

``python -m bench.workers --apps 40 --events 20 --repeats 1``; needs ``redis-server``. Warehouse, state store and
Dagster's history are on PostgreSQL.
"""

from __future__ import annotations

import sys
from typing import Any

from bench.crew import Crew, celery_environ
from bench.news import News, app_names
from bench.part import alone, say, spread, table
from bench.postgres import serving
from bench.receiver import Receiver
from bench.scene import Home, arrived, room, summary
from nami_amp_pipeline.operations.shards import shards

TITLE = "Celery's workers"
GOAL = 3.0
PATIENCE_SECONDS = 3_600


def measure(
    *,
    apps: int = 400,
    events: int = 100,
    repeats: int = 3,
    workers: int = 4,
    milliseconds: int = 200,
    batch: int = 1_000,
) -> dict[str, Any]:
    """Ticks over one home, by all workers and by the first alone, in turns; each time with new events in all apps.

    Args:
        apps: with one integration each.
        events: of each app, each time.
        repeats: of both.
        workers: how many, and how many shards a tick has.
        milliseconds: that each answer takes.
        batch: most events a request (``NAMI_AMP_BATCH_EVENTS``).
    """
    news = News(apps, events)
    ticks: dict[str, list[dict[str, Any]]] = {"1": [], str(workers): []}
    with Receiver() as receiver, serving() as (server, _), room("workers") as folder:
        warehouse = server.fresh_database()
        more = celery_environ(server.fresh_database())
        home = Home(
            folder, warehouse, NAMI_AMP_STATE_URL=server.fresh_database(), NAMI_AMP_BATCH_EVENTS=str(batch), **more
        )
        home.integrate(receiver.url, app_names(apps))
        news.load(warehouse, 0)
        with Crew(home, workers, workers) as crew:
            for _ in range(repeats):
                for number in map(int, ticks):
                    ids = news.load(warehouse, apps)
                    receiver.reset(milliseconds / 1_000)
                    tick = crew.tick(number)
                    got = arrived(receiver, apps * events, ids)
                    ticks[str(number)].append(
                        {
                            "seconds": tick.seconds,
                            "cpu": tick.cpu,
                            "runs": tick.runs,
                            "events_per_second": apps * events / tick.seconds,
                            "requests": got["requests"],
                        }
                    )
                    say(f"{number} of {workers} workers: {tick.seconds:.1f} s, {tick.cpu:.1f} s of processor")
    some, alone_ = ticks[str(workers)], ticks["1"]
    return {
        "apps": apps,
        "events": events,
        "workers": workers,
        "milliseconds": milliseconds,
        "batch": batch,
        "shard_apps": _apps_of_shards(apps, workers),
        "ticks": ticks,
        "events_per_second": {name: summary([tick["events_per_second"] for tick in ticks[name]]) for name in ticks},
        "ratio": summary([a["events_per_second"] / b["events_per_second"] for a, b in zip(some, alone_, strict=True)]),
    }


def _apps_of_shards(apps: int, many: int) -> list[int]:
    names = app_names(apps)
    return [sum(shard is None or shard.has(name) for name in names) for shard in shards(many)]


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = (
        f"{result['workers']} Celery workers against 1, {result['apps']} apps, Amplitude answering in "
        f"{result['milliseconds']} ms"
    )
    ratio = result["ratio"]
    return [(what, f"≥ {GOAL:g} ×", f"{spread(ratio, '.2f')} ×", ratio["median"] >= GOAL)]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    rows = [
        [
            name,
            spread(result["events_per_second"][name]),
            f"{ticks[-1]['seconds']:.1f}",
            f"{ticks[-1]['cpu']:.1f}",
            f"{max(begun for begun, _ in ticks[-1]['runs'].values()):.1f}",
            f"{ticks[-1]['requests']:,}",
        ]
        for name, ticks in result["ticks"].items()
    ]
    shares = ", ".join(f"{many:,}" for many in result["shard_apps"])
    return (
        f"A tick of {result['apps']:,} apps with {result['events']} new events each, as {result['workers']} runs "
        f"(`NAMI_AMP_SHARDS={result['workers']}`, apps of each: {shares}), with at most {result['batch']:,} events a "
        "request; warehouse, state store and Dagster's history on PostgreSQL. The same runs go to all workers, and to "
        "one of them alone, in turns; all have loaded the code before. The clock runs from handing the first run to "
        f"Celery to the end of the last: {spread(result['ratio'], '.2f')} × with {result['workers']} workers. "
        "Seconds, of processor too, are of the last repeat; that of PostgreSQL, which works on the same cores, is not "
        "in it.\n\n"
        + table(["workers", "events/s", "seconds", "CPU seconds", "the last run began after, s", "requests"], rows)
    )


if __name__ == "__main__":
    alone(sys.modules[__name__])
