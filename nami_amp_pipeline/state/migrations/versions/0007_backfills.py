"""Backfills: records, their files, and the rows of integrations through which they deliver."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. The rows of integrations that
# belong to a backfill are switched off, so such a process leaves them alone.
safe = True

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Goes from version 6 to 7."""
    op.add_column("integrations", sa.Column("backfill_of", _key))
    op.create_table(
        "backfills",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("integration_id", _key, sa.ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
        sa.Column("channel_id", _key, sa.ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("events", sa.Text),
        sa.Column("resend", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("run_id", sa.Text),
        sa.Column("events_in_window", sa.BigInteger),
        sa.Column("plan", sa.Text),
        sa.Column("compared_through", _key),
        sa.Column("error", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("backfills_by_integration", "backfills", ["integration_id", "id"])
    op.create_table(
        "backfill_files",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("backfill_id", _key, sa.ForeignKey("backfills.id", ondelete="CASCADE"), nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("prepared_at", sa.BigInteger),
        sa.Column("found", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("backfill_files_by_backfill", "backfill_files", ["backfill_id", "id"])
