"""What PostgreSQL in production takes: additions only."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = True


def upgrade() -> None:
    """Goes from version 1 to 2."""
