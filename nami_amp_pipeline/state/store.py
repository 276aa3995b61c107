"""Connections, transactions and leases of the state store (SQLite or PostgreSQL)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nami_amp_pipeline.clock import Clock, micros
from nami_amp_pipeline.errors import LostLease, Misconfigured, StoreUnavailable
from nami_amp_pipeline.state import tables, upserts
from nami_amp_pipeline.state.among import together
from nami_amp_pipeline.state.kept_engines import KeptEngines
from nami_amp_pipeline.state.lease_statements import LeaseStatements, lease_statements
from nami_amp_pipeline.state.owners import has_ended, lease_seconds_of, new_owner
from nami_amp_pipeline.state.sqlite import LOCK_SECONDS, begin, prepare

_CLOCK_MARGIN = 30_000_000
_INSUFFICIENT_PRIVILEGE = "42501"
_MOST_KEPT = 4

_kept: KeptEngines | None = None

Transaction = Connection
"""A SQLAlchemy connection inside a transaction that commits when its ``with`` block ends well."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a partition until another process takes it over.

    Attributes:
        name: what it is for, such as ``app:radio`` or ``integration:7``.
        fence: grows by one with each new holder; a write under an older fence is refused.
    """

    name: str
    fence: int


@dataclass(frozen=True)
class Prolonged:
    """The result of renewing leases in a transaction.

    Attributes:
        lost: leases that belong to another process now.
        commits: for each other lease, how many transactions have renewed it, this transaction included.
    """

    lost: list[Lease]
    commits: dict[Lease, int]


@dataclass
class Store:
    """The state store.

    Args:
        url: ``sqlite:///path`` or ``postgresql://…``.
        clock: what time it is.
        lease_seconds: how long a lease holds without renewal.
    """

    url: str = field(repr=False)
    clock: Clock
    lease_seconds: float = 120.0
    owner: str = ""

    def __post_init__(self) -> None:
        self.owner = self.owner or new_owner(self.lease_seconds)
        self.is_sqlite = self.url.startswith("sqlite")
        if self.is_sqlite:
            path = Path(self.url.removeprefix("sqlite:///"))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreUnavailable(f"cannot create the folder of {self.name}: {error.strerror}") from None
        make = self._sqlite_engine if self.is_sqlite else self._postgres_engine
        self.engine = make() if _kept is None else _kept.get((self.url, self.lease_seconds), make)
        self._ended: set[Lease] = set()

    def _sqlite_engine(self) -> sa.Engine:
        try:
            engine = sa.create_engine(self.url, connect_args={"timeout": 30, "check_same_thread": False})
        except sa.exc.ArgumentError:
            raise Misconfigured("NAMI_AMP_STATE_URL must be sqlite:///PATH, with three slashes") from None
        sa.event.listen(engine, "connect", prepare)
        sa.event.listen(engine, "begin", begin)
        return engine

    def _postgres_engine(self) -> sa.Engine:
        try:
            return sa.create_engine(
                self.url,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": 10,
                    # A process that is stopped in a transaction must not block the others for ever.
                    "options": f"-c lock_timeout={LOCK_SECONDS * 1_000} "
                    f"-c idle_in_transaction_session_timeout={int(self.lease_seconds * 1_000)}",
                },
            )
        except (sa.exc.ArgumentError, ImportError):
            raise Misconfigured("NAMI_AMP_STATE_URL cannot be parsed as a database address") from None

    @property
    def name(self) -> str:
        """The store in messages: with the path of a SQLite file, and without the address of a server."""
        return f"state store {self.url.removeprefix('sqlite:///')}" if self.is_sqlite else "state store"

    def schema_version(self) -> int:
        """The version of the tables; 0 for an empty store.

        Raises:
            StoreUnavailable: the store cannot be reached, or its tables have no version.
        """
        with self.reading() as tx:
            return read_schema_version(tx)

    @contextmanager
    def begin(self, *, under: Iterable[Lease] = (), ending: Sequence[Lease] = ()) -> Iterator[Transaction]:
        """A transaction; it commits at the end of the block, and is rolled back after an exception.

        Args:
            under: leases that must still be ours for the transaction to commit.
            ending: the same, and they are given back with it: for the last transaction under many leases.

        Raises:
            LostLease: one of the leases belongs to another process now.
            StoreUnavailable: the store cannot be reached or written.
        """
        with plainly(self.name), self.engine.begin() as tx:
            self.confirm(tx, under)
            self._end(tx, ending)
            yield tx
        self._ended.update(ending)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A transaction that only reads; it neither waits for writers nor blocks them.

        Raises:
            StoreUnavailable: the store cannot be reached or read.
        """
        with plainly(self.name), self.engine.connect().execution_options(reading=True) as tx, tx.begin():
            yield tx

    def confirm(self, tx: Transaction, under: Iterable[Lease]) -> None:
        """Renews leases inside a transaction.

        Raises:
            LostLease: one of them belongs to another process now.
        """
        for lease in self.lost(tx, list(under)):
            raise _lost(lease)

    def check(self, tx: Transaction, leases: Sequence[Lease]) -> None:
        """Checks that leases are ours for the whole transaction, without renewing them.

        Raises:
            LostLease: one of them belongs to another process now.
        """
        ours = self._still_ours(tx, leases)
        for lease in leases:
            if lease not in ours:
                raise _lost(lease)

    def lost(self, tx: Transaction, under: Sequence[Lease]) -> list[Lease]:
        """Renews the leases that are still ours inside a transaction, and returns the others."""
        return self.prolong(tx, under).lost

    def prolong(self, tx: Transaction, under: Sequence[Lease]) -> Prolonged:
        """Renews the leases that are still ours inside a transaction, and counts the transaction.

        A transaction that seemed to fail was committed after all if :meth:`commits` equals this count.
        """
        ours = self._still_ours(tx, under)
        if ours:
            until = micros(self.clock) + int(self.lease_seconds * 1e6)
            tx.execute(self._about.prolonged, self._named([lease.name for lease in ours], until=until))
        lost = [lease for lease in under if lease not in ours]
        return Prolonged(lost, {lease: commits + 1 for lease, commits in ours.items()})

    def commits(self, lease: Lease) -> int | None:
        """How many transactions have renewed a lease of ours; None if another process holds it."""
        with self.begin() as tx:
            return self._still_ours(tx, [lease]).get(lease)

    def _still_ours(self, tx: Transaction, under: Sequence[Lease]) -> dict[Lease, int]:
        """Our leases, locked for the rest of the transaction, with their commits."""
        if not under:
            return {}
        rows = tx.execute(self._about.ours, self._named([lease.name for lease in under])).tuples()
        found = {name: (fence, int(commits)) for name, fence, commits in rows}
        known = ((lease, *found.get(lease.name, (-1, 0))) for lease in under)
        return {lease: commits for lease, fence, commits in known if fence == lease.fence}

    @property
    def _about(self) -> LeaseStatements:
        return lease_statements(self.is_sqlite)

    def _named(self, names: Sequence[str], **more: object) -> dict[str, object]:
        """Parameters of :class:`LeaseStatements`."""
        return {"me": self.owner, "among": together(names, is_sqlite=self.is_sqlite), **more}

    def acquire(self, names: Sequence[str]) -> dict[str, Lease]:
        """Takes the free leases, in one transaction; leases of other processes are left out.

        A lease is also free if its holder was a process of this machine that has ended.
        """
        if not names:
            return {}
        now = micros(self.clock)
        until = now + int(self.lease_seconds * 1e6)
        with self.begin() as tx:
            taken = self._about.taken_if_free.execute(tx, self._named(names, now=now, until=until))
        found = {name: Lease(name, fence) for name, fence in taken.items()}
        # Not in the same transaction, which would lock in the order of the names twice.
        others = [name for name in names if name not in found]
        return found | self._acquire_others(others) if others else found

    def _acquire_others(self, names: Sequence[str]) -> dict[str, Lease]:
        """The same for leases that are new, or that somebody holds who may have ended."""
        now = micros(self.clock)
        until = now + int(self.lease_seconds * 1e6)
        table = tables.leases
        with self.begin() as tx:
            # Existing rows can be locked: if two processes take a new lease at once, the second waits for the first.
            new = sorted(set(names) - set(tx.execute(self._about.there, self._named(names)).scalars()))
            self.upsert(tx, table, [{"name": name, "owner": "", "fence": 0, "expires_at": 0} for name in new], ["name"])
            rows = tx.execute(self._about.rows, self._named(names)).all()
            free = [row for row in rows if row.expires_at <= now or row.owner == self.owner or has_ended(row.owner)]
            self.cap(tx, rows)
            if free:
                tx.execute(self._about.taken, self._named([row.name for row in free], until=until))
        return {row.name: Lease(row.name, row.fence + 1) for row in free}

    def cap(self, tx: Transaction, rows: Iterable[Any]) -> None:
        """Shortens leases that end too late: a clock was ahead when they were written.

        Such a lease now lasts as long as its owner's leases do. A living owner renews it in time, whatever its clock
        says; a dead owner blocks nobody for longer than that.

        Args:
            tx: the transaction.
            rows: the rows of the table of leases.
        """
        now, table = micros(self.clock), tables.leases
        for row in rows:
            if self._is_too_long(row):
                same = sa.and_(table.c.name == row.name, table.c.fence == row.fence)
                longest = int(lease_seconds_of(row.owner) * 1e6)
                tx.execute(sa.update(table).where(same).values(expires_at=now + longest))

    def _is_too_long(self, row: Any) -> bool:
        left: int = row.expires_at - micros(self.clock) - _CLOCK_MARGIN
        return left > 0 and left > int(lease_seconds_of(row.owner) * 1e6)

    def cap_all(self) -> None:
        """The same for all leases: whoever has nothing to do under one does not take it, and does not look at it."""
        table = tables.leases
        late = sa.select(table).where(table.c.expires_at > micros(self.clock) + _CLOCK_MARGIN)
        with self.reading() as tx:
            rows = tx.execute(late).all()
        if any(self._is_too_long(row) for row in rows):
            with self.begin() as tx:
                self.cap(tx, rows)

    def take_away(self, tx: Transaction, names: Sequence[str]) -> None:
        """Ends leases, whoever holds them: work under them can no longer be committed."""
        table = tables.leases
        ended = {"owner": "", "fence": table.c.fence + 1, "expires_at": 0}
        tx.execute(sa.update(table).where(table.c.name.in_(names)).values(ended))

    def renew(self, leases: Iterable[Lease]) -> None:
        """Renews leases.

        Raises:
            LostLease: one of them belongs to another process now.
        """
        with self.begin(under=leases):
            pass

    def release(self, leases: Iterable[Lease]) -> None:
        """Releases leases; lost leases are left alone."""
        given = set(leases)
        held = list(given - self._ended)
        self._ended -= given
        if not held:
            return
        with self.begin() as tx:
            ours = self._still_ours(tx, held)
            if ours:
                self._about.given_back.execute(tx, self._named([lease.name for lease in ours]))

    def _end(self, tx: Transaction, leases: Sequence[Lease]) -> None:
        """Ends leases inside a transaction.

        Raises:
            LostLease: one of them belongs to another process now.
        """
        if not leases:
            return
        ended = self._about.given_back.execute(tx, self._named([lease.name for lease in leases]))
        for lease in leases:
            if ended.get(lease.name) != lease.fence:
                raise _lost(lease)

    def upsert(
        self,
        tx: Transaction,
        table: sa.Table,
        rows: Sequence[Mapping[str, Any]],
        key: Sequence[str],
        *,
        update: Iterable[str] = (),
        add: Iterable[str] = (),
    ) -> None:
        """Inserts rows, or updates the rows whose key exists already.

        Args:
            rows: all with the same columns, and no key twice: PostgreSQL would take that for an error.
            key: the columns of the primary key or unique constraint.
            update: columns to overwrite.
            add: columns to add to.
        """
        if rows:
            upserts.write(tx, table, rows, tuple(key), tuple(update), tuple(add), is_sqlite=self.is_sqlite)

    def change(self, tx: Transaction, table: sa.Table, rows: Sequence[Mapping[str, Any]], *key: str) -> None:
        """Changes rows by their key; a row that does not exist is left out.

        Args:
            rows: all with the same columns, those of the key among them.
            key: the columns that name a row.
        """
        if rows:
            upserts.change(tx, table, rows, key, is_sqlite=self.is_sqlite)

    def count(self, tx: Transaction, integration_id: int, state: str, reasons: Mapping[str, int] | int) -> None:
        """Adds to the counters of an integration: ``captured``, ``delivered``, ``skipped`` or ``dead``."""
        by_reason = {"": reasons} if isinstance(reasons, int) else reasons
        self.count_all(tx, [(integration_id, state, reason, events) for reason, events in by_reason.items()])

    def count_all(self, tx: Transaction, counts: Iterable[tuple[int, str, str, int]]) -> None:
        """Adds to the counters of many integrations: (integration id, state, reason, events), each once."""
        rows = [
            {"integration_id": integration_id, "state": state, "reason": reason, "events": events}
            for integration_id, state, reason, events in counts
            if events
        ]
        self.upsert(tx, tables.counts, rows, ["integration_id", "state", "reason"], add=["events"])

    def close(self) -> None:
        """Closes all connections, unless this process keeps them; see :func:`keep_engines`."""
        self.engine.dispose()


def keep_engines() -> None:
    """Lets the stores of this process share their connections from now on, and keep them when they are closed."""
    global _kept
    if _kept is None:
        _kept = KeptEngines(_MOST_KEPT)


@contextmanager
def plainly(name: str) -> Iterator[None]:
    """Turns an error of the database into one line; errors in our own code pass through.

    Args:
        name: of the store, see :attr:`Store.name`.

    Raises:
        StoreUnavailable: the store cannot be reached, read or written.
    """
    try:
        yield
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "pgcode", None) == _INSUFFICIENT_PRIVILEGE:
            raise StoreUnavailable(
                f"{name}: {_one_line(error)}: the database role of NAMI_AMP_STATE_URL lacks this privilege"
            ) from None
        if isinstance(error, sa.exc.ProgrammingError | sa.exc.IntegrityError | sa.exc.DataError):
            raise
        raise StoreUnavailable(f"{name}: {_one_line(error)}") from None


def read_schema_version(tx: Transaction) -> int:
    """The version of the tables; 0 for an empty store.

    Raises:
        StoreUnavailable: there are tables, but without a version.
    """
    if not sa.inspect(tx).has_table(tables.schema_version.name):
        return 0
    version: int | None = tx.execute(sa.select(tables.schema_version.c.version)).scalar()
    if version is None:
        raise StoreUnavailable("the tables of the state store have no schema version: restore a backup")
    return version


def _lost(lease: Lease) -> LostLease:
    return LostLease(f"lease lost: another process now holds {lease.name}")


def _one_line(error: sa.exc.DBAPIError) -> str:
    text = " ".join(str(error.orig).split())
    if "locked" in text or "busy" in text or "lock timeout" in text:
        return "it is locked by another process; the next run tries again"
    if text == "unable to open database file":
        return "it cannot be opened: let this user write the file and its folder"
    return text[:300]
