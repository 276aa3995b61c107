"""A process that can end at any step, and a state store that fails now and then."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from nami_amp_pipeline.clock import Clock
from nami_amp_pipeline.errors import StoreUnavailable
from nami_amp_pipeline.state.store import Lease, Store, Transaction
from nami_amp_pipeline_tests.simulation.network import Crash

STEPS = (
    *(f"{stage}.{moment}" for stage in ("capture", "ledger", "snapshot", "prepare", "deliver", "receipts")
      for moment in ("commit", "committed")),
    "deliver.post", "deliver.answered",
)  # fmt: skip
"""All kinds of steps."""

_COMPILED: dict[Any, Any] = {}
"""Statements as SQL, shared by all stores: translating them would take as long as the rest of a history."""
_DIALECTS: dict[str, sa.Dialect] = {}


@dataclass
class Perils:
    """What can befall a process.

    Attributes:
        crash_at: the step, counted from its start, at which it ends; None for never.
        crash_in: the kind of step at which it ends, the first time that it comes to it.
        store_fails: probability that a transaction does not come about, or only seems not to.
        files_fail: the same of a request to the object storage, where there is one.
        at_step: called at each step, for others to come in between.
        crashed_at: the step at which it ended.
    """

    crash_at: int | None = None
    crash_in: str = ""
    store_fails: float = 0.0
    files_fail: float = 0.0
    at_step: Callable[[str], None] = lambda _step: None
    steps: int = field(default=0, init=False)
    crashed_at: str = field(default="", init=False)


class MortalStore(Store):
    """A store that a crash takes away from its process, and that fails as its process's perils say."""

    def __init__(
        self, url: str, clock: Clock, lease_seconds: float, owner: str, perils: Perils, rng: random.Random
    ) -> None:
        super().__init__(url, clock, lease_seconds, owner)
        sa.event.listen(self.engine, "connect", _unsynchronised)
        # Translations of statements are kept by dialect, and each engine would have one of its own.
        self.engine.dialect = self.engine.pool._dialect = _DIALECTS.setdefault("sqlite", self.engine.dialect)
        self.engine.update_execution_options(compiled_cache=_COMPILED)
        self.perils = perils
        self.dead = False
        self._thread = threading.get_ident()
        self.committed: Callable[[], None] = lambda: None
        self._rng = rng
        self._busy = False

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        if self.dead:
            raise Crash
        if self._rng.random() < self.perils.store_fails:
            raise StoreUnavailable("state store: simulated")
        with super().reading() as tx:
            yield tx

    @contextmanager
    def begin(self, *, under: Iterable[Lease] = (), ending: Sequence[Lease] = ()) -> Iterator[Transaction]:
        if self.dead:
            raise Crash
        if threading.get_ident() != self._thread:  # who renews leases does so by the time of the machine
            raise StoreUnavailable("state store: not in simulated time")
        fails = self._rng.random() < self.perils.store_fails
        fate = self._rng.choice(("before", "rolled back", "committed")) if fails else ""
        if fate == "before":
            raise StoreUnavailable("state store: simulated")
        with super().begin(under=under, ending=ending) as tx:
            yield tx
            if fate == "rolled back":
                raise StoreUnavailable("state store: simulated")
        if not self._busy:
            self._busy = True
            try:
                self.committed()
            finally:
                self._busy = False
        if fate == "committed":
            raise StoreUnavailable("state store: simulated")

    def step(self, name: str) -> None:
        """The hook of a context: here the process may end."""
        perils = self.perils
        if self.dead:
            raise Crash
        perils.steps += 1
        if name == perils.crash_in or (perils.crash_at is not None and perils.steps >= perils.crash_at):
            self.dead = True
            perils.crashed_at = name
            raise Crash(name)
        perils.at_step(name)
        if self.dead:
            raise Crash(name)


def _unsynchronised(connection: Any, _record: object) -> None:
    """A simulated crash leaves the operating system alone, so nothing has to reach the disk."""
    connection.execute("PRAGMA synchronous=OFF")
