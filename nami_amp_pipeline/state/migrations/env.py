"""Alembic's environment, for the program (which gives a connection) and for ``alembic revision --autogenerate``."""

from __future__ import annotations

from alembic import context

from nami_amp_pipeline.clock import system_clock
from nami_amp_pipeline.settings import Settings
from nami_amp_pipeline.state import tables
from nami_amp_pipeline.state.migrate import VERSION_TABLE, alone, note_version
from nami_amp_pipeline.state.store import Store, Transaction


def _run(connection: Transaction) -> None:
    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        version_table=VERSION_TABLE,
        on_version_apply=note_version,
        compare_server_default=True,
        render_as_batch=True,  # SQLite cannot change a column in place
        transactional_ddl=True,  # SQLite can, as the store begins its transactions itself
        # Others may have tables in the same database, Dagster for one.
        include_name=lambda name, kind, _parents: kind != "table" or name in tables.metadata.tables,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    store = Store(Settings.load().state_url, system_clock)
    with alone(store) as tx:
        _run(tx)
