"""Cuts lists into pages by keysets: a page says after which row the next one begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

ROWS: Final = 50


@dataclass(frozen=True)
class Part(Generic[T]):
    """Some rows of a list.

    Attributes:
        rows: at most :data:`ROWS`.
        after: the key of the last row, for the address of the next part; None if this is the end.
    """

    rows: Sequence[T]
    after: str | None


def cut(rows: Sequence[T], key: Callable[[T], object], size: int = ROWS) -> Part[T]:
    """The first rows of those that a query found.

    Args:
        rows: up to ``size + 1``, all after the key in the address: one too many shows that there are more.
        key: of a row, as the query takes it.
        size: how many rows a page has.
    """
    shown = rows[:size]
    return Part(shown, str(key(shown[-1])) if len(rows) > size else None)
