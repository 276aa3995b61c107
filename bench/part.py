"""What every part of the benchmark is: a function ``measure`` with sizes, and a section of the page."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import orjson

_began = time.monotonic()


def say(text: str) -> None:
    """A line of progress on standard error."""
    print(f"[{time.monotonic() - _began:6.1f} s] {text}", file=sys.stderr, flush=True)


def alone(module: ModuleType, arguments: list[str] | None = None) -> None:
    """The command line of one part: its sizes as options; prints its section of the page, or JSON."""
    measure: Callable[..., dict[str, Any]] = module.measure
    parser = argparse.ArgumentParser(
        prog=f"python -m {module.__spec__.name if module.__spec__ else module.__name__}",
        description=(module.__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    for name, parameter in inspect.signature(measure).parameters.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=parameter.default, metavar="N")
    options = vars(parser.parse_args(arguments))
    as_json = options.pop("json")
    result = measure(**options)
    print(orjson.dumps(result).decode() if as_json else module.section(result))


def spread(figures: dict[str, Any], form: str = ",.0f") -> str:
    """``median (least–most)`` of a summary."""
    if len(figures["values"]) == 1:
        return f"{figures['median']:{form}}"
    return f"{figures['median']:{form}} ({figures['least']:{form}}–{figures['most']:{form}})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; columns after the first are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
