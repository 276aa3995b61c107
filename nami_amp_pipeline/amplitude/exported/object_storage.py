"""Exported events in a bucket: what Amplitude's own S3 export writes there every hour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from nami_amp_pipeline.amplitude.exported.source import Chunk, aside, hour_of_name, is_exported, unpacked
from nami_amp_pipeline.errors import Blocked, FilesUnavailable, Misconfigured
from nami_amp_pipeline.storage.bucket import Bucket


class ExportBucket:
    """Reads the objects below a prefix whose names are of the wanted hours, or of no hour at all, one at a time.

    Who may read is said by the environment, as for every AWS tool (``AWS_ACCESS_KEY_ID``, ``AWS_REGION``,
    ``AWS_ENDPOINT_URL`` …).

    Args:
        address: ``s3://bucket/prefix``.
        scratch: where objects are copied to.

    Raises:
        Misconfigured: the library is not installed, or the address is none.
    """

    def __init__(self, address: str, scratch: Path) -> None:
        self.called = address
        self._scratch = scratch
        if not address.removeprefix("s3://").strip("/"):
            raise Misconfigured(f"--source {address}: write s3://BUCKET/PREFIX")
        self._bucket = Bucket(address)

    def read(self, hours: Iterable[int]) -> Iterator[Chunk]:
        """See :class:`~nami_amp_pipeline.amplitude.exported.source.ExportSource`."""
        wanted = frozenset(hours)
        names = [name for name in self._names() if hour_of_name(name) is None or hour_of_name(name) in wanted]
        # Objects of an hour stand beside each other: the hour is whole with the last of them.
        names.sort(key=lambda name: (hour_of_name(name) or 0, name))
        for number, name in enumerate(names):
            hour = hour_of_name(name)
            is_last = number + 1 == len(names) or hour_of_name(names[number + 1]) != hour
            whole = frozenset([hour] if hour is not None and is_last else [])
            path = self._fetched(name)
            try:
                if name.endswith(".zip"):
                    yield from unpacked(path, self._scratch, wanted, self.called)
                else:
                    yield Chunk(whole, (path,))
            finally:
                path.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return [found.name for found in self._bucket.list("") if is_exported(found.name)]

    def _fetched(self, name: str) -> Path:
        path = aside(self._scratch, f".{name.rsplit('/', 1)[-1].split('.', 1)[-1]}")
        try:
            if self._bucket.read(name, path):
                return path
        except FilesUnavailable:
            path.unlink(missing_ok=True)
            raise
        raise Blocked(f"{self.called}: {name} was removed while the export was read")
