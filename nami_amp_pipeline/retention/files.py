"""Files that nothing refers to: marked by a removal, or written by a process that died before it registered them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.retention.objects import in_parts, referred_to, sweep_objects
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.stages.stage import Stage
from nami_amp_pipeline.stages.table import STAGES
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.storage.cached_folder import SPILL, CachedFolder

DAY = 86_400_000_000
"""A day in the unit of the store."""


def let_go(context: Context, names: Iterable[str]) -> list[int]:
    """Marks files as unused from now on; :func:`sweep` removes them once they have been unused for long enough.

    A process that has just read their rows may be about to open them.

    Returns:
        Their sizes; files that no longer exist are left out.
    """
    return context.folder.let_go(names, context.clock())


def size_of(context: Context, names: Iterable[str]) -> list[int]:
    """The sizes of files; those that no longer exist are left out."""
    return context.folder.sizes(names)


def sweep(context: Context, report: RetentionReport, stages: Sequence[Stage] = STAGES) -> None:
    """Removes files that have been unused for the time of the setting and that no row refers to.

    A file that is written but not registered yet looks the same. So the time is long, and a process that was stopped
    for half of it loses its leases first: it cannot register such a file when it wakes up.
    """
    unused = context.now() - int(context.settings.unused_file_retention_days * DAY)
    if not report.dry_run:
        _end_sleepers(context, context.now() - int(context.settings.unused_file_retention_days * DAY / 2))
    kinds = [(kind, references) for stage in stages for kind, references in stage.files.items()]
    if isinstance(context.folder, CachedFolder):
        sweep_objects(context, context.folder, kinds, unused, report)
    else:
        for kind, references in kinds:
            # In this order: a file that is registered after it was listed is found among the registered ones.
            paths = {f"{kind}/{path.name}": path for path in _older(context.folder.root / kind, unused)}
            for names in in_parts(sorted(paths)):
                needed = referred_to(context, references, names)
                _remove([paths[name] for name in names if name not in needed], report)
    # A compute engine that was killed leaves its spill files.
    _remove(sorted(_older(context.settings.data_dir / SPILL, unused)), report)


def _end_sleepers(context: Context, unheard_since: int) -> None:
    table = tables.leases
    with context.store.begin() as tx:
        tx.execute(
            sa.update(table)
            .where(table.c.expires_at > 0, table.c.expires_at < unheard_since)
            .values(expires_at=0, owner="", fence=table.c.fence + 1)
        )


def _older(folder: Path, than: int) -> Iterator[Path]:
    for entry in os.scandir(folder) if folder.exists() else ():
        try:
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mtime * 1e6 < than:
                yield Path(entry.path)
        except FileNotFoundError:
            continue


def _remove(paths: Iterable[Path], report: RetentionReport) -> None:
    for path in paths:
        try:
            size = path.stat().st_size
            if not report.dry_run:
                path.unlink()
        except FileNotFoundError:
            continue
        report.add("unused_files", sizes=[size])
