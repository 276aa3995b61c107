"""What all readers of exports have in common: hours, the names of files, and files that come out of a zip."""

from __future__ import annotations

import re
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, Protocol

from nami_amp_pipeline.errors import Blocked

HOUR: Final = 3_600_000_000
"""In µs. Hours are named by their first µs since the epoch, in UTC."""

_NAME: Final = re.compile(r"_(\d{4}-\d{2}-\d{2})_(\d{1,2})#[^/]*\.json(\.gz)?$")
_SUFFIXES: Final = (".json.gz", ".json", ".zip")


@dataclass(frozen=True)
class Chunk:
    """Some files with exported events, which the reader removes when the next chunk is asked for.

    Attributes:
        hours: the hours that are read to their end when this chunk is.
        files: NDJSON, plain or gzipped; they may hold events of other hours too.
    """

    hours: frozenset[int]
    files: tuple[Path, ...]


class ExportSource(Protocol):
    """Where exported events are read from.

    Attributes:
        called: for people, without secrets.
    """

    called: str

    def read(self, hours: Iterable[int]) -> Iterator[Chunk]:
        """The events of some hours by their upload to Amplitude, in chunks.

        An hour that is in no chunk is not known: it must not be taken for an empty one.

        Raises:
            Misconfigured: a key, a folder or an address cannot be used.
            Blocked: the source does not give what it should have, also after patience.
        """


def hour_of_name(name: str) -> int | None:
    """The hour in the name of an exported file, ``<project>_<day>_<hour>#<number>.json.gz``; None for other names."""
    found = _NAME.search(name)
    if found is None or int(found[2]) > 23:
        return None
    try:
        day = datetime.strptime(found[1], "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(day.timestamp()) * 1_000_000 + int(found[2]) * HOUR


def is_exported(name: str) -> bool:
    """Whether a file may be one with exported events; files of merged users are none."""
    base = name.rsplit("/", 1)[-1]
    return base.endswith(_SUFFIXES) and not base.startswith((".", "-"))


def members(archive: Path, folder: Path, wanted: frozenset[int]) -> Iterator[tuple[str, Path]]:
    """Name and extracted file of each member of a zip that may be of these hours; its caller removes it.

    Raises:
        zipfile.BadZipFile, zlib.error, EOFError: the zip is cut off or damaged.
    """
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            hour = hour_of_name(entry.filename)
            if entry.is_dir() or not is_exported(entry.filename) or (hour is not None and hour not in wanted):
                continue
            path = aside(folder, ".json.gz" if entry.filename.endswith(".gz") else ".json")
            with opened.open(entry) as packed:
                write(packed, path)
            yield entry.filename, path


def unpacked(archive: Path, scratch: Path, wanted: frozenset[int], called: str) -> Iterator[Chunk]:
    """The members of a zip as chunks, each removed when the next is asked for.

    Raises:
        Blocked: the zip is cut off or damaged; the message names it as ``called``.
    """
    try:
        for name, path in members(archive, scratch, wanted):
            hour = hour_of_name(name)
            try:
                yield Chunk(frozenset(() if hour is None else [hour]), (path,))
            finally:
                path.unlink(missing_ok=True)
    except DAMAGED as error:
        raise unreadable(called, error) from None


def write(source: IO[bytes], path: Path) -> None:
    """Copies a stream to a new file; removes it if the stream breaks."""
    try:
        with path.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def aside(folder: Path, suffix: str) -> Path:
    """The name of a new file for a while."""
    return folder / f"export-{uuid.uuid4().hex}{suffix}"


def unreadable(called: str, error: Exception) -> Blocked:
    """A damaged export."""
    return Blocked(f"{called} cannot be read: {type(error).__name__}: the export is cut off or damaged")


DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError)
