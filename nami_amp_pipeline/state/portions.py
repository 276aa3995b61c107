"""Items in portions: a statement may name so many only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def portions(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """All items in order, at most so many at a time."""
    for start in range(0, len(items), most):
        yield items[start : start + most]
