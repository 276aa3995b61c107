"""Exported events in a folder: the files of Amplitude's S3 export, or zips of the Export API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from nami_amp_pipeline.amplitude.exported.source import Chunk, hour_of_name, is_exported, unpacked
from nami_amp_pipeline.errors import Misconfigured

FILES_AT_ONCE = 64


class ExportFolder:
    """Reads all files below a folder whose names are of the wanted hours, or of no hour at all.

    Args:
        folder: where they are.
        scratch: where zips are unpacked to.

    Raises:
        Misconfigured: there is no such folder, or no exported file in it.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.called = str(folder)
        self._scratch = scratch
        if not folder.is_dir():
            raise Misconfigured(f"--source {folder}: there is no such folder")
        self._files = sorted(path for path in folder.rglob("*") if path.is_file() and is_exported(path.name))
        if not self._files:
            raise Misconfigured(f"--source {folder}: no .json.gz, .json or .zip file in this folder")

    def read(self, hours: Iterable[int]) -> Iterator[Chunk]:
        """See :class:`~nami_amp_pipeline.amplitude.exported.source.ExportSource`."""
        wanted = frozenset(hours)
        by_hour: dict[int | None, list[Path]] = defaultdict(list)
        for path in self._files:
            if path.suffix == ".zip":
                yield from unpacked(path, self._scratch, wanted, str(path))
                continue
            hour = hour_of_name(path.name)
            if hour is None or hour in wanted:
                by_hour[hour].append(path)
        for hour, paths in by_hour.items():
            for start in range(0, len(paths), FILES_AT_ONCE):
                yield Chunk(frozenset(() if hour is None else [hour]), tuple(paths[start : start + FILES_AT_ONCE]))
