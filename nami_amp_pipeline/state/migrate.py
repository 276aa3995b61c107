"""Upgrades the tables of a state store to this program's version, by Alembic's revisions.

An empty store gets all tables at once and is marked as up to date. An older one gets the revisions that it lacks, in
one transaction: all of them or none. Each revision says whether it is ``safe`` to run while other processes of the
older version are at work. The others run by themselves only while no process uses the store.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.util import OrderedSet

from nami_amp_pipeline.clock import micros
from nami_amp_pipeline.errors import Misconfigured, StoreUnavailable
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.owners import has_ended
from nami_amp_pipeline.state.store import Store, Transaction, plainly, read_schema_version

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

SCRIPTS = Path(__file__).with_name("migrations")
"""Alembic's environment and revisions."""

VERSION_TABLE = "nami_amp_alembic_version"
"""Alembic's own table, under a name of ours: Dagster's tables may be in the same database, with theirs."""

_MIGRATING = 7_263_104_285  # any number that is ours alone
_within_this_process = threading.Lock()  # Alembic keeps what it works on in globals


def revision_of(version: int) -> str:
    """The name of the revision that leads to a schema version."""
    return f"{version:04d}"


def create_or_upgrade(store: Store) -> None:
    """Makes the tables in an empty store, and upgrades older tables if that is safe or no process uses the store.

    Raises:
        Misconfigured: the tables belong to a newer program, or other processes still use older tables that have to
            change.
        StoreUnavailable: the store cannot be reached.
    """
    if store.schema_version() != tables.SCHEMA_VERSION:
        migrate(store, beside_others=False)


def migrate(store: Store, *, beside_others: bool) -> tuple[int, int]:
    """Upgrades the tables; of several processes that try at once, the others wait and find nothing left to do.

    Args:
        store: the store.
        beside_others: runs unsafe revisions even if leases look alive: a person vouches that no process uses the store.

    Returns:
        The version before (0 for an empty store) and now.

    Raises:
        Misconfigured: the tables belong to a newer program, or a revision is not safe and other processes use the
            store.
        StoreUnavailable: the store cannot be reached or written; nothing was changed.
    """
    with _within_this_process, alone(store) as tx:
        version = read_schema_version(tx)
        if version > tables.SCHEMA_VERSION:
            raise Misconfigured(
                f"the state store has schema version {version}, but this program supports versions up to "
                f"{tables.SCHEMA_VERSION} only: use the newer program that wrote it"
            )
        if version == 0:
            _create(tx)
        elif version < tables.SCHEMA_VERSION:
            if not beside_others and not is_safe(tx, version):
                _refuse_beside_others(store, tx, version)
            _upgrade(tx, version)
        return version, tables.SCHEMA_VERSION


@contextmanager
def alone(store: Store) -> Iterator[Transaction]:
    """A transaction that excludes other migrations and checks all references at its end."""
    with plainly(store.name), store.engine.connect() as connection:
        if not store.is_sqlite:
            with connection.begin():
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
                yield connection
            return
        # SQLite changes most of a table by building another and dropping the first, and a table that is dropped takes
        # along what refers to it. This can only be switched off outside a transaction.
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                yield connection
                if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                    raise StoreUnavailable("the state store has rows with broken references: restore a backup")
        finally:
            driver.execute("PRAGMA foreign_keys=ON")


def _create(tx: Transaction) -> None:
    for table in tables.metadata.tables.values():
        # By name, and not in the order of a set: of two indexes that would do as well, SQLite takes the one that was
        # made last, and the one of failed requests must win over the one of all.
        table.indexes = OrderedSet(sorted(table.indexes, key=lambda index: str(index.name)))
    tables.metadata.create_all(tx)
    tx.execute(sa.insert(tables.schema_version).values(version=tables.SCHEMA_VERSION))
    # As Alembic would, which takes longer to import than all of this takes.
    head = sa.Column("version_num", sa.String(32), nullable=False)
    marks = sa.Table(VERSION_TABLE, sa.MetaData(), head, sa.PrimaryKeyConstraint(head, name=f"{VERSION_TABLE}_pkc"))
    marks.create(tx)
    tx.execute(sa.insert(marks).values(version_num=revision_of(tables.SCHEMA_VERSION)))


def _refuse_beside_others(store: Store, tx: Transaction, version: int) -> None:
    """Makes sure that no other process uses the store before this transaction ends.

    Raises:
        Misconfigured: a process does.
    """
    if not store.is_sqlite:  # on SQLite no other transaction can write now
        tx.exec_driver_sql("LOCK TABLE leases IN SHARE ROW EXCLUSIVE MODE")
    if others_at_work(store, tx):
        raise Misconfigured(
            f"the state store has schema version {version}, this program needs {tables.SCHEMA_VERSION}, and another "
            "process is using the store. Once no process uses it, the next command or run upgrades it. To upgrade it "
            "now, stop these processes, make a backup and run 'nami-amp migrate'"
        )


def others_at_work(store: Store, tx: Transaction) -> bool:
    """Whether another process holds a lease; leases of ended processes of this machine do not count."""
    leases = sa.table("leases", sa.column("owner"), sa.column("expires_at"))
    live = sa.select(leases.c.owner).where(leases.c.expires_at > micros(store.clock), leases.c.owner != store.owner)
    return any(not has_ended(owner) for owner in tx.execute(live.distinct()).scalars())


def _upgrade(tx: Transaction, version: int) -> None:
    from alembic import command

    config = alembic_config(tx)
    if not sa.inspect(tx).has_table(VERSION_TABLE):  # made before there were revisions
        command.stamp(config, revision_of(version))
    command.upgrade(config, revision_of(tables.SCHEMA_VERSION))


def is_safe(tx: Transaction, version: int) -> bool:
    """Whether all revisions after a version are safe."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config(tx))
    missing = scripts.iterate_revisions(revision_of(tables.SCHEMA_VERSION), revision_of(version))
    return all(script.module.safe for script in missing)


def alembic_config(tx: Transaction) -> Config:
    """Alembic's configuration for a transaction of ours."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = tx
    return config


def note_version(ctx: MigrationContext, step: object, heads: Collection[str], run_args: object) -> None:
    """Keeps our version number in step with Alembic's; Alembic calls it after each revision."""
    del step, run_args
    (head,) = heads
    assert ctx.connection is not None
    ctx.connection.execute(sa.delete(tables.schema_version))
    ctx.connection.execute(sa.insert(tables.schema_version).values(version=int(head)))
