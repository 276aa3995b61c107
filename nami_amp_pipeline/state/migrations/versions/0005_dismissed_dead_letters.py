"""Dead letters that a person marked as seen: two columns that older processes leave alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = True


def upgrade() -> None:
    """Goes from version 4 to 5."""
    op.add_column("exceptions", sa.Column("dismissed_at", sa.BigInteger))
    op.add_column("exceptions", sa.Column("dismissed_by", sa.Text))
