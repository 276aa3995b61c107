"""The tables of reconciliations: what came out for a day, by class, and samples of what differs."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text

from nami_amp_pipeline.state.table_metadata import KEY, metadata

reconciled_days = Table(
    "reconciled_days",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    # Its first microsecond, in UTC.
    Column("day", BigInteger, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    # How many of its hours were compared, and when it was first that all of them were.
    Column("hours", Integer, nullable=False),
    Column("complete_at", BigInteger),
    Column("delivered", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("repaired", BigInteger, nullable=False),
    Column("said", Text, nullable=False),
    Column("run_id", Text, nullable=False),
)

reconciled_classes = Table(
    "reconciled_classes",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    Column("day", BigInteger, primary_key=True),
    # One of reconciliation.day.CLASSES; the column is of altered events, and empty for the sum.
    Column("class", Text, primary_key=True),
    Column("column", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
)

reconciled_samples = Table(
    "reconciled_samples",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("class", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    # Of altered events: where, and both values as JSON.
    Column("column", Text),
    Column("field", Text),
    Column("sent", Text),
    Column("held", Text),
    Index("reconciled_samples_by_day", "integration_id", "day"),
    sqlite_autoincrement=True,
)
