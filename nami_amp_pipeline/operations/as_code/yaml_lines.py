"""Reads YAML as plain values, with the line of each: YAML 1.2's few types, and no other meaning of a word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

Place = tuple[str | int, ...]
"""Where a value stands: names of fields and numbers of items, from the outside in."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_MOST_VALUES: Final = 300_000
_DEEPEST: Final = 20
_LONGEST_NUMBER: Final = 30
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_TAG: Final = "tag:yaml.org,2002:"
_WORDS: Final[Mapping[str, Any]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass(frozen=True)
class Mistake:
    """What is wrong in a file.

    Attributes:
        place: where; empty for the file itself.
        line: the line, from 1; None where there is none.
        message: what is wrong, and what to write instead.
    """

    place: Place
    line: int | None
    message: str

    @property
    def field(self) -> str:
        """The place as people write it, such as ``apps.radio.integrations.main.events[0]``."""
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.place)
        return text.removeprefix(".")


@dataclass
class Read:
    """What a text says.

    Attributes:
        value: mappings by text, lists, texts, numbers, booleans and None.
        lines: the line of each value, from 1.
        mistakes: what cannot be read.
    """

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line(self, place: Place) -> int | None:
        """The line of a place, or of what it would be in."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)


class _TooMuch(Exception):
    """There are more values than any file needs; aliases of aliases make billions of a few lines."""


def read(text: str) -> Read:
    """Reads a text; see :class:`Read`.

    Only ``true``, ``false``, ``null`` and decimal numbers are more than text: a time stays as it was written, and
    ``yes``, ``on`` or ``1:30`` are words. Names of fields are always texts.
    """
    found = Read()
    try:
        node = yaml.compose(text, Loader=_LOADER)
        if node is None:
            found.mistakes.append(Mistake((), None, "the file is empty"))
            return found
        found.value = _value(node, (), found)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        # Between quotes the parser repeats what it met, which may be a key.
        said = re.sub(r"'[^']*'|\"[^\"]*\"", "…", str(getattr(error, "problem", None) or "it has an odd character"))
        found.mistakes.append(Mistake((), mark.line + 1 if mark else None, f"is not YAML: {said}"))
    except (_TooMuch, RecursionError):
        found.mistakes.append(Mistake((), None, "is nested too deeply, or holds too many values"))
    return found


def _value(node: yaml.Node, place: Place, found: Read) -> Any:
    found.lines.setdefault(place, node.start_mark.line + 1)
    if len(place) > _DEEPEST or len(found.lines) > _MOST_VALUES:
        raise _TooMuch
    if not node.tag.startswith(_TAG):
        found.mistakes.append(
            Mistake(place, found.line(place), "has a tag (a word after '!'), which means nothing here")
        )
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, place, found)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, number), found) for number, item in enumerate(node.value)]
    is_plain = not getattr(node, "style", None) and node.tag != f"{_TAG}str"
    return _plain(node.value) if is_plain else node.value


def _mapping(node: yaml.MappingNode, place: Place, found: Read) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            found.mistakes.append(Mistake(place, line, "the name of a field must be a word"))
            continue
        here = (*place, key.value)
        if key.value in values:
            first = found.lines[here]
            found.mistakes.append(Mistake(here, line, f"is there twice; the first is in line {first}"))
            continue
        found.lines[here] = line
        values[key.value] = _value(item, here, found)
    return values


def _plain(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    number = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if number is None:
        return text
    return float(text) if number[2] else int(text)
