"""Identifies: a kind of backfill, and which of them gave a user its newest state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. Such a process leaves
# identify_id as it is when it sends newer state; the id holds for one state only, so nobody takes it for another's.
safe = True


def upgrade() -> None:
    """Goes from version 10 to 11."""
    op.add_column("backfills", sa.Column("kind", sa.Text, nullable=False, server_default="backfill"))
    op.add_column("sent_states", sa.Column("identify_id", sa.Text))
