"""Parts of Dagster that may still change, used on purpose: the version is pinned, and tests say when one breaks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import BetaWarning, PreviewWarning


@contextmanager
def ignore_beta_warnings() -> Iterator[None]:
    """Takes the warnings about such parts as read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetaWarning)
        warnings.simplefilter("ignore", PreviewWarning)
        yield
