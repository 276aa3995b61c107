"""What comparisons with Amplitude found, by day: additions only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = True

_key = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _integration(*, is_key: bool) -> sa.Column[int]:
    foreign = sa.ForeignKey("integrations.id", ondelete="CASCADE")
    return sa.Column("integration_id", _key, foreign, primary_key=is_key, autoincrement=False, nullable=False)


def upgrade() -> None:
    """Goes from version 5 to 6."""
    op.create_table(
        "reconciled_days",
        _integration(is_key=True),
        sa.Column("day", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("hours", sa.Integer, nullable=False),
        sa.Column("complete_at", sa.BigInteger),
        sa.Column("delivered", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("repaired", sa.BigInteger, nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
    )
    op.create_table(
        "reconciled_classes",
        _integration(is_key=True),
        sa.Column("day", sa.BigInteger, primary_key=True),
        sa.Column("class", sa.Text, primary_key=True),
        sa.Column("column", sa.Text, primary_key=True),
        sa.Column("events", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "reconciled_samples",
        sa.Column("id", _key, primary_key=True, autoincrement=True),
        _integration(is_key=False),
        sa.Column("day", sa.BigInteger, nullable=False),
        sa.Column("class", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("column", sa.Text),
        sa.Column("field", sa.Text),
        sa.Column("sent", sa.Text),
        sa.Column("held", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("reconciled_samples_by_day", "reconciled_samples", ["integration_id", "day"])
