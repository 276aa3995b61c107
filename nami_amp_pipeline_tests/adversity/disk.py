"""The folder of the store and of the files is full, or fills up while a run is at work."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nami_amp_pipeline_tests.adversity.scene import Scene

MEGABYTE = 1_000_000
KINDS = ("full", "nearly full", "fills up", "comes and goes", "files may not grow")
_WEIGHTS = (15, 25, 25, 25, 10)

PLACES = ("all", "files", "store", "spill")
"""What is on the small disk: all there is; segments, outboxes and receipts; the state store; what the compute engine
spills, of which there is much."""


class NoMount(Exception):
    """Mounting is not allowed here."""


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of its own in memory.

    Raises:
        NoMount: mounting is not allowed here.
    """
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoMount(f"there is no mount: {error}") from None
    if done.returncode:
        raise NoMount(f"a tmpfs cannot be mounted here: {' '.join(done.stderr.split())}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Filler:
    """A file that takes what space there is, or most of it."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "filler"
        self._disk = disk

    def fill(self, leave: int = 0) -> None:
        """Takes all space but so many bytes; several calls in a row only ever take more."""
        with self._file.open("ab") as file:
            at = file.tell()
            while (free := self.free() - leave) > 0:
                try:
                    os.posix_fallocate(file.fileno(), at, free)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break  # somebody took some meanwhile
                at += free

    def shrink(self, keep: float = 0.0) -> None:
        """Gives space back."""
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._file, int(self._file.stat().st_size * keep))

    def free(self) -> int:
        """Bytes that are free."""
        found = os.statvfs(self._disk)
        return found.f_bavail * found.f_frsize


class Disk:
    """Rounds of a disk that is full now and then.

    Args:
        folder: for everything.
        seed: of what happens when.
        place: one of :data:`PLACES`.
        disk: a small disk; None where there is none, and only the size of files can be limited.
    """

    def __init__(self, folder: Path, seed: int, place: str, disk: Path | None) -> None:
        home = folder / "home"
        environ: dict[str, str] = {"NAMI_AMP_HOME": str(home)}
        if disk is not None:
            environ |= {
                "all": {"NAMI_AMP_HOME": str(disk / "home")},
                "files": {"NAMI_AMP_DATA_DIR": str(disk / "data")},
                "store": {"NAMI_AMP_STATE_URL": f"sqlite:///{disk / 'state.db'}"},
                "spill": {"NAMI_AMP_DATA_DIR": str(disk / "data")},
            }[place]
        if place == "spill":
            environ |= {"NAMI_AMP_DUCKDB_MEMORY": "130MB", "NAMI_AMP_SEGMENT_ROWS": "100000",
                        "NAMI_AMP_BATCH_EVENTS": "1000"}  # fmt: skip
        self.place = place
        self.scene = Scene(folder, seed, environ)
        self._rng = self.scene.rng
        self._filler = Filler(disk) if disk is not None else None

    def round(self, kind: str | None = None) -> None:
        """Loads rows, lets workers at them while there is no space, and once more when there is."""
        scene, rng = self.scene, self._rng
        if self.place == "spill":
            scene.load(60_000, width=300, users=20_000)
        else:
            scene.load(rng.choice((60, 200, 400)))
        if self._filler is None:
            kind = KINDS[-1]
        kind = kind or rng.choices(KINDS, _WEIGHTS)[0]
        scene.facts[f"{self.place}: {kind}"] += 1
        broken_off = 0
        for _ in range(rng.randint(1, 2)):
            outcome_status = self._trouble(kind)
            broken_off += outcome_status
            scene.facts["carried on"] += not outcome_status
        # Whatever was left, the first run that has space brings it to its end.
        if broken_off or not scene.all_accepted:
            again = scene.run()
            assert again.status == 0, again
        scene.check(broken_off=broken_off)

    def _trouble(self, kind: str) -> int:
        scene, rng, filler = self.scene, self._rng, self._filler
        if filler is None or kind == KINDS[-1]:
            return scene.run(fsize=rng.choice((1_000, 20_000, 150_000, 400_000, MEGABYTE))).status
        if kind == "full":
            filler.fill()
        elif kind == "nearly full":
            scale = 30 if self.place == "spill" else 1
            filler.fill(leave=scale * rng.choice((4_096, 16_384, 65_536, 200_000, 500_000, MEGABYTE, 3 * MEGABYTE)))
        process = scene.start()
        ended = threading.Event()
        # A disk that stays full is waited for a minute while answers are to be recorded; so not each round.
        patience = rng.uniform(0.5, 6.0) if rng.random() < 0.7 else 600.0
        hand = threading.Thread(target=self._move, args=(kind, ended, rng.random(), patience))
        hand.start()
        try:
            return scene.wait(process).status
        finally:
            ended.set()
            hand.join()
            filler.shrink()

    def _move(self, kind: str, ended: threading.Event, chance: float, patience: float) -> None:
        """The hand at the filler while a run is at work."""
        filler, begun = self._filler, time.monotonic()
        assert filler is not None
        if kind == "fills up":
            ended.wait(chance * (8.0 if self.place == "spill" else 2.0))
            filler.fill()
        while not ended.wait(0.02 + chance * 0.2) and time.monotonic() - begun < patience:
            if kind == "comes and goes":
                filler.fill()
                ended.wait(0.01 + chance * 0.3)
                filler.shrink(0.9)
        filler.shrink()
