"""An object storage in memory, whose requests fail now and then, in every way that a bucket's can."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nami_amp_pipeline.errors import FilesUnavailable
from nami_amp_pipeline.storage.object_storage import StoredObject


class Objects:
    """What is stored, for all machines.

    Args:
        now: the storage's clock, in µs since the epoch.

    Attributes:
        stored: (content, when it was written in µs) by name.
        asked: how often each verb was.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.stored: dict[str, tuple[bytes, int]] = {}
        self.asked: Counter[str] = Counter()

    def seen_from(self, rng: random.Random | None = None, fails: float = 0.0) -> View:
        """The same as one machine sees it, whose requests fail with a probability."""
        return View(self, rng or random.Random(0), fails)


class View:
    """An :class:`~nami_amp_pipeline.storage.object_storage.ObjectStorage`."""

    address = "memory://objects"

    def __init__(self, objects: Objects, rng: random.Random, fails: float) -> None:
        self._objects, self._rng, self._fails = objects, rng, fails

    def _asked(self, verb: str) -> bool:
        """Whether a request that is carried out seems to fail after all."""
        self._objects.asked[verb] += 1
        if self._fails == 0.0 or self._rng.random() >= self._fails:
            return False
        self._objects.asked[f"{verb} failed"] += 1
        if self._rng.random() < 0.5:
            raise FilesUnavailable(f"{self.address}: simulated, before")
        return True

    def _end(self, fails: bool) -> None:
        if fails:
            raise FilesUnavailable(f"{self.address}: simulated, after")

    def create(self, name: str, path: Path) -> None:
        fails = self._asked("create")
        content = path.read_bytes()
        known = self._objects.stored.setdefault(name, (content, self._objects.now()))
        assert known[0] == content, f"{name} would be overwritten"
        self._end(fails)

    def read(self, name: str, path: Path) -> bool:
        fails = self._asked("read")
        if name not in self._objects.stored:
            self._end(fails)
            return False
        content, _ = self._objects.stored[name]
        path.write_bytes(content[: len(content) // 2] if fails else content)
        self._end(fails)
        return True

    def list(self, prefix: str) -> Iterator[StoredObject]:
        fails = self._asked("list")
        names = sorted(name for name in self._objects.stored if name.startswith(prefix))
        for name in names[: len(names) // 2] if fails else names:
            content, modified = self._objects.stored[name]
            yield StoredObject(name, len(content), modified)
        self._end(fails)

    def size(self, name: str) -> int | None:
        self._end(self._asked("size"))
        return len(self._objects.stored[name][0]) if name in self._objects.stored else None

    def delete(self, names: Iterable[str]) -> None:
        fails = self._asked("delete")
        gone = list(names)
        for name in gone[: len(gone) // 2] if fails else gone:
            self._objects.stored.pop(name, None)
        self._end(fails)
