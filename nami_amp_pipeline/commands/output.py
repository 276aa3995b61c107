"""Tables and progress bars for people: readable in 100 columns, no colours or bars in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from nami_amp_pipeline.clock import to_text

_PIPE_COLUMNS = 100


def console(*, stderr: bool = False) -> Console:
    """Where tables go; what stands in them is never markup."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr, markup=False, highlight=False, emoji=False, width=None if is_terminal else _PIPE_COLUMNS
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Prints a table.

    Args:
        columns: the heads.
        rows: what stands below them; None is left blank.
        right: heads of columns of numbers.
    """
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else str(cell) for cell in row))
    console().print(shown)


def facts(rows: Mapping[str, object], indent: int = 0) -> None:
    """Prints names and values, one a line; values of None are left out."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            shown.add_row(" " * indent + name, str(value))
    console().print(shown)


def number(value: int) -> str:
    """A number with thousands marked."""
    return f"{value:,}"


def size(count: int) -> str:
    """A number of bytes in the unit that suits it."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} B"


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason in a few words."""
    return "\n".join(f"{number(events)} {reason}" for reason, events in counts.items()) or "0"


def moment(us: int | None) -> str:
    """A time of the store, to the second."""
    text = to_text(us // 1_000_000 * 1_000_000) if us is not None else None
    return text or ""


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


@contextmanager
def file_progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _bytes: None
        return
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.update(task, advance=count)


@contextmanager
def spinner(what: str) -> Iterator[None]:
    """Shows on a terminal that work goes on; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield
        return
    with console(stderr=True).status(what):
        yield
