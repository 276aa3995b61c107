"""How answers are printed: for people on a terminal, and one row a line with tabs in a pipe.

On a terminal an id is never broken: where a table is too wide it loses columns that matter less, then becomes a list.
In a pipe nothing is folded, cut or coloured. ``NO_COLOR`` switches colours off.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from nami_amp_pipeline.clock import to_text
from nami_amp_pipeline.commands import streams

if TYPE_CHECKING:
    from rich.console import Console

Colour = Literal["red", "yellow", "green"]

_GAP = 2
_NARROWEST_TEXT = 24


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size((100, 24)).columns


def coloured(text: str, colour: Colour | None, *, bold: bool = False) -> str:
    """A text in a colour, where that can be seen and ``NO_COLOR`` does not forbid it."""
    if not (colour or bold) or not is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=colour, bold=bold or None)


def say(text: str = "", colour: Colour | None = None, *, bold: bool = False, wrapped: bool = True) -> None:
    """Prints a line; on a terminal long ones are wrapped between words, but for those with commands to copy."""
    if wrapped and is_terminal() and text:
        indent = " " * (len(text) - len(text.lstrip()) + 2)
        text = textwrap.fill(
            text, max(width(), 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    click.echo(coloured(text, colour, bold=bold))


def more(text: str) -> None:
    """Says that a list goes on: below it on a terminal; in a pipe on standard error, so that all lines are rows."""
    if is_terminal():
        say(f"… and {text}", wrapped=False)
    else:
        streams.say(f"nami-amp: there are more: {text}")


def sentence(clause: str) -> str:
    """A clause with a capital letter and a full stop."""
    return f"{clause[:1].upper()}{clause[1:]}."


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Sequence[str] = (),
    texts: Sequence[str] = (),
    optional: Sequence[str] = (),
    colours: Sequence[Colour | None] = (),
) -> None:
    """Prints a table.

    Args:
        columns: the heads.
        rows: what stands below them; None is left blank.
        right: heads of columns of numbers.
        texts: heads of columns whose cells may be wrapped; those of all others are never broken.
        optional: heads of columns that a narrow terminal goes without, the first of them first.
        colours: of the first cell of each row.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not is_terminal():
        for line in ([*columns], *cells):
            click.echo("\t".join(_in_one_line(cell) for cell in line))
        return
    shown = _fitting(list(columns), cells, list(optional), set(texts))
    if shown is None:
        _as_list(columns, cells, colours)
        return
    kept, widths = shown
    _print_row([columns[number] for number in kept], widths, [False] * len(kept), bold=True)
    for place, row in enumerate(cells):
        is_right = [columns[number] in right for number in kept]
        colour = colours[place] if place < len(colours) else None
        _print_row([row[number] for number in kept], widths, is_right, colour=colour)


def _fitting(
    columns: list[str], rows: list[list[str]], optional: list[str], texts: set[str]
) -> tuple[list[int], list[int]] | None:
    """Which columns a terminal has room for, and how wide each is; None if not even those that must be shown."""
    room = width()
    kept = list(range(len(columns)))
    leave_out = [columns.index(name) for name in optional if name in columns]
    while True:
        widths = [
            max([_columns(columns[n]), *(_columns(line) for row in rows for line in row[n].splitlines())]) for n in kept
        ]
        spare = room - sum(widths) - _GAP * (len(kept) - 1)
        for place, number in enumerate(kept):
            if spare < 0 and columns[number] in texts:
                narrower = max(_NARROWEST_TEXT, widths[place] + spare)
                spare += max(0, widths[place] - narrower)
                widths[place] = min(widths[place], narrower)
        if spare >= 0:
            return kept, widths
        if not leave_out:
            return None
        kept.remove(leave_out.pop(0))


def _print_row(
    cells: Sequence[str],
    widths: Sequence[int],
    is_right: Sequence[bool],
    *,
    bold: bool = False,
    colour: Colour | None = None,
) -> None:
    lines = [
        [
            part
            for line in cell.splitlines() or [""]
            for part in (_wrapped(line, wide) if _columns(line) > wide else [line])
        ]
        for cell, wide in zip(cells, widths, strict=True)
    ]
    for number in range(max(map(len, lines))):
        parts = []
        for place, (cell, wide) in enumerate(zip(lines, widths, strict=True)):
            text = cell[number] if number < len(cell) else ""
            blank = " " * (wide - _columns(text))
            is_last = place == len(lines) - 1
            padded = blank + text if is_right[place] else text if is_last else text + blank
            parts.append(coloured(padded, colour if place == 0 else None, bold=bold or (place == 0 and bool(colour))))
        click.echo((" " * _GAP).join(parts))


def _as_list(columns: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[Colour | None]) -> None:
    wide = max(map(_columns, columns))
    for place, row in enumerate(rows):
        if place:
            click.echo()
        for number, (name, cell) in enumerate(zip(columns, row, strict=True)):
            if cell:
                colour = colours[place] if number == 0 and place < len(colours) else None
                text = cell.replace("\n", f"\n{' ' * (wide + _GAP)}")
                click.echo(f"{coloured(name.ljust(wide), None, bold=True)}{' ' * _GAP}{coloured(text, colour)}")


def facts(rows: Mapping[str, object], indent: int = 0) -> None:
    """Prints names and values, one a line; values of None are left out, and no value is folded or cut."""
    there = {name: str(value) for name, value in rows.items() if value is not None}
    if not is_terminal():
        for name, value in there.items():
            click.echo(f"{name}\t{_in_one_line(value)}")
        return
    wide = max(map(len, there), default=0)
    for name, value in there.items():
        head = " " * indent + coloured(name.ljust(wide), None, bold=True) + " " * _GAP
        click.echo(head + value.replace("\n", "\n" + " " * (indent + wide + _GAP)))


def _in_one_line(text: str) -> str:
    """A cell that neither a tab nor the end of a line breaks up."""
    return text.replace("\t", " ").replace("\r", "").replace("\n", ", ")


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)


def _wrapped(text: str, wide: int) -> list[str]:
    return textwrap.wrap(text, wide, break_long_words=False, break_on_hyphens=False) or [""]


def number(value: int) -> str:
    """A number with thousands marked."""
    return f"{value:,}"


def plural(count: int, what: str) -> str:
    """So many of something whose plural ends in s."""
    return f"{count:,} {what}{'s' * (count != 1)}"


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


def console() -> Console:
    """Where bars and spinners go: standard error."""
    from rich.console import Console  # here: most commands need none

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


@contextmanager
def file_progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _bytes: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda count: progress.update(task, advance=count)


@contextmanager
def spinner(what: str) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal that work goes on, with a text that can be changed; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _what: None
        return
    with console().status(what) as shown:
        yield shown.update
