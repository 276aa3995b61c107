"""Heartbeats: of runs, to find those whose process has died, and of leases in long use."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import sqlalchemy as sa

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.errors import NamiAmpError
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.owners import has_ended, lease_seconds_of
from nami_amp_pipeline.state.store import Lease, Store, Transaction

_PREFIX = "run:"


class Heartbeat:
    """Holds a lease named after a run while its process lives; a thread renews it.

    Args:
        store: the state store.
        run_id: Dagster's.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the heartbeat.

        Raises:
            StoreUnavailable: the state store cannot be written.
        """
        lease = self._store.acquire([_PREFIX + self._run_id]).get(_PREFIX + self._run_id)
        if lease is None:
            return

        def beat() -> None:
            while not self._over.wait(self._store.lease_seconds / 4):
                with suppress(NamiAmpError):  # the run itself will say that the store is away
                    self._store.renew([lease])

        self._thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops, and releases the lease."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(5)
            with suppress(NamiAmpError):
                forget(self._store, [self._run_id])


@contextmanager
def kept(store: Store, leases: Iterable[Lease]) -> Iterator[None]:
    """Renews leases during the block, because work may take longer than a lease.

    A stopped process renews nothing, and a lease that another process took stays lost: a commit under it fails.

    Args:
        store: the state store.
        leases: those of the block.
    """
    held = list(leases)
    over = threading.Event()

    def keep() -> None:
        while not over.wait(store.lease_seconds / 4):
            with suppress(NamiAmpError), store.begin() as tx:  # the work itself will say that the store is away
                store.lost(tx, held)

    thread = threading.Thread(target=keep, name="leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Beat:
    """What is known of a run that gives signs of life, or that stopped to without a word.

    Attributes:
        run_id: Dagster's.
        is_alive: whether its process may still be at work.
        last_at: about until when it was, in µs since the epoch: its last sign, and the time to the one that never came.
    """

    run_id: str
    is_alive: bool
    last_at: int


def beats(tx: Transaction, now: int) -> list[Beat]:
    """The runs that gave signs of life and have not ended properly.

    Args:
        tx: reads the state store.
        now: in µs since the epoch.
    """
    table = tables.leases
    found = []
    for row in tx.execute(sa.select(table).where(table.c.name.startswith(_PREFIX, autoescape=True))):
        is_alive = row.expires_at >= now and not has_ended(row.owner)
        last_at = row.expires_at - int(lease_seconds_of(row.owner) * 0.75e6)
        found.append(Beat(row.name.removeprefix(_PREFIX), is_alive, last_at))
    return found


def lost_runs(store: Store) -> list[str]:
    """The runs that began to beat and stopped without a word.

    Raises:
        StoreUnavailable: the state store cannot be read.
    """
    table = tables.leases
    with store.begin() as tx:
        store.cap(tx, tx.execute(sa.select(table).where(table.c.name.startswith(_PREFIX, autoescape=True))).all())
        return [beat.run_id for beat in beats(tx, micros(store.clock)) if not beat.is_alive]


def forget(store: Store, run_ids: Iterable[str]) -> None:
    """Removes the heartbeats of ended runs.

    Raises:
        StoreUnavailable: the state store cannot be written.
    """
    with store.begin() as tx:
        tx.execute(sa.delete(tables.leases).where(tables.leases.c.name.in_([_PREFIX + run_id for run_id in run_ids])))
