"""The report of a retention run: what it removed, by kind, and what it kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Removed:
    """The removals of one kind.

    Attributes:
        rows: of the state store.
        files: that nothing refers to any more.
        bytes: of those files.
    """

    rows: int = 0
    files: int = 0
    bytes: int = 0


@dataclass
class RetentionReport:
    """The removals of a retention run, or of a dry run.

    Attributes:
        dry_run: whether nothing was removed.
        removed: by kind; ``segments``, ``snapshots``, ``captured_ids``, ``receipts``, ``requests``, ``settled_events``,
            ``dead_letters``, ``hours``, ``pauses``, ``leases``, ``plans``, ``run_troubles``, ``resends``,
            ``sign_ins`` and ``comparison_requests`` lost their rows, ``unused_files`` were removed.
        held_back: segments that are past their retention but still needed, by ``<app_id>/<name>`` of the integration
            that needs them.
        runs: runs removed from Dagster's history; None if it was not checked.
        runs_kept: runs past their retention that hold the newest materialization of a partition.
    """

    dry_run: bool = False
    removed: dict[str, Removed] = field(default_factory=dict)
    held_back: dict[str, int] = field(default_factory=dict)
    runs: int | None = None
    runs_kept: int | None = None

    def add(self, kind: str, *, rows: int = 0, sizes: Iterable[int] = ()) -> None:
        """Adds a removal; ``sizes`` are those of its files."""
        each = list(sizes)
        self.add_files(kind, rows=rows, files=len(each), size=sum(each))

    def add_files(self, kind: str, *, rows: int, files: int, size: int) -> None:
        """Adds a removal of a number of files with a total size in bytes."""
        if rows or files:
            removal = self.removed.setdefault(kind, Removed())
            removal.rows += rows
            removal.files += files
            removal.bytes += size

    def to_json(self) -> dict[str, Any]:
        """The object of ``retention --json``."""
        return {
            "dry_run": self.dry_run,
            "removed": {
                kind: {"rows": removal.rows, "files": removal.files, "bytes": removal.bytes}
                for kind, removal in self.removed.items()
            },
            "held_back": self.held_back,
            "dagster_runs": self.runs,
            "dagster_runs_kept": self.runs_kept,
        }
