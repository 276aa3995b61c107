"""The plots of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.scene import STAGES

OURS, THEIRS = "#2f6fb3", "#b9bec6"
SHADES = ("#8a93a0", "#1f4e79", "#2f6fb3", "#6fa3d8", "#f0a04b")
"""Of the process's start and end, and of the four stages."""

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "axes.edgecolor": "#8a93a0",
    "figure.facecolor": "white",
}


def draw(measured: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draws what there are figures for; returns file names by part."""
    drawn = {}
    for part, plot in _PLOTS.items():
        figures = measured.get(part, {}).get("figures")
        if figures:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"bench-{part.replace('_', '-')}.png"
            with mpl.rc_context(_STYLE):
                plot(figures).savefig(folder / name, dpi=120, metadata={"Software": None})
            drawn[part] = name
    return drawn


def _rates(figures: dict[str, Any]) -> Figure:
    """Events a second of the pipeline and its neighbours, and where the pipeline's time goes."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[max(1, len(figures["peers"]) + 1), 1.3])
    names = ["nami-amp", *figures["peers"]]
    rates = [figures["events_per_second"], *(peer["events_per_second"] for peer in figures["peers"].values())]
    middles = [rate["median"] for rate in rates]
    reach = [
        [rate["median"] - rate["least"] for rate in rates],
        [rate["most"] - rate["median"] for rate in rates],
    ]
    colours = [OURS] + [THEIRS] * (len(names) - 1)
    above.barh(names, middles, color=colours, xerr=reach, error_kw={"ecolor": "#444", "capsize": 3, "lw": 1})
    for row, rate in enumerate(rates):
        above.annotate(
            f"{rate['median']:,.0f}", (rate["most"], row), xytext=(6, 0), textcoords="offset points", va="center"
        )
    above.invert_yaxis()
    above.margins(x=0.12)
    above.set_title(
        "events/s: nami-amp from start to end, the others without their start",
        loc="left",
        fontsize=10,
    )
    above.xaxis.set_major_formatter("{x:,.0f}")
    _stages(below, {"": figures["runs"]})
    below.set_title("seconds of nami-amp by stage", loc="left", fontsize=10)
    return figure


def _ticks(figures: dict[str, Any]) -> Figure:
    """Ticks over little and much history."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    _stages(axes, {f"{one['rows'] / 1e6:g} M rows": one["ticks"] for one in figures["histories"]})
    axes.set_title(f"seconds of a tick of {figures['news']:,} new events, by history", loc="left", fontsize=10)
    return figure


def _apps(figures: dict[str, Any]) -> Figure:
    """Ticks over many apps."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots()
    names = {"all": f"all {figures['apps']:,}", "few": f"{figures['few']}", "none": "none"}
    _stages(axes, {label: figures["ticks"][name] for name, label in names.items()})
    axes.set_title("seconds of a tick, by apps with news", loc="left", fontsize=10)
    return figure


def _stages(axes: Axes, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Horizontal bars of seconds, one for each set of runs, cut into stages."""
    labels = list(rows)
    left = [0.0] * len(labels)
    parts: list[tuple[str, Callable[[dict[str, Any]], float]]] = [
        ("process", lambda one: float(one["seconds"] - one["run_seconds"]))
    ]
    parts += [(asset, lambda one, asset=asset: float(one["stages"].get(asset, 0.0))) for asset in STAGES.values()]  # type: ignore[misc]
    for (name, seconds), colour in zip(parts, SHADES, strict=True):
        widths = [median(seconds(one) for one in rows[label]) for label in labels]
        axes.barh(labels, widths, left=left, color=colour, label=name)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.annotate(f"{total:.1f} s", (total, row), xytext=(6, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if isinstance(axes.figure, Figure):
        axes.figure.legend(
            *axes.get_legend_handles_labels(),
            ncols=5,
            fontsize=8,
            frameon=False,
            handlelength=1,
            loc="outside lower center",
        )


_PLOTS: Mapping[str, Callable[[dict[str, Any]], Figure]] = {
    "micro_batch": _rates,
    "whole_state": _rates,
    "history": _ticks,
    "many_apps": _apps,
}
