"""The window that a stage works on: a range of time, or all new data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nami_amp_pipeline.errors import Misconfigured


@dataclass(frozen=True)
class Window:
    """A range of time, for a stage that does not only work on new data.

    Attributes:
        since: the first instant of it, in µs since the epoch.
        until: the first instant after it, in µs since the epoch.
        by: which time of a row counts.
    """

    since: int
    until: int
    by: Literal["created_date", "ingested_at"] = "created_date"

    def __post_init__(self) -> None:
        if self.since >= self.until:
            raise Misconfigured("a window must end after it begins")


def refuse(window: Window | None, asset: str) -> None:
    """For a stage that only works on new data.

    Raises:
        Misconfigured: a window is given. Working on new data instead would look like a successful backfill.
    """
    if window is not None:
        raise Misconfigured(f"{asset} works on new data only; it cannot work on a window of time")
