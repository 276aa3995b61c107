"""Whose fault an unexpected error is: rows that fail alone are found by halves."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
import sqlalchemy as sa

from nami_amp_pipeline.errors import NamiAmpError, is_out_of_memory

MOST_ODD = 20
"""At most this many rows of a segment are set aside; the search computes the segment about twice for each of them."""

ODD_ROW = "odd_row"
"""The reason of a row that cannot be computed, with the others or alone."""

_NO_ROWS = (
    NamiAmpError, OSError, MemoryError, sa.exc.SQLAlchemyError, duckdb.IOException, duckdb.OutOfMemoryException,
    duckdb.InterruptException,
)  # fmt: skip


def may_be_a_rows(error: Exception) -> bool:
    """Whether a row may have caused an error; no row causes our own errors, those of the store or those of the disk."""
    return not isinstance(error, _NO_ROWS) and not is_out_of_memory(error)


def find_odd(first: int, end: int, failure: Callable[[int, int], str | None], most: int) -> dict[int, str]:
    """Finds the rows that fail alone, by halves.

    Args:
        first, end: numbers of the first row and of the row after the last.
        failure: computes the rows from ``first`` to ``end``, and returns the error in words, or None. It raises errors
            that no row causes.
        most: the search ends when it has found more rows than this.

    Returns:
        The error in words, by row number.
    """
    bad: dict[int, str] = {}

    def look(first: int, end: int) -> None:
        if first >= end or len(bad) > most:
            return
        why = failure(first, end)
        if why is None:
            return
        if end - first == 1:
            bad[first] = why
            return
        middle = (first + end) // 2
        look(first, middle)
        look(middle, end)

    look(first, end)
    return bad


def words_of(error: Exception) -> str:
    """An error in one line."""
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
