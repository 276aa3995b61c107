"""Indexes of what has no end yet: a tick looks for it, whatever lies behind."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after. They wait while an index is
# being made: some seconds for millions of outboxes.
safe = True


def upgrade() -> None:
    """Goes from version 14 to 15."""
    is_open = sa.text("done_at IS NULL")
    op.create_index(
        "outboxes_open", "outboxes", ["integration_id", "id"], sqlite_where=is_open, postgresql_where=is_open
    )
    is_new = sa.text("snapshot_file IS NULL")
    op.create_index("segment_apps_new", "segment_apps", ["segment_id"], sqlite_where=is_new, postgresql_where=is_new)
