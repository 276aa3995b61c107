"""Who may sign in to the Control Center with a password, and their sessions.

A password is kept as an Argon2 hash, a session as the digest of what the browser has. Each page asks for its session,
so that the end of one, another role or a removed person count at once.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.errors import Misconfigured, NamiAmpError
from nami_amp_pipeline.state import Store, journal
from nami_amp_pipeline.state import people_tables as tables
from nami_amp_pipeline.state.store import Transaction

if TYPE_CHECKING:
    from argon2 import PasswordHasher

Role = Literal["viewer", "editor"]
"""A viewer sees everything; an editor also changes it."""

ROLES: Final[tuple[Role, ...]] = ("viewer", "editor")

SESSION_HOURS: Final = 12
SHORTEST_PASSWORD: Final = 12

_LONGEST: Final = 1_000
_LONGEST_NAME: Final = 200
_MINUTE: Final = 60_000_000
_WINDOW: Final = 15 * _MINUTE
_SESSION: Final = SESSION_HOURS * 60 * _MINUTE

# So many failures in 15 minutes: of a name from an address, of an address, and of a name from anywhere. Whoever guesses
# must not be able to keep a person out for long, so the last is generous.
_MOST_FROM_THERE, _MOST_OF_ADDRESS, _MOST_OF_NAME = 10, 50, 100

_HASHING: Final = threading.BoundedSemaphore(2)
"""A hash takes 64 MB on purpose: many sign-ins at once must not take all memory."""


class SignInRefused(NamiAmpError):
    """The name or the password is wrong, or too many sign-ins failed; the message does not say which is wrong."""


@dataclass(frozen=True)
class KnownPerson:
    """Somebody who may sign in.

    Attributes:
        name: as changes are recorded under.
        role: see :data:`Role`.
        created_at: in µs since the epoch.
    """

    name: str
    role: Role
    created_at: int


class People:
    """The people, their passwords and sessions.

    All methods raise StoreUnavailable if the state store cannot be reached.

    Args:
        store: where they are.
        by: in whose name people are added, changed and removed.
    """

    def __init__(self, store: Store, *, by: str = "") -> None:
        self._store = store
        self._by = by

    def all(self) -> list[KnownPerson]:
        """Everybody who may sign in, by name."""
        table = tables.people
        with self._store.reading() as tx:
            rows = tx.execute(sa.select(table.c.name, table.c.role, table.c.created_at).order_by(table.c.name))
            return [KnownPerson(*row) for row in rows.tuples()]

    def add(self, name: str, role: Role, password: str) -> None:
        """Lets somebody sign in.

        Raises:
            Misconfigured: the name is taken or unusable, or the password is too short.
        """
        if not name.strip() or name != name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise Misconfigured(f"a name must be a line of at most {_LONGEST_NAME} characters, without space around it")
        hashed = _hashed(password)
        with self._store.begin() as tx:
            if self._role(tx, name) is not None:
                raise Misconfigured(f"there is a {name} already: 'users password {name}' sets another password")
            tx.execute(
                sa.insert(tables.people).values(
                    name=name, role=role, password_hash=hashed, created_at=micros(self._store.clock)
                )
            )
            self._note(tx, "person_added", name, role=role)

    def set_password(self, name: str, password: str) -> None:
        """Gives somebody another password, and ends the sessions under the old one.

        Raises:
            Misconfigured: there is nobody of that name, or the password is too short.
        """
        self._change(name, password_hash=_hashed(password))

    def set_role(self, name: str, role: Role) -> None:
        """Gives somebody another role, which counts at once.

        Raises:
            Misconfigured: there is nobody of that name.
        """
        self._change(name, role=role)

    def remove(self, name: str) -> None:
        """Takes somebody's access away, at once.

        Raises:
            Misconfigured: there is nobody of that name.
        """
        with self._store.begin() as tx:
            if tx.execute(sa.delete(tables.people).where(tables.people.c.name == name)).rowcount == 0:
                raise _nobody(name)
            self._end_sessions(tx, name)
            self._note(tx, "person_removed", name)

    def sign_in(self, name: str, password: str, address: str, *, instead_of: str = "") -> str:
        """Checks a password; returns what the browser is to show from now on.

        Args:
            name: as typed.
            password: as typed.
            address: of the other side.
            instead_of: what the browser shows now; that session ends.

        Raises:
            SignInRefused: it is wrong, or too many sign-ins failed.
        """
        name = name.strip()[:_LONGEST_NAME]
        subjects = (f"{name} {address}", f"address {address}", f"name {name}")
        now = micros(self._store.clock)
        with self._store.reading() as tx:
            self._refuse_many(tx, subjects, now)
            stored = tx.execute(sa.select(tables.people.c.password_hash).where(tables.people.c.name == name)).scalar()
        if not _is_right(stored, password):
            self._note_failure(subjects, now)
            raise SignInRefused("The name or the password is wrong")
        with self._store.begin() as tx:
            tx.execute(sa.delete(tables.sign_in_failures).where(tables.sign_in_failures.c.subject == subjects[0]))
            return self._open(tx, name, None, now, instead_of)

    def open_session(self, name: str, role: Role, *, instead_of: str = "") -> str:
        """A session for somebody whom another system vouches for; returns what the browser is to show.

        The session of ``instead_of``, which the browser shows now, ends.
        """
        with self._store.begin() as tx:
            return self._open(tx, name, role, micros(self._store.clock), instead_of)

    def session(self, token: str, *, is_vouched: bool = False) -> tuple[str, Role] | None:
        """Whose session it is, with the role that holds now; None if there is none, or it has ended.

        Args:
            token: what the browser shows.
            is_vouched: whether another system vouched for the person; a session that began otherwise does not count.
        """
        table, people = tables.sessions, tables.people
        query = (
            sa.select(table.c.name, sa.func.coalesce(table.c.role, people.c.role))
            .outerjoin(people, people.c.name == table.c.name)
            .where(table.c.digest == _digest(token), table.c.ends_at > micros(self._store.clock))
            .where(table.c.role.is_not(None) if is_vouched else table.c.role.is_(None))
        )
        with self._store.reading() as tx:
            row = tx.execute(query).tuples().first()
        return None if row is None or row[1] not in ROLES else (row[0], row[1])

    def sign_out(self, token: str) -> None:
        """Ends a session, at once."""
        table = tables.sessions
        with self._store.begin() as tx:
            mine = table.c.digest == _digest(token)
            name = tx.execute(sa.select(table.c.name).where(mine)).scalar()
            if name is not None:
                tx.execute(sa.delete(table).where(mine))
                journal.note(tx, "signed_out", micros(self._store.clock), by=name)

    def _open(self, tx: Transaction, name: str, role: Role | None, now: int, instead_of: str) -> str:
        token = secrets.token_urlsafe(32)
        table = tables.sessions
        ended = table.c.ends_at <= now
        if instead_of:
            ended = sa.or_(ended, table.c.digest == _digest(instead_of))
        tx.execute(sa.delete(table).where(ended))
        journal.note(tx, "signed_in", now, by=name)
        tx.execute(
            sa.insert(tables.sessions).values(
                digest=_digest(token), name=name, role=role, created_at=now, ends_at=now + _SESSION
            )
        )
        return token

    def _change(self, name: str, **values: str) -> None:
        with self._store.begin() as tx:
            before = self._role(tx, name)
            changed = tx.execute(sa.update(tables.people).where(tables.people.c.name == name).values(**values))
            if changed.rowcount == 0:
                raise _nobody(name)
            if "password_hash" in values:
                self._end_sessions(tx, name)
                self._note(tx, "password_changed", name)
            elif before != values["role"]:
                self._note(tx, "role_changed", name, before=before, after=values["role"])

    def _note(self, tx: Transaction, kind: journal.Kind, name: str, **what: Any) -> None:
        journal.note(tx, kind, micros(self._store.clock), by=self._by, name=name, **what)

    def _role(self, tx: Transaction, name: str) -> str | None:
        found: str | None = tx.execute(sa.select(tables.people.c.role).where(tables.people.c.name == name)).scalar()
        return found

    @staticmethod
    def _end_sessions(tx: Transaction, name: str) -> None:
        table = tables.sessions
        tx.execute(sa.delete(table).where(table.c.name == name, table.c.role.is_(None)))

    @staticmethod
    def _refuse_many(tx: Transaction, subjects: Sequence[str], now: int) -> None:
        table = tables.sign_in_failures
        rows = tx.execute(sa.select(table).where(table.c.subject.in_(subjects), table.c.since > now - _WINDOW))
        most = dict(zip(subjects, (_MOST_FROM_THERE, _MOST_OF_ADDRESS, _MOST_OF_NAME), strict=True))
        waits = [row.since + _WINDOW - now for row in rows if row.failures >= most[row.subject]]
        if waits:
            minutes = max(1, -(-max(waits) // _MINUTE))
            plural = "s" if minutes != 1 else ""
            raise SignInRefused(f"Too many sign-ins failed: try again in {minutes} minute{plural}")

    def _note_failure(self, subjects: Sequence[str], now: int) -> None:
        table = tables.sign_in_failures
        with self._store.begin() as tx:
            tx.execute(sa.delete(table).where(table.c.since <= now - _WINDOW))
            for subject in sorted(subjects):
                counted = tx.execute(
                    sa.update(table).where(table.c.subject == subject).values(failures=table.c.failures + 1)
                )
                if counted.rowcount == 0:
                    self._store.upsert(
                        tx, table, [{"subject": subject, "failures": 1, "since": now}], ["subject"], update=["failures"]
                    )


def _nobody(name: str) -> Misconfigured:
    return Misconfigured(f"there is nobody called {name}: 'users list' shows all")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@lru_cache(1)
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher()


@lru_cache(1)
def _of_nobody() -> str:
    """A hash to compare with where there is nobody of a name, so that the answer takes as long."""
    return _hasher().hash(secrets.token_urlsafe(32))


def _hashed(password: str) -> str:
    if len(password) < SHORTEST_PASSWORD:
        raise Misconfigured(f"a password must have at least {SHORTEST_PASSWORD} characters")
    if len(password) > _LONGEST:
        raise Misconfigured(f"a password must have at most {_LONGEST:,} characters")
    with _HASHING:
        return _hasher().hash(password)


def _is_right(stored: str | None, password: str) -> bool:
    from argon2.exceptions import InvalidHashError, VerificationError

    with _HASHING:
        try:
            return _hasher().verify(stored or _of_nobody(), password[:_LONGEST]) and stored is not None
        except (VerificationError, InvalidHashError):
            return False
