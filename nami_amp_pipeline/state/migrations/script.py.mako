"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = False


def upgrade() -> None:
    """Goes from version ${int(down_revision)} to ${int(up_revision)}."""
    ${upgrades if upgrades else "pass"}
