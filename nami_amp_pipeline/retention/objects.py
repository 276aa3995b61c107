"""Objects that no row refers to: noted in the storage when they are first seen, and removed when that was long ago.

An object's time is that of its writing, and cannot be moved when its rows are removed. So each retention run notes the
objects that it finds unused, in an object of its own, and removes those that an earlier run has noted long enough ago.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import orjson

from nami_amp_pipeline.context import Context
from nami_amp_pipeline.retention.report import RetentionReport
from nami_amp_pipeline.stages.stage import References
from nami_amp_pipeline.storage.cached_folder import CachedFolder
from nami_amp_pipeline.storage.object_storage import PROBES, StoredObject

NOTES: Final = "unused/"
"""The folder of the notes: ``{"since": µs since the epoch, "names": [...]}``."""

_AT_ONCE: Final = 500


def sweep_objects(
    context: Context,
    folder: CachedFolder,
    kinds: Sequence[tuple[str, References]],
    unused: int,
    report: RetentionReport,
) -> None:
    """Removes the objects that no row has referred to for long enough; notes those that are unused since now.

    Args:
        context: for the store.
        folder: with the storage.
        kinds: of files, each with the rows that refer to them.
        unused: what has been unused since then is removed, in µs since the epoch.
        report: gets what was removed.

    Raises:
        FilesUnavailable: the next run goes on.
    """
    notes = _notes(folder)
    since = {name: at for at, names in sorted(notes.values(), reverse=True) for name in names}
    gone: list[StoredObject] = []
    new: list[str] = []
    listed: set[str] = set()
    for kind, references in kinds:
        # In this order: an object that is registered after it was listed is found among the registered ones.
        old = {found.name: found for found in folder.storage.list(f"{kind}/") if found.modified < unused}
        listed.update(old)
        for names in in_parts(sorted(old)):
            needed = referred_to(context, references, names)
            for name in names:
                if name not in needed and since.get(name, unused) < unused:
                    gone.append(old[name])
                elif name not in needed and name not in since:
                    new.append(name)
    gone += [found for found in folder.storage.list(PROBES) if found.modified < unused]
    report.add("unused_files", sizes=[found.size for found in gone])
    if report.dry_run:
        return
    for names in in_parts([found.name for found in gone]):
        folder.remove_all(names)
    if new:
        _note(folder, context.now(), new)
    left = listed - {found.name for found in gone}
    folder.storage.delete(note for note, (_, names) in notes.items() if left.isdisjoint(names))
    folder.trim()


def _notes(folder: CachedFolder) -> dict[str, tuple[int, list[str]]]:
    """Since when which names are unused, by the object that says so."""
    found: dict[str, tuple[int, list[str]]] = {}
    with tempfile.TemporaryDirectory(prefix="nami-amp-notes-") as scratch:
        path = Path(scratch) / "note"
        for note in list(folder.storage.list(NOTES)):
            if folder.storage.read(note.name, path):
                said = orjson.loads(path.read_bytes())
                found[note.name] = (said["since"], said["names"])
    return found


def _note(folder: CachedFolder, since: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="nami-amp-notes-") as scratch:
        path = Path(scratch) / "note"
        path.write_bytes(orjson.dumps({"since": since, "names": names}))
        folder.storage.create(f"{NOTES}{uuid.uuid4().hex}.json", path)


def in_parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """So many names as a query takes."""
    for start in range(0, len(names), _AT_ONCE):
        yield names[start : start + _AT_ONCE]


def referred_to(context: Context, references: References, names: Iterable[str]) -> set[str]:
    """The files that a row of the store names and needs."""
    with context.store.begin() as tx:
        return set(tx.execute(references(list(names))).scalars())
