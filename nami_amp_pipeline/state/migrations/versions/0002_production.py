"""What PostgreSQL in production takes: additions only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = True

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Goes from version 1 to 2."""
    op.create_table(
        "alerts",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("causes", sa.Text, nullable=False),
        sa.Column("page", sa.Text, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("told_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
    )
    op.add_column("apps", sa.Column("captured_at", sa.BigInteger))
    op.add_column("segments", sa.Column("in_ledger", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "captured_ids",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("oldest", sa.BigInteger, nullable=False),
        sa.Column("newest", sa.BigInteger, nullable=False),
        sa.Column("max_ingested_at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rereads",
        sa.Column("integration_id", _key, primary_key=True, autoincrement=False),
        sa.Column("app_id", sa.Text, nullable=False),
        sa.Column("frontier", sa.BigInteger, nullable=False),
        sa.Column("after_segment", _key, nullable=False),
    )
