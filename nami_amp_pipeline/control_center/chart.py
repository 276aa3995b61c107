"""Charts as SVG that templates write: numbers only, no script, no style attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nami_amp_pipeline.control_center import words
from nami_amp_pipeline.operations.deliveries import Bar, Tally
from nami_amp_pipeline.operations.marks import Mark

HEIGHT: Final = 160
_WIDTH: Final = 10
_ORDER: Final = ("delivered", "skipped", "dead_letters", "waiting")


@dataclass(frozen=True)
class Rect:
    """A piece of a bar."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Column:
    """A bar with its words."""

    says: str
    rects: Sequence[Rect]


@dataclass(frozen=True)
class Line:
    """A mark with its words; of an outage also how wide it is."""

    says: str
    x: float
    kind: str = "change"
    width: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A stacked chart.

    Attributes:
        width, height: of its box.
        most: the height of the highest bar, in events.
        columns: from left to right.
        marks: what was changed, halts, and outages.
    """

    width: int
    height: int
    most: int
    columns: Sequence[Column]
    marks: Sequence[Line]


def stacked(bars: Sequence[Bar], marks: Sequence[Mark] = ()) -> Chart:
    """A bar for each part of a window, stacked by where its events are now."""
    most = max((bar.tally.captured for bar in bars), default=0)
    columns = [Column(_says(bar), _pieces(bar.tally, most, number * _WIDTH)) for number, bar in enumerate(bars)]
    lines = [_line(mark, bars) for mark in marks if bars and bars[0].since <= mark.at < bars[-1].until]
    return Chart(len(bars) * _WIDTH, HEIGHT, most, columns, lines)


def _line(mark: Mark, bars: Sequence[Bar]) -> Line:
    begins, ends, whole = bars[0].since, bars[-1].until, len(bars) * _WIDTH
    x = (mark.at - begins) / (ends - begins) * whole
    width = 0.0
    if mark.kind == "outage":
        until = ends if mark.until is None else min(mark.until, ends)
        width = max(1.0, (until - mark.at) / (ends - begins) * whole)
    return Line(f"{words.spelled(mark.at)}: {mark.what}", round(x, 2), mark.kind, round(width, 2))


def small(values: Sequence[int]) -> list[Rect]:
    """Bars of a small picture, 4 wide and at most 24 high; a value over nothing is seen, however small."""
    most = max(values, default=0)
    return [
        Rect("delivered", number * 4, round(24 - height, 2), 3, round(height, 2))
        for number, value in enumerate(values)
        if value > 0 and (height := max(1.0, value / most * 24))
    ]


def _says(bar: Bar) -> str:
    tally = bar.tally
    return (
        f"{words.spelled(bar.since)}: {words.counted(tally.captured, 'event')} captured, {tally.delivered:,} "
        f"delivered, {tally.skipped:,} skipped, {tally.dead_letters:,} refused, {tally.waiting:,} waiting"
    )


def _pieces(tally: Tally, most: int, x: int) -> list[Rect]:
    numbers = tally.to_json()
    pieces, top = [], float(HEIGHT)
    for kind in _ORDER:
        if most and numbers[kind] > 0:
            height = max(1.0, numbers[kind] / most * HEIGHT)
            top = max(0.0, top - height)
            pieces.append(Rect(kind, x + 1, round(top, 2), _WIDTH - 2, round(height, 2)))
    return pieces
