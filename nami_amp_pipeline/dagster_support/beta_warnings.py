"""Silences Dagster's warnings about beta features: the version is pinned, and tests show if one breaks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from dagster import BetaWarning, PreviewWarning


@contextmanager
def ignore_beta_warnings() -> Iterator[None]:
    """Silences these warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BetaWarning)
        warnings.simplefilter("ignore", PreviewWarning)
        yield
