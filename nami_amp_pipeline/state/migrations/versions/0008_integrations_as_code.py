"""Integrations whose settings come from a file: a column that older processes leave alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = True


def upgrade() -> None:
    """Goes from version 7 to 8."""
    op.add_column("integrations", sa.Column("managed_by", sa.Text))
