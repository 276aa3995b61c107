"""Payloads of events as pages show them: pretty, cut, with fields marked; and as files to download.

They hold whatever an app or Amplitude wrote: templates escape them, and a download is never a page.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import orjson
from starlette.responses import Response

MOST_CHARACTERS: Final = 16 * 1024
"""So much of a payload stands in a page."""


@dataclass(frozen=True)
class Line:
    """Some lines of a payload, and whether they are marked."""

    text: str
    is_marked: bool = False


@dataclass(frozen=True)
class Payload:
    """A payload for a page.

    Attributes:
        lines: of it, up to the cut.
        size: characters of all of it.
        is_cut: whether the page does not have all of it.
    """

    lines: list[Line]
    size: int
    is_cut: bool


def payload(text: str | None, marked: Collection[str] = ()) -> Payload | None:
    """A payload with the values of some top-level fields marked; None for none.

    Args:
        text: JSON, or what should have been.
        marked: names of fields; of a dotted name the first part counts.
    """
    if text is None:
        return None
    lines = _lines(text, {name.partition(".")[0] for name in marked})
    shown: list[Line] = []
    left = MOST_CHARACTERS
    for line in lines:
        if left <= 0:
            break
        shown.append(Line(line.text[:left], line.is_marked))
        left -= len(line.text)
    return Payload(shown, len(text), left < 0 or len(shown) < len(lines))


def _lines(text: str, marked: Collection[str]) -> list[Line]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        return [Line(text)]
    if not isinstance(fields, dict) or not fields:
        return [Line(orjson.dumps(fields, option=orjson.OPT_INDENT_2).decode())]
    lines = [Line("{\n")]
    last = len(fields) - 1
    for number, (name, value) in enumerate(fields.items()):
        pretty = orjson.dumps({name: value}, option=orjson.OPT_INDENT_2).decode()
        inner = pretty.removeprefix("{\n").removesuffix("\n}")
        lines.append(Line(inner + (",\n" if number < last else "\n"), name in marked))
    return [*lines, Line("}")]


def download(text: str, name: str) -> Response:
    """A payload as a file.

    Args:
        text: as it is kept.
        name: of the file: letters, digits, dots and hyphens.
    """
    return _file(text.encode(errors="replace"), name, "application/json")


def csv_file(text: str, name: str) -> Response:
    """A table as a file."""
    return _file(text.encode(), name, "text/csv; charset=utf-8")


def _file(content: bytes, name: str, kind: str) -> Response:
    return Response(content, headers={"Content-Type": kind, "Content-Disposition": f'attachment; filename="{name}"'})
