"""Exported events from Amplitude's Export API: a zip of gzipped files for a range of hours.

https://amplitude.com/docs/apis/analytics/export
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
import urllib3

from nami_amp_pipeline.amplitude.exported.source import DAMAGED, HOUR, Chunk, aside, members
from nami_amp_pipeline.errors import Blocked, Misconfigured
from nami_amp_pipeline.secrets import Secret

_HOSTS: Final = {
    "api2.amplitude.com": "https://amplitude.com/api/2/export",
    "api.eu.amplitude.com": "https://analytics.eu.amplitude.com/api/2/export",
}
_PATH: Final = "/api/2/export"

MOST_HOURS: Final = 24
"""Of one request."""

WAITS: Final = (2.0, 10.0, 30.0, 60.0, 60.0)
"""Seconds before each repeat of a request that was throttled, refused for now, or cut off."""


def export_address(endpoint: str) -> str:
    """The Export API that belongs to an address for events."""
    parts = urlsplit(endpoint)
    return _HOSTS.get(parts.hostname or "", f"{parts.scheme}://{parts.netloc}{_PATH}")


@dataclass(frozen=True)
class _Answer:
    """How a request ended: with files, without data (404), too large (400, 504), or to be tried again."""

    kind: str
    files: tuple[Path, ...] = ()
    wait: float | None = None
    why: str = ""


class ExportApi:
    """Reads hours from the Export API; ranges that are too large are halved, down to an hour.

    Args:
        address: of :func:`export_address`.
        api_key: of the project.
        secret_key: of the project.
        scratch: where answers are written.
        sleep: waits so many seconds.
        timeout: seconds without a byte after which a request is given up.
    """

    def __init__(
        self,
        address: str,
        api_key: Secret,
        secret_key: Secret,
        scratch: Path,
        sleep: Callable[[float], None],
        timeout: float = 300.0,
    ) -> None:
        self.called = urlsplit(address).netloc
        self._address = address
        self._keys = (api_key, secret_key)
        self._scratch = scratch
        self._sleep = sleep
        self._timeout = timeout

    def read(self, hours: Iterable[int]) -> Iterator[Chunk]:
        """See :class:`~nami_amp_pipeline.amplitude.exported.source.ExportSource`."""
        ranges = _ranges(sorted(set(hours)))
        ranges.reverse()
        with requests.Session() as session:
            while ranges:
                first, last = ranges.pop()
                answer = self._patiently(session, first, last)
                if answer.kind == "too_large":
                    if first == last:
                        raise Blocked(
                            f"{self.called}: the hour {_spelled(first)} is too large for the Export API "
                            f"({answer.why}): let Amplitude export to S3 and use --source s3://…"
                        )
                    middle = first + (last - first) // HOUR // 2 * HOUR
                    ranges += [(middle + HOUR, last), (first, middle)]
                    continue
                try:
                    yield Chunk(frozenset(range(first, last + 1, HOUR)), answer.files)
                finally:
                    _remove(answer.files)

    def _patiently(self, session: requests.Session, first: int, last: int) -> _Answer:
        for wait in (*WAITS, None):
            answer = self._ask(session, first, last)
            if answer.kind != "again":
                return answer
            if wait is None:
                break
            self._sleep(max(wait, answer.wait or 0.0))
        raise Blocked(
            f"{self.called} gives no export of {_spelled(first)} to {_spelled(last)} ({answer.why}): try again later"
        )

    def _ask(self, session: requests.Session, first: int, last: int) -> _Answer:
        archive = aside(self._scratch, ".zip")
        files: list[Path] = []
        try:
            with session.get(
                self._address,
                params={"start": _spelled(first), "end": _spelled(last)},
                auth=(self._keys[0].reveal(), self._keys[1].reveal()),
                headers={"User-Agent": "nami-amp-pipeline", "Accept-Encoding": "identity"},
                stream=True,
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                if response.status_code != 200:
                    return self._without_data(response)
                with archive.open("xb") as file:
                    for part in response.iter_content(1 << 20):
                        file.write(part)
            for _, path in members(archive, self._scratch, frozenset(range(first, last + 1, HOUR))):
                files.append(path)  # at once: a later one may be damaged
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, *DAMAGED) as error:
            _remove(files)
            return _Answer("again", why=_in_words(error))
        except BaseException:
            _remove(files)
            raise
        finally:
            archive.unlink(missing_ok=True)
        return _Answer("files", tuple(files))

    def _without_data(self, response: requests.Response) -> _Answer:
        status = response.status_code
        if status == 404:
            return _Answer("empty")
        if status in (400, 504):
            return _Answer("too_large", why=f"it answered {status}")
        if status in (401, 403):
            raise Misconfigured(
                f"{self.called} refuses the API key with this secret key ({status}): set the secret key of the same "
                "project with 'nami-amp integrations update APP/NAME --secret-key-env VAR'"
            )
        if status == 429 or status >= 500:
            return _Answer("again", wait=_seconds(response.headers.get("Retry-After")), why=f"it answered {status}")
        raise Blocked(f"{self.called} answered {status}, which no Export API does: check the endpoint")


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _ranges(hours: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of hours, none longer than a request may be."""
    found: list[tuple[int, int]] = []
    for hour in hours:
        if found and hour == found[-1][1] + HOUR and (hour - found[-1][0]) // HOUR < MOST_HOURS:
            found[-1] = (found[-1][0], hour)
        else:
            found.append((hour, hour))
    return found


def _spelled(hour: int) -> str:
    return f"{datetime.fromtimestamp(hour / 1e6, UTC):%Y%m%dT%H}"


def _seconds(text: str | None) -> float | None:
    try:
        return min(float(text or ""), 3_600.0)
    except ValueError:
        return None


def _in_words(error: Exception) -> str:
    """Without the text of the error, which may quote the request."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, *DAMAGED)):
        return "the answer was cut off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__
