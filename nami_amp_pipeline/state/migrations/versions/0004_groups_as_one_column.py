"""Each group of a user's current properties is one column, so that it can only move as a whole."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# True if processes of the version before may go on working while this runs, and after.
safe = False

_TABLE = "user_property_snapshots"

# Group to its columns, with whether each is JSON text already or a boolean.
_GROUPS = {
    "entitlements": {
        "namiml_active_entitlements": True,
        "namiml_active_skus": True,
        "has_active_entitlement": False,
    },
    "devices": {"namiml_device_ids": True, "namiml_device_platforms": True},
    "journey": {
        "former_subscriber": False,
        "namiml_in_grace_period": False,
        "namiml_in_trial_period": False,
        "namiml_in_intro_offer_period": False,
    },
}


def upgrade() -> None:
    """Goes from version 3 to 4."""
    if op.get_bind().dialect.name == "sqlite":
        _make_anew()
        return
    # In place, as others may have been granted the table.
    for group in _GROUPS:
        op.add_column(_TABLE, sa.Column(group, sa.Text))
    op.execute(f"UPDATE {_TABLE} SET {', '.join(f'{group} = {_as_json(group)}' for group in _GROUPS)}")  # noqa: S608
    for columns in _GROUPS.values():
        for name in columns:
            op.drop_column(_TABLE, name)


def _make_anew() -> None:
    """SQLite would write the whole table for each column that is dropped."""
    new = op.create_table(
        f"{_TABLE}_new",
        sa.Column("app_id", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("external_id", sa.Text),
        sa.Column("external_id_date", sa.BigInteger),
        sa.Column("external_id_event", sa.Text),
        sa.Column("as_of_date", sa.BigInteger),
        sa.Column("as_of_event", sa.Text),
        sa.Column("entitlements", sa.Text),
        sa.Column("entitlements_date", sa.BigInteger),
        sa.Column("entitlements_event", sa.Text),
        sa.Column("devices", sa.Text),
        sa.Column("devices_date", sa.BigInteger),
        sa.Column("devices_event", sa.Text),
        sa.Column("journey", sa.Text),
        sa.Column("journey_date", sa.BigInteger),
        sa.Column("journey_event", sa.Text),
        sqlite_with_rowid=False,
    )
    names = [column.name for column in new.columns]
    values = ", ".join(_as_json(name) if name in _GROUPS else name for name in names)
    op.execute(f"INSERT INTO {new.name} ({', '.join(names)}) SELECT {values} FROM {_TABLE}")  # noqa: S608
    op.drop_table(_TABLE)
    op.rename_table(new.name, _TABLE)


def _as_json(group: str) -> str:
    """SQL that makes a group's JSON object of its columns; NULL for one that was never seen."""
    members = []
    for name, is_json in _GROUPS[group].items():
        text = name if is_json else f"CASE WHEN {name} THEN 'true' WHEN NOT {name} THEN 'false' END"
        members.append(f"""coalesce(',"{name}":' || {text}, '')""")
    return f"CASE WHEN {group}_date IS NOT NULL THEN '{{' || substr({' || '.join(members)}, 2) || '}}' END"
