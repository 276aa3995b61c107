"""Decides what a JSON payload is: for ``load``, for capture, and for building events.

A payload is a JSON object as RFC 8259 has it, with one liberty: half a surrogate pair, which the grammar allows as an
escape and no UTF-8 text can hold, is read as U+FFFD. DuckDB reads somewhat more than JSON (trailing commas, NaN,
Infinity) and no half pairs, so what it cannot read or what looks doubtful is looked at here, one text at a time.
Nothing here recurses and nothing turns digits into whole numbers: neither depth nor length of a text can break it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import duckdb
import orjson

DOUBTFUL: Final = r",\s*[\]}]|[:,\[]\s*-?(?:[nN][aA]|[iI])"
"""What DuckDB takes for JSON and RFC 8259 does not; in a text it is harmless, so a match is only a doubt."""

SURROGATE: Final = r"\\u[dD][89a-fA-F]"
"""How an escaped half of a surrogate pair begins, or a whole pair."""

_DOUBTFUL = re.compile(DOUBTFUL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ESCAPE = re.compile(
    r"(?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_NESTED = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_SCALAR = re.compile(r"[^\s,}\]]+")
_BETWEEN = re.compile(r"[\s,:]*")


class Judged(NamedTuple):
    """A payload that was examined singly.

    Attributes:
        text: the payload, with each half of a surrogate pair replaced.
        is_object: whether it is a JSON object.
        replaced: how many halves of surrogate pairs were replaced.
    """

    text: str
    is_object: bool
    replaced: int = 0


def judge(connection: duckdb.DuckDBPyConnection, text: str) -> Judged:
    """Examines one payload.

    Args:
        connection: a DuckDB with nothing under way.
        text: the payload.
    """
    whole, replaced = with_whole_characters(text)
    if whole.lstrip(" \t\r\n").startswith("{") and is_json(connection, whole):
        return Judged(whole, is_object=True, replaced=replaced)
    return Judged(text, is_object=False)


def is_json(connection: duckdb.DuckDBPyConnection, text: str) -> bool:
    """Whether a text is JSON by RFC 8259, at any depth and with numbers of any size."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        ((is_read,),) = connection.execute("SELECT json_valid(?)", [text]).fetchall()
        return bool(is_read) and _DOUBTFUL.search(_STRING.sub('""', text)) is None
    return True


def field_names(text: str) -> list[str]:
    """The names of a JSON object's fields in their order, including repeated names."""
    return [orjson.loads(name) for name, _ in top_level(text)]


def with_whole_characters(text: str) -> tuple[str, int]:
    """A JSON text with U+FFFD for each escaped half of a surrogate pair, and how many there were."""
    replaced = 0

    def whole(found: re.Match[str]) -> str:
        nonlocal replaced
        if found["half"] is None:
            return found[0]
        replaced += 1
        return "\\ufffd"

    return _ESCAPE.sub(whole, text), replaced


def top_level(text: str) -> Iterator[tuple[str, str]]:
    """The fields of a JSON object as (name as JSON text, value as JSON text), as they stand.

    An array or object is cut to its first character.

    Args:
        text: strict JSON, an object.
    """
    at = text.index("{") + 1
    while True:
        at = _end(_BETWEEN, text, at)
        if text[at] == "}":
            return
        key_end = _end(_STRING, text, at)
        key, at = text[at:key_end], _end(_BETWEEN, text, key_end)
        if text[at] in "[{":
            yield key, text[at]
            at = _end_of_container(text, at)
        else:
            end = _end(_STRING if text[at] == '"' else _SCALAR, text, at)
            yield key, text[at:end]
            at = end


def is_finite(number: str) -> bool:
    """Whether a double can hold a JSON number at least roughly; endless digits and 1e999 cannot be sent."""
    return math.isfinite(float(number))


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError("not JSON")
    return found.end()


def _end_of_container(text: str, at: int) -> int:
    depth = 0
    for found in _NESTED.finditer(text, at):
        if found[0] in ("[", "{"):
            depth += 1
        elif found[0] in ("]", "}"):
            depth -= 1
            if not depth:
                return found.end()
    raise ValueError("not JSON")
