"""The tables of counts: of all time by reason, and of each hour by event type."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Table, Text

from nami_amp_pipeline.state.table_metadata import metadata

counts = Table(
    "integration_counts",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    # captured, delivered, skipped or dead; reason is empty for the first two
    Column("state", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
)

hourly_counts = Table(
    "hourly_counts",
    metadata,
    # Events by the hour (its first microsecond) in which they were captured, and where they are now.
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    Column("hour", BigInteger, primary_key=True),
    Column("event_type", Text, primary_key=True),
    Column("captured", BigInteger, nullable=False),
    Column("delivered", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("dead", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
