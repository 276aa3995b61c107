"""Counts by hour and event type: a table, and the hour of each outbox and exception; what is older is not counted."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. They would deliver what is
# counted, and not count it.
safe = False

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Goes from version 9 to 10."""
    op.add_column("integrations", sa.Column("counted_since", sa.BigInteger))
    op.add_column("outboxes", sa.Column("hour", sa.BigInteger))
    op.add_column("exceptions", sa.Column("hour", sa.BigInteger))
    op.create_table(
        "hourly_counts",
        sa.Column(
            "integration_id", _key, sa.ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True,
            autoincrement=False,
        ),
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("event_type", sa.Text, primary_key=True),
        sa.Column("captured", sa.BigInteger, nullable=False),
        sa.Column("delivered", sa.BigInteger, nullable=False),
        sa.Column("skipped", sa.BigInteger, nullable=False),
        sa.Column("dead", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )  # fmt: skip
    integrations = sa.table("integrations", sa.column("counted_since", sa.BigInteger))
    op.execute(sa.update(integrations).values(counted_since=int(time.time() * 1e6)))
