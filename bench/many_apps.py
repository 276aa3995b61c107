"""Thousands of apps with an integration each: a tick with news in all of them, in 30, in none.

A thousand on SQLite; then 30, a thousand and ten thousand on PostgreSQL, in turns.
``python -m bench.many_apps --apps 100 --many 1000 --repeats 1``; ``--many 0`` leaves PostgreSQL out. With
``BENCH_BASE`` in the environment, a checkout of another commit, its own benchmark on SQLite takes turns with this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from bench.news import DUCKDB, News, app_names
from bench.part import alone, say, spread, table
from bench.postgres import home_on, serving
from bench.receiver import Receiver
from bench.scene import STAGES, Home, delivered_all, room, summary

TITLE = "Thousands of apps"
EVENTS = 20
GOALS = {"all": 60.0, "few": 6.0, "none": 3.0}
BASE = "BENCH_BASE"
GOAL_OF_BASE = 1 / 3
GOALS_OF_MANY = {"all": 11.0, "few": 1.5, "none": 1.5}
GOAL_BYTES = 1_500_000_000
PATIENCE_SECONDS = 3_600


def measure(*, apps: int = 1_000, many: int = 10_000, few: int = 30, repeats: int = 2) -> dict[str, Any]:
    """Ticks over one warehouse: news in all apps, in a few, in none, and again.

    Args:
        apps: with one integration each.
        many: the same on PostgreSQL, beside ``apps`` and ``few``; 0: not measured.
        few: apps that have news where only a few have.
        repeats: of the three.
    """
    few = min(few, apps)
    news = News(max(apps, many), EVENTS)
    with Receiver() as receiver:
        with room("many-apps") as folder:
            ticking = Ticking(Home(folder / "home", f"{DUCKDB}{folder / 'warehouse.duckdb'}"), apps, receiver)
            base: list[dict[str, float]] = []
            for _ in range(repeats):
                ticking.turn(news, few)
                if checkout := os.environ.get(BASE):
                    base.append(_turn_of_base(Path(checkout).resolve(), apps))
        found: dict[str, Any] = {"apps": apps, "few": few, **ticking.figures()}
        if base:
            found["base"] = _against(base, found["ticks"])
        if many:
            found["postgres"] = _on_postgres((few, apps, many), receiver, news, repeats)
    return found


class Ticking:
    """A home whose integrations are there, and its ticks.

    Args:
        home: the home.
        apps: how many get an integration.
        receiver: where they post.
    """

    def __init__(self, home: Home, apps: int, receiver: Receiver) -> None:
        self._home = home
        self._apps = apps
        self._receiver = receiver
        self.ticks: dict[str, list[dict[str, Any]]] = {name: [] for name in GOALS}
        home.integrate(receiver.url, app_names(apps))
        say(f"{apps:,} integrations are there")

    def turn(self, news: News, few: int) -> None:
        """A tick with news in all apps, where they are more than a few; one with news in a few; one with none."""
        for name, some in (("all", self._apps), ("few", few), ("none", 0)):
            if name == "all" and self._apps <= few:
                continue
            ids = news.load(self._home.environ["NAMI_AMP_WAREHOUSE_URL"], some)
            tick = delivered_all(self._home, self._receiver, ids)
            self.ticks[name].append(tick.to_json())
            say(f"news in {some:,} of {self._apps:,} apps: {tick.took.seconds:.1f} s")

    def figures(self) -> dict[str, Any]:
        """All ticks, and their seconds."""
        seconds = {name: summary([tick["seconds"] for tick in ticks]) for name, ticks in self.ticks.items() if ticks}
        return {"ticks": self.ticks, "seconds": seconds}


def _turn_of_base(checkout: Path, apps: int) -> dict[str, float]:
    """Seconds of each tick of the benchmark of another commit."""
    command = [sys.executable, "-m", "bench.many_apps", "--apps", str(apps), "--repeats", "1", "--json"]
    environ = {name: value for name, value in os.environ.items() if name != BASE} | {"PYTHONPATH": str(checkout)}
    about = subprocess.run([*command, "--help"], cwd=checkout, env=environ, check=True, capture_output=True)
    if b"--many" in about.stdout:
        command += ["--many", "0"]
    say("the base's turn")
    output = subprocess.run(command, cwd=checkout, env=environ, check=True, stdout=subprocess.PIPE).stdout
    seconds: dict[str, dict[str, float]] = orjson.loads(output)["seconds"]
    return {name: figures["median"] for name, figures in seconds.items()}


def _against(base: list[dict[str, float]], ticks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios of each turn, by where there is news."""
    ratios = {
        name: summary([tick["seconds"] / turn[name] for tick, turn in zip(mine, base, strict=True)])
        for name, mine in ticks.items()
        if mine
    }
    return {"turns": base, "ratios": ratios}


def _on_postgres(sizes: tuple[int, int, int], receiver: Receiver, news: News, repeats: int) -> dict[str, Any]:
    """Homes of three sizes in one server, in turns: each turn's figures against those of the same turn."""
    few, apps, many = sizes
    with serving() as (server, folder):
        homes = {
            size: Ticking(home_on(server, folder / f"home-{size}"), size, receiver) for size in dict.fromkeys(sizes)
        }
        for _ in range(repeats):
            for ticking in homes.values():
                ticking.turn(news, few)
    against = {"all": apps, "few": few, "none": few}
    ratios = {
        name: summary(
            [
                more["seconds"] / less["seconds"]
                for less, more in zip(homes[size].ticks[name], homes[many].ticks[name], strict=True)
            ]
        )
        for name, size in against.items()
    }
    peak = max(tick["peak_rss"] for ticks in homes[many].ticks.values() for tick in ticks)
    return {
        "many": many,
        "sizes": {str(size): ticking.figures() for size, ticking in homes.items()},
        "ratios": ratios,
        "peak_rss": peak,
    }


def verdicts(result: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, goal, figure, met) for the table at the top of the page."""
    what = {
        "all": f"{result['apps']:,} apps, {EVENTS} new events each, one tick",
        "few": f"… with news in {result['few']} of them",
        "none": "… with none",
    }
    found = [
        (what[name], f"≤ {goal:.0f} s", f"{spread(result['seconds'][name], '.1f')} s",
         result["seconds"][name]["median"] <= goal)
        for name, goal in GOALS.items()
    ]  # fmt: skip
    if "base" in result:
        ratio = result["base"]["ratios"]["all"]
        found.insert(1, ("… against the base", "≤ 1/3", f"{spread(ratio, '.2f')} ×", ratio["median"] <= GOAL_OF_BASE))
    if "postgres" in result:
        found += _verdicts_of_many(result, result["postgres"])
    return found


def _verdicts_of_many(result: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    few, peak = result["few"], found["peak_rss"]
    what = {
        "all": f"{found['many']:,} apps, {EVENTS} new events each, one tick on PostgreSQL, against {result['apps']:,}",
        "few": f"… with news in {few}, against {few} apps",
        "none": f"… with none, against {few} apps",
    }
    rows = [
        (what[name], f"≤ {goal:g} ×", f"{spread(found['ratios'][name], '.2f')} ×",
         found["ratios"][name]["median"] <= goal)
        for name, goal in GOALS_OF_MANY.items()
    ]  # fmt: skip
    memory = ("… peak resident memory", "< 1.5 GB", f"{peak / 1e9:.2f} GB", peak < GOAL_BYTES)
    return [rows[0], memory, *rows[1:]]


def section(result: dict[str, Any]) -> str:
    """The page's section."""
    head = ["apps with news", "events", "seconds", "process", *(f"`{asset}`" for asset in STAGES.values())]
    names = {"all": f"all {result['apps']:,}", "few": f"{result['few']}", "none": "none"}
    rows = [_row(result, name, [label]) for name, label in names.items()]
    text = (
        f"{result['apps']:,} apps with an integration each, {EVENTS} new events in every app that has news; one "
        "`nami-amp run`, process start included. Stages are of the last repeat.\n\n" + table(head, rows)
    )
    if "base" in result:
        said = ", ".join(
            f"{spread(ratio, '.2f')} × with news in {names[name]}" for name, ratio in result["base"]["ratios"].items()
        )
        text += f"\n\nAgainst another commit, in turns: {said}."
    return f"{text}\n\n{_section_of_many(result['postgres'], head)}" if "postgres" in result else text


def _section_of_many(found: dict[str, Any], head: list[str]) -> str:
    rows = [
        [
            *_row(figures, name, [f"{int(size):,}", _having_news(figures["ticks"][name])]),
            f"{max(tick['peak_rss'] for tick in figures['ticks'][name]) / 1e6:,.0f}",
        ]
        for size, figures in found["sizes"].items()
        for name in figures["seconds"]
    ]
    return (
        "The same with warehouse, state store and Dagster's history on PostgreSQL, homes of three sizes in turns. "
        "Memory is the highest resident size of the process and its children.\n\n"
        + table(["apps", *head, "peak memory, MB"], rows)
    )


def _having_news(ticks: list[dict[str, Any]]) -> str:
    return f"{ticks[-1]['delivered'] // EVENTS:,}" if ticks[-1]["delivered"] else "none"


def _row(figures: dict[str, Any], name: str, labels: list[str]) -> list[str]:
    last = figures["ticks"][name][-1]
    return [
        *labels,
        f"{last['delivered']:,}",
        spread(figures["seconds"][name], ".1f"),
        f"{last['seconds'] - last['run_seconds']:.1f}",
        *(f"{last['stages'].get(asset, 0.0):.1f}" for asset in STAGES.values()),
    ]


if __name__ == "__main__":
    alone(sys.modules[__name__])
