"""What enrichments gave of a user, and how many events went without a property."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. Such a process leaves the new
# columns as they are: they have a date of their own, and say what they are as of.
safe = True


def upgrade() -> None:
    """Goes from version 12 to 13."""
    op.add_column("user_property_snapshots", sa.Column("enrichments", sa.Text))
    op.add_column("user_property_snapshots", sa.Column("enrichments_date", sa.BigInteger))
    op.add_column("user_property_snapshots", sa.Column("enrichments_event", sa.Text))
    op.add_column("segment_apps", sa.Column("events_without", sa.Text))
