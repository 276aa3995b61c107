"""What happened besides changes, results of events sent again, comparisons asked for, quotas of apps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. What such a process halts or
# sends again is missing in the journal, and nothing else.
safe = True

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Goes from version 11 to 12."""
    op.create_table(
        "journal",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("app_id", sa.Text),
        sa.Column("integration", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("journal_by_app", "journal", ["app_id", "at"])
    op.create_index("journal_by_integration", "journal", ["integration", "at"])
    op.create_table(
        "resends",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("integration_id", _key, sa.ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("moved", sa.BigInteger, nullable=False, server_default="0"),
        sqlite_autoincrement=True,
    )
    op.create_index("resends_by_integration", "resends", ["integration_id", "at"])
    op.create_table(
        "comparison_requests",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        sa.Column("integration_id", _key, sa.ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
        sa.Column("day", sa.BigInteger, nullable=False),
        sa.Column("asked_at", sa.BigInteger, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("error", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("comparison_requests_by_integration", "comparison_requests", ["integration_id", "id"])
    op.add_column("apps", sa.Column("monthly_quota", sa.BigInteger))
    op.add_column("exceptions", sa.Column("resend_id", sa.BigInteger))
    resent = sa.text("resend_id IS NOT NULL")
    op.create_index("exceptions_by_resend", "exceptions", ["resend_id"], sqlite_where=resent, postgresql_where=resent)
    failed = sa.text("outcome <> 'delivered'")
    op.create_index(
        "requests_failed", "requests", ["integration_id", "sent_at"], sqlite_where=failed, postgresql_where=failed
    )
