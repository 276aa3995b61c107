"""Works on two segments at a time, to use a second core."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from nami_amp_pipeline.settings import Settings


T = TypeVar("T")
R = TypeVar("R")

WORKERS: Final = 2
"""Segments that are worked on at once; memory grows with their number."""


def is_parallel(settings: Settings) -> bool:
    """Whether several segments are worked on at a time; with one thread, the order is fixed."""
    return (settings.duckdb_threads or os.cpu_count() or 1) > 1


def in_parallel(act: Callable[[T], None], items: Sequence[T], divide: Callable[[int], None]) -> None:
    """Does the same to several independent items.

    Args:
        act: releases the interpreter's lock for most of its time.
        items: what to do it to.
        divide: called with the number of items at once, before they start.

    Raises:
        Exception: the first that ``act`` raised; items that had not started are skipped.
    """
    divide(min(WORKERS, len(items)))
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="segment") as pool:
        futures = [pool.submit(act, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def with_next_ahead(
    make: Callable[[T], AbstractContextManager[R]],
    use: Callable[[T, R], None],
    items: Iterable[T],
    divide: Callable[[int], None],
) -> None:
    """Makes something from each item and uses it, in order; the next is made while one is used.

    Args:
        make: opens what is used; it must not depend on what was used before.
        use: whatever it raises passes through the context that ``make`` opened.
        items: one after the other.
        divide: told how many are worked on at once, while none is: the first is made, and the last is used, alone.
    """

    def enter(item: T) -> tuple[ExitStack, R]:
        stack = ExitStack()
        return stack, stack.enter_context(make(item))

    def finish(item: T, future: Future[tuple[ExitStack, R]]) -> None:
        stack, made = future.result()
        with stack:
            use(item, made)

    last: tuple[T, Future[tuple[ExitStack, R]]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="segment") as pool:
        try:
            divide(1)
            for item in items:
                current, last = last, (item, pool.submit(enter, item))
                if current is not None:
                    finish(*current)
                else:
                    last[1].result()
                    divide(WORKERS)
            if last is not None:
                last[1].result()
                divide(1)
                current, last = last, None
                finish(*current)
        except BaseException:
            if last is not None and last[1].exception() is None:
                last[1].result()[0].close()
            raise
