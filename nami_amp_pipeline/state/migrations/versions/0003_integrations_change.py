"""Integrations that change, leases that count commits, rows that cannot be read: additions only."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = True

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")

# All event types that the version before knew: who had selected each of them meant all.
_ALL = {
    "device.impression",
    "device.transaction",
    "user.journey.trial.converted",
    "user.journey.trial.did_not_convert",
    "user.journey.trial.started",
    "user.subscription.cancelled",
    "user.subscription.expired",
    "user.subscription.in_grace_period",
    "user.subscription.paused",
    "user.subscription.purchased",
    "user.subscription.renewal_in_grace_period",
    "user.subscription.renewed",
    "user.subscription.resumed",
}


def upgrade() -> None:
    """Goes from version 2 to 3."""
    for name, default in (
        ("destination", "amplitude"),
        ("sandbox", "send"),
        ("exclude", "[]"),
        ("hash", "[]"),
        ("revenue", "gross"),
        ("store_fees", "{}"),
    ):
        op.add_column("integrations", sa.Column(name, sa.Text, nullable=False, server_default=default))
    op.add_column("integrations", sa.Column("hash_salt", sa.Text))
    op.add_column("integrations", sa.Column("version", sa.BigInteger, nullable=False, server_default="1"))
    op.add_column("leases", sa.Column("commits", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "integration_changes",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("integration", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("integration_changes_by_integration", "integration_changes", ["integration", "id"])
    op.create_table(
        "run_troubles",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("partition", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("run_troubles_by_run", "run_troubles", ["run_id"])
    op.create_table(
        "unreadable_rows",
        sa.Column("app_id", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, primary_key=True),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("example", sa.Text, nullable=False),
        sa.Column("first_at", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
    )
    integrations = sa.table("integrations", sa.column("id", _key), sa.column("events", sa.Text))
    connection = op.get_bind()
    for row in connection.execute(sa.select(integrations)).all():
        if set(_read(row.events)) == _ALL:
            connection.execute(sa.update(integrations).where(integrations.c.id == row.id).values(events='["all"]'))


def _read(text: str) -> list[str]:
    try:
        read = json.loads(text)
    except ValueError:
        return []
    return read if isinstance(read, list) else []
