"""Fields that a destination has of its own: columns that older processes leave alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. Such a process posts without
# what the fields say, which holds for nobody before a person sets one.
safe = True


def upgrade() -> None:
    """Goes from version 13 to 14."""
    op.add_column("integrations", sa.Column("fields", sa.Text, nullable=False, server_default="{}"))
    op.add_column("integrations", sa.Column("secret_fields", sa.Text, nullable=False, server_default="{}"))
