"""The tables of version 1, from before there were revisions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

safe = True  # there is nothing yet that it could harm

_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "apps",
        sa.Column("app_id", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), server_default="paid", nullable=False),
        sa.Column("frontier", sa.BigInteger(), nullable=True),
        sa.Column("watermark", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("app_id"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table("nami_amp_schema", sa.Column("version", sa.Integer(), nullable=False))
    op.create_table(
        "segments",
        sa.Column("id", _key, autoincrement=True, nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("captured_at", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "user_property_snapshots",
        sa.Column("app_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=True),
        sa.Column("external_id_date", sa.BigInteger(), nullable=True),
        sa.Column("external_id_event", sa.Text(), nullable=True),
        sa.Column("as_of_date", sa.BigInteger(), nullable=True),
        sa.Column("as_of_event", sa.Text(), nullable=True),
        sa.Column("namiml_active_entitlements", sa.Text(), nullable=True),
        sa.Column("namiml_active_skus", sa.Text(), nullable=True),
        sa.Column("has_active_entitlement", sa.Boolean(), nullable=True),
        sa.Column("entitlements_date", sa.BigInteger(), nullable=True),
        sa.Column("entitlements_event", sa.Text(), nullable=True),
        sa.Column("namiml_device_ids", sa.Text(), nullable=True),
        sa.Column("namiml_device_platforms", sa.Text(), nullable=True),
        sa.Column("devices_date", sa.BigInteger(), nullable=True),
        sa.Column("devices_event", sa.Text(), nullable=True),
        sa.Column("former_subscriber", sa.Boolean(), nullable=True),
        sa.Column("namiml_in_grace_period", sa.Boolean(), nullable=True),
        sa.Column("namiml_in_trial_period", sa.Boolean(), nullable=True),
        sa.Column("namiml_in_intro_offer_period", sa.Boolean(), nullable=True),
        sa.Column("journey_date", sa.BigInteger(), nullable=True),
        sa.Column("journey_event", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("app_id", "user_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "warehouse_observations",
        sa.Column("observed_at", sa.BigInteger(), nullable=False),
        sa.Column("max_ingested_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("observed_at"),
    )
    op.create_table(
        "integrations",
        sa.Column("id", _key, autoincrement=True, nullable=False),
        sa.Column("app_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("api_key", sa.Text(), nullable=False),
        sa.Column("secret_key", sa.Text(), nullable=True),
        sa.Column("user_id_kind", sa.Text(), nullable=False),
        sa.Column("anonymous", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("rename", sa.Text(), nullable=False),
        sa.Column("start_from", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("prepared_through", _key, server_default="0", nullable=False),
        sa.Column("halted_reason", sa.Text(), nullable=True),
        sa.Column("halted_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["app_id"],
            ["apps.app_id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("app_id", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "segment_apps",
        sa.Column("segment_id", _key, nullable=False),
        sa.Column("app_id", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("malformed", sa.BigInteger(), nullable=False),
        sa.Column("min_ingested_at", sa.BigInteger(), nullable=False),
        sa.Column("max_ingested_at", sa.BigInteger(), nullable=False),
        sa.Column("min_created_date", sa.BigInteger(), nullable=False),
        sa.Column("max_created_date", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_file", sa.Text(), nullable=True),
        sa.Column("truncated_arrays", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["segment_id"], ["segments.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("segment_id", "app_id"),
    )
    op.create_index("segment_apps_by_app", "segment_apps", ["app_id", "segment_id"], unique=False)
    op.create_table(
        "exceptions",
        sa.Column("id", _key, autoincrement=True, nullable=False),
        sa.Column("integration_id", _key, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("created_date", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("lane_id", _key, nullable=True),
        sa.Column("lane_row", sa.BigInteger(), nullable=True),
        sa.Column("segment_id", _key, nullable=True),
        sa.Column("request_id", _key, nullable=True),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("unknown_since", sa.BigInteger(), nullable=True),
        sa.Column("first_sent_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["integration_id"], ["integrations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("exceptions_by_event", "exceptions", ["event_id"], unique=False)
    op.create_index(
        "exceptions_by_integration",
        "exceptions",
        ["integration_id", "state", "identity", "created_date", "event_id"],
        unique=False,
    )
    op.create_index("exceptions_by_lane", "exceptions", ["lane_id", "lane_row"], unique=False)
    op.create_table(
        "integration_counts",
        sa.Column("integration_id", _key, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["integration_id"], ["integrations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("integration_id", "state", "reason"),
    )
    op.create_table(
        "outboxes",
        sa.Column("id", _key, autoincrement=True, nullable=False),
        sa.Column("integration_id", _key, nullable=False),
        sa.Column("segment_id", _key, nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("others_batch", sa.Integer(), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("prepared_at", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.Column("receipts_file", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["integration_id"], ["integrations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("outboxes_by_integration", "outboxes", ["integration_id", "id"], unique=False)
    op.create_table(
        "pauses",
        sa.Column("integration_id", _key, nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["integration_id"], ["integrations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("integration_id", "identity"),
    )
    op.create_table(
        "requests",
        sa.Column("id", _key, autoincrement=True, nullable=False),
        sa.Column("integration_id", _key, nullable=False),
        sa.Column("lane_id", _key, nullable=True),
        sa.Column("first_row", sa.BigInteger(), nullable=True),
        sa.Column("end_row", sa.BigInteger(), nullable=True),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("sent_at", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["integration_id"], ["integrations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("requests_by_integration", "requests", ["integration_id", "sent_at"], unique=False)
    op.create_index("requests_by_lane", "requests", ["lane_id", "first_row"], unique=False)
    op.create_table(
        "sent_states",
        sa.Column("integration_id", _key, nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("as_of_date", sa.BigInteger(), nullable=False),
        sa.Column("as_of_event", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["integration_id"], ["integrations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("integration_id", "user_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "lanes",
        sa.Column("id", _key, autoincrement=True, nullable=False),
        sa.Column("outbox_id", _key, nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("next_row", sa.BigInteger(), nullable=False),
        sa.Column("attempt_end", sa.BigInteger(), nullable=False),
        sa.Column("unknown_since", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["outbox_id"], ["outboxes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("lanes_by_outbox", "lanes", ["outbox_id"], unique=False)
