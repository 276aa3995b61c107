"""The accepted events on disk, and what became of them, so that a sandbox that is started again knows what it had."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson


@dataclass(frozen=True)
class Entry:
    """The accepted events of one request, or what became of events that were accepted before.

    Attributes:
        key_digest: SHA-256 of the API key.
        key_hint: what of the key may be shown.
        project_id: number of the project.
        path: the endpoint.
        received_at: seconds since the epoch.
        client_upload_time: as the request had it.
        events: the events, exactly as they came.
        damage: by the number of the event in its project, what was lost, cut or stored twice since.
    """

    key_digest: str
    key_hint: str
    project_id: int
    path: str
    received_at: float
    client_upload_time: str | None
    events: list[dict[str, Any]]
    damage: dict[str, dict[str, Any]] = field(default_factory=dict)


class Journal:
    """An NDJSON file with one line per request; it never holds an API key."""

    def __init__(self, path: Path) -> None:
        """Opens the file, creating it and its folder where they do not exist; no other sandbox can until it is closed.

        Raises:
            OSError: the file cannot be opened for reading and appending, or another sandbox keeps its events in it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise OSError(errno.EBUSY, "another sandbox keeps its events in this file", str(path)) from None

    def entries(self) -> Iterator[Entry]:
        """What the file holds. A last line that a crash cut short is taken off the file."""
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            yield Entry(**orjson.loads(line))
            whole += len(line)
        self._file.truncate(whole)

    def append(self, entry: Entry) -> None:
        """Adds the events of one request; they are with the operating system when this returns."""
        self._file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def clear(self) -> None:
        """Empties the file."""
        self._file.truncate(0)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
