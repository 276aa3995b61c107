"""What a retention run removed, by kind, and what it had to keep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Removed:
    """What went of one kind.

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
    """What a retention run did, or would do.

    Attributes:
        dry_run: whether it only looked.
        removed: by kind; ``segments``, ``snapshots``, ``captured_ids``, ``receipts``, ``requests``, ``settled_events``,
            ``dead_letters``, ``pauses``, ``leases`` and ``run_troubles`` stopped counting, ``unused_files`` left the
            disk.
        held_back: segments that are past their retention but still needed, by ``<app_id>/<name>`` of the integration
            that needs them.
        runs: runs that went out of Dagster's history; None where that was not looked at.
        runs_kept: runs past their retention that hold the newest materialization of a partition.
    """

    dry_run: bool = False
    removed: dict[str, Removed] = field(default_factory=dict)
    held_back: dict[str, int] = field(default_factory=dict)
    runs: int | None = None
    runs_kept: int | None = None

    def add(self, kind: str, *, rows: int = 0, sizes: Iterable[int] = ()) -> None:
        """Notes that something went; ``sizes`` are those of its files."""
        each = list(sizes)
        self.add_files(kind, rows=rows, files=len(each), size=sum(each))

    def add_files(self, kind: str, *, rows: int, files: int, size: int) -> None:
        """The same, of so many files with so many bytes in all."""
        if rows or files:
            one = self.removed.setdefault(kind, Removed())
            one.rows += rows
            one.files += files
            one.bytes += size

    def to_json(self) -> dict[str, Any]:
        """The object of ``retention --json``."""
        return {
            "dry_run": self.dry_run,
            "removed": {
                kind: {"rows": one.rows, "files": one.files, "bytes": one.bytes} for kind, one in self.removed.items()
            },
            "held_back": self.held_back,
            "dagster_runs": self.runs,
            "dagster_runs_kept": self.runs_kept,
        }
