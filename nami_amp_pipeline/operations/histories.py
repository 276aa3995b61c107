"""Which Dagster histories worked on a home of late: two of them show half of the runs each.

Each Dagster that runs this pipeline notes its history in a file of the home, and so does ``nami-amp run``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from nami_amp_pipeline.clock import to_text

RECENT_SECONDS: Final = 86_400
"""A history that nothing was noted of for longer is not spoken of any more."""

_NOTE_SECONDS: Final = 60


@dataclass(frozen=True)
class History:
    """A history of Dagster.

    Attributes:
        place: its folder, or the address of its database without a login.
        used_at: when it was noted last, in seconds since the epoch.
    """

    place: str
    used_at: float

    def to_json(self) -> dict[str, Any]:
        """The object of ``status --json``."""
        return {"place": self.place, "used_at": to_text(int(self.used_at * 1e6))}


def note(home: Path, place: str, now: float) -> None:
    """Notes that a Dagster with this history works on a home; at most once a minute, and only where that is possible.

    Args:
        home: of the pipeline.
        place: see :class:`History`.
        now: in seconds since the epoch.
    """
    known = _read(home)
    if abs(now - known.get(place, 0.0)) < _NOTE_SECONDS:
        return
    kept = {name: at for name, at in known.items() if now - at < RECENT_SECONDS}
    with suppress(OSError):
        aside = _file(home).with_suffix(".part")
        aside.write_text(json.dumps({**kept, place: now}, indent=2) + "\n", "utf-8")
        aside.replace(_file(home))


def histories(home: Path, now: float) -> list[History]:
    """The histories that worked on a home within the last day and are still there, the last used first.

    Args:
        home: of the pipeline.
        now: in seconds since the epoch.
    """
    found = [
        History(place, at)
        for place, at in _read(home).items()
        if now - at < RECENT_SECONDS and (not place.startswith("/") or Path(place).is_dir())
    ]
    return sorted(found, key=lambda history: -history.used_at)


def in_words(found: Sequence[History]) -> str:
    """A sentence about several histories, without a full stop."""
    places = ", ".join(f"{history.place} (last {_clock_time(history.used_at)})" for history in found)
    return f"{len(found)} histories were used for this home within a day, and each shows its own runs only: {places}"


WHAT_TO_DO: Final = (
    "stop the Dagster that you do not want, if it still runs; 'nami-amp dev' starts Dagster on the history that the "
    "settings name"
)


def _clock_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _file(home: Path) -> Path:
    return home / "dagster-histories.json"


def _read(home: Path) -> dict[str, float]:
    try:
        found = json.loads(_file(home).read_text("utf-8"))
        return {str(place): float(at) for place, at in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
