"""Files that nothing refers to: marked by a removal, or written by a process that died before it registered them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.state import tables

DAY = 86_400_000_000
"""A day in the unit of the store."""

_AT_ONCE = 500


def let_go(context: Context, names: Iterable[str]) -> list[int]:
    """Marks files as unused from now on; :func:`sweep` removes them once they have been unused for long enough.

    A process that has just read their rows may be about to open them.

    Returns:
        Their sizes; files that no longer exist are left out.
    """
    now = context.clock()
    sizes = []
    for name in names:
        path = context.folder.path(name)
        try:
            os.utime(path, (now, now))
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return sizes


def size_of(context: Context, names: Iterable[str]) -> list[int]:
    """The sizes of files; those that no longer exist are left out."""
    paths = (context.folder.path(name) for name in names)
    return [path.stat().st_size for path in paths if path.exists()]


def sweep(context: Context, report: RetentionReport) -> None:
    """Removes from the disk the files that have been unused for the setting's time, and that no row refers to.

    A file that is written but does not count yet looks the same. So the time is long, and whoever stood still for half
    of it loses its leases first: it cannot make such a file count when it wakes up.
    """
    unused = context.now() - int(context.settings.unused_file_retention_days * DAY)
    if not report.dry_run:
        _end_sleepers(context, context.now() - int(context.settings.unused_file_retention_days * DAY / 2))
    for kind in ("segments", "ledger", "snapshots", "outboxes", "receipts"):
        # In this order: what is listed and made to count after that is found among what counts.
        for paths in _in_parts(sorted(_older(context.folder.root / kind, unused))):
            needed = _referred_to(context, kind, paths)
            _remove([path for path in paths if f"{kind}/{path.name}" not in needed], report)
    # A compute engine that was killed leaves its spill files.
    _remove(sorted(_older(context.folder.root / "spill", unused)), report)


def _end_sleepers(context: Context, unheard_since: int) -> None:
    table = tables.leases
    with context.store.begin() as tx:
        tx.execute(
            sa.update(table)
            .where(table.c.expires_at > 0, table.c.expires_at < unheard_since)
            .values(expires_at=0, owner="", fence=table.c.fence + 1)
        )


def _older(folder: Path, than: int) -> Iterator[Path]:
    for entry in os.scandir(folder):
        try:
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime * 1e6 < than:
                yield Path(entry.path)
        except FileNotFoundError:
            continue


def _in_parts(paths: list[Path]) -> Iterator[list[Path]]:
    for start in range(0, len(paths), _AT_ONCE):
        yield paths[start : start + _AT_ONCE]


def _referred_to(context: Context, kind: str, paths: Iterable[Path]) -> set[str]:
    """Those of the files that a row of the store names, and needs."""
    names = [f"{kind}/{path.name}" for path in paths]
    with context.store.begin() as tx:
        return set(tx.execute(_named(kind, names)).scalars())


def _named(kind: str, names: list[str]) -> sa.Select[tuple[str]]:
    parts, boxes = tables.segment_apps, tables.outboxes
    if kind == "segments":
        return sa.select(tables.segments.c.file).where(tables.segments.c.file.in_(names))
    if kind == "ledger":
        return sa.select(tables.captured_ids.c.file).where(tables.captured_ids.c.file.in_(names))
    if kind == "snapshots":
        return sa.select(parts.c.snapshot_file).where(parts.c.snapshot_file.in_(names))
    if kind == "outboxes":  # once all its integrations are done its file is not needed, though its rows are
        return sa.select(boxes.c.file).where(boxes.c.file.in_(names), boxes.c.done_at.is_(None))
    return sa.select(boxes.c.receipts_file).where(boxes.c.receipts_file.in_(names))


def _remove(paths: Iterable[Path], report: RetentionReport) -> None:
    for path in paths:
        try:
            size = path.stat().st_size
            if not report.dry_run:
                path.unlink()
        except FileNotFoundError:
            continue
        report.add("unused_files", sizes=[size])
