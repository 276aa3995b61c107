"""Writes ``docs/benchmarks.md`` and its plots from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import plots, results
from bench.part import table

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
REMARKS = Path(__file__).parent / "remarks.md"


def write(modules: Mapping[str, ModuleType]) -> None:
    """Writes page and plots."""
    measured = results.load()
    images = plots.draw(measured, DOCS / "images")
    PAGE.write_text(render(modules, measured, images))


def render(modules: Mapping[str, ModuleType], measured: Mapping[str, Any], images: Mapping[str, str]) -> str:
    """The page.

    Args:
        modules: the parts by name, in the order of the page.
        measured: what ``results.json`` holds.
        images: file names of plots in ``docs/images``, by the part that they belong to.
    """
    there = {name: one for name, one in measured.items() if name in modules and "figures" in one}
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`, which measures everything on this page; `make bench PART=history` measures one part "
        "and leaves the figures of the others. How it is measured: [bench/README.md](../bench/README.md). Figures are "
        "medians with (least–most).",
        "",
        *_origins(there),
        "",
        "## What must hold",
        "",
        *_verdicts(modules, there),
        "",
    ]
    if REMARKS.exists():
        lines += [REMARKS.read_text().strip(), ""]
    for name, module in modules.items():
        one = measured.get(name, {})
        lines += [f"## {module.TITLE}", ""]
        if failed := one.get("failed"):
            lines += [
                f"> The last measurement failed ({failed['at']}, `{failed['command']}`): {failed['message']}.",
                "",
            ]
        if "figures" not in one:
            lines += ["Not measured yet.", ""]
            continue
        lines += [f"`{one['command']}`", ""]
        if name in images:
            lines += [f"![{module.TITLE}](images/{images[name]})", ""]
        lines += [module.section(one["figures"]), ""]
    return "\n".join(lines)


def _verdicts(modules: Mapping[str, ModuleType], there: Mapping[str, Any]) -> list[str]:
    rows = [
        [what, goal, figure, "met" if met else "**not met**"]
        for name, module in modules.items()
        if name in there
        for what, goal, figure, met in module.verdicts(there[name]["figures"])
    ]
    return [table(["what", "goal", "measured", ""], rows)] if rows else ["Nothing is measured yet."]


def _origins(there: Mapping[str, Any]) -> list[str]:
    """Where, when and of what: once for all parts that have it in common."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, one in there.items():
        machine = ", ".join(f"{what} {value}" for what, value in one["machine"].items())
        versions = ", ".join(f"{what} {value}" for what, value in one["versions"].items())
        groups.setdefault((machine, versions, one["commit"], one["at"].split()[0]), []).append(name)
    return [
        f"- {'All parts' if len(groups) == 1 else ', '.join(f'`{name}`' for name in names)}: {day}, commit {commit}. "
        f"Machine: {machine}. {versions}."
        for (machine, versions, commit, day), names in groups.items()
    ]
