"""The Export API: the stored events of some hours as a zip of gzipped NDJSON files, written to disk as they are read.

https://amplitude.com/docs/apis/analytics/export
"""

from __future__ import annotations

import base64
import binascii
import gzip
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Final, cast
from urllib.parse import parse_qs

import orjson

from .answers import Answer, json_answer
from .export_record import record
from .profiles import NOT_EVENTS
from .settings import Options
from .store import Replay

_MAX_DAYS: Final = 365
_TOO_LARGE: Final = "The file size of the exported data is too large. Shorten the time range."


@dataclass(frozen=True)
class Span:
    """What an export is asked for.

    Attributes:
        first: the first moment, in seconds since the epoch.
        after: the first moment after it.
    """

    first: float
    after: float

    @property
    def hours(self) -> int:
        """How many hours it has."""
        return round((self.after - self.first) / 3600)


def credentials(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """The API key and secret key of a Basic ``Authorization`` header, or None where there are none.

    Args:
        headers: with lower-case names.
    """
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        key, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (key, secret) if colon else None


def span_of(query: str) -> Span | Answer:
    """The hours that a query asks for, or the 400 that says what is wrong with it.

    Args:
        query: the query string, with ``start`` and ``end`` hours (UTC, both inclusive, by upload time).
    """
    given = parse_qs(query)
    try:
        start, end = (_hour(given[name][0]) for name in ("start", "end"))
    except (KeyError, ValueError):
        return json_answer(400, {"error": "start and end must be hours such as 20260131T05"})
    if end < start or end - start > timedelta(days=_MAX_DAYS):
        return json_answer(400, {"error": f"start must not be after end, nor more than {_MAX_DAYS} days before it"})
    return Span(start.timestamp(), end.timestamp() + 3600)


def too_large() -> Answer:
    """Amplitude's answer to an export of too much data."""
    return json_answer(400, {"error": _TOO_LARGE})


def nothing_found() -> Answer:
    """Amplitude's answer to an export of hours without data."""
    return json_answer(404, {"error": "Raw data files were not found."})


def exportable_until(now: float, options: Options) -> float:
    """The moment before which an event must have been uploaded to be in an export at ``now``."""
    if options.export_delay_hours == 0:
        return float("inf")
    return (now - options.export_delay_hours * 3600) // 3600 * 3600


def export(project_id: int, replay: Replay, span: Span, options: Options) -> Answer:
    """Writes an export to a temporary file; one hour's lines are never in memory together.

    Args:
        project_id: names the folder and the files.
        replay: the users as of a moment before the span, and the batches from there on; moved on to the span's end.
        span: what to export, as far as it can be exported yet.
        options: the largest size and the size of a file.

    Returns:
        The zip as a file, or the 404 or 400.
    """
    size = 0
    with ExitStack() as stack:
        packed = stack.enter_context(tempfile.TemporaryFile())
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            files = _Files(archive, project_id, options.export_partition)
            with files:
                for hour, line in _lines(project_id, replay, span, options):
                    size += len(line)
                    if size > options.export_max_bytes:
                        return too_large()
                    files.write(hour, line)
        if not size:
            return nothing_found()
        packed.seek(0)
        stack.pop_all()
        return Answer(200, {"Content-Type": "application/zip"}, file=packed)


def _hour(text: str) -> datetime:
    if len(text) != len("20260131T05"):
        raise ValueError(text)
    return datetime.strptime(text, "%Y%m%dT%H").replace(tzinfo=UTC)


def _lines(project_id: int, replay: Replay, span: Span, options: Options) -> Iterator[tuple[str, bytes]]:
    """File hour and line of each event in the range. The users are replayed: each has its properties as of then."""
    left_out = frozenset() if options.export_identify else NOT_EVENTS
    for batch in replay.batches:
        if batch.received_at >= span.after:
            break
        hour = datetime.fromtimestamp(batch.received_at, UTC)
        name = f"{hour:%Y-%m-%d}_{hour.hour}"
        for place, copy, event in batch.held():
            profile = replay.profiles.apply(event, batch.received_at)
            if batch.received_at >= span.first and event["event_type"] not in left_out:
                found = record(project_id, batch, batch.first + place, copy, event, profile)
                yield name, orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)
        replay.next_number = batch.first + batch.count
        replay.reached = batch.received_at


class _Files:
    """The gzip files in the zip, one open at a time: ``<project>/<project>_<day>_<hour>#<part>.json.gz``."""

    def __init__(self, archive: zipfile.ZipFile, project_id: int, lines_each: int) -> None:
        self._archive = archive
        self._project_id = project_id
        self._lines_each = lines_each
        self._hour = ""
        self._part = 0
        self._lines = 0
        self._file: IO[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def write(self, hour: str, line: bytes) -> None:
        """Adds a line to the file of its hour, or to the next part of it."""
        if self._file is None or hour != self._hour or self._lines == self._lines_each:
            self._part = 0 if hour != self._hour else self._part + 1
            self._hour, self._lines = hour, 0
            self._file = self._next()
        self._file.write(line)
        self._lines += 1

    def _next(self) -> IO[bytes]:
        self._stack.close()
        name = f"{self._project_id}/{self._project_id}_{self._hour}#{self._part}.json.gz"
        entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        opened = self._stack.enter_context(self._archive.open(entry, "w"))
        packer = gzip.GzipFile("", "wb", 4, opened, mtime=0)
        self._stack.callback(packer.close)
        return cast("IO[bytes]", packer)
