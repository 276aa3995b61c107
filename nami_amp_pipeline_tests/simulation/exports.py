"""What the simulated Amplitude exports, as the pipeline reads it: a zip of gzipped files for some hours."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from nami_amp_pipeline.amplitude.exported.source import HOUR, Chunk, aside, members
from nami_amp_pipeline.sandbox import Sandbox
from nami_amp_pipeline.sandbox.settings import EXPORT_PATH

_MOST_HOURS = 24


class SimulatedExport:
    """Reads the Export API of a sandbox without a network.

    Args:
        sandbox: of the simulation.
        api_key: of the project.
        scratch: where files lie while they are read.
    """

    called = "the simulated Amplitude"

    def __init__(self, sandbox: Sandbox, api_key: str, scratch: Path) -> None:
        self._sandbox = sandbox
        self._authorization = "Basic " + base64.b64encode(f"{api_key}:secret".encode()).decode()
        self._scratch = scratch

    def read(self, hours: Iterable[int]) -> Iterator[Chunk]:
        """See :class:`~nami_amp_pipeline.amplitude.exported.source.ExportSource`."""
        left = sorted(hours)
        while left:
            wanted = frozenset(range(left[0], left[0] + _MOST_HOURS * HOUR, HOUR)) & frozenset(left)
            left = [hour for hour in left if hour not in wanted]
            query = f"start={_spelled(min(wanted))}&end={_spelled(max(wanted))}"
            answer = self._sandbox.handle("GET", EXPORT_PATH, {"Authorization": self._authorization}, b"", query)
            if answer.status == 404:
                yield Chunk(wanted, ())
                continue
            assert answer.status == 200, answer
            archive = aside(self._scratch, ".zip")
            archive.write_bytes(answer.read())
            files = tuple(path for _, path in members(archive, self._scratch, wanted))
            yield Chunk(wanted, files)
            for path in (archive, *files):
                path.unlink()


def _spelled(hour: int) -> str:
    return f"{datetime.fromtimestamp(hour / 1e6, UTC):%Y%m%dT%H}"
