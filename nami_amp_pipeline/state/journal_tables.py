"""The tables of what happened besides changes: halts, sign-ins, quotas; events sent again; comparisons asked for."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Table, Text

from nami_amp_pipeline.state.table_metadata import KEY, metadata

journal = Table(
    "journal",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    # The app it is of, and <app_id>/<name> of the integration; null of what is of all apps, such as people.
    Column("app_id", Text),
    Column("integration", Text),
    # One of state.journal.Kind, who did it (empty for the pipeline itself), and what there is to say, as JSON.
    Column("kind", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("what", Text, nullable=False),
    Index("journal_by_app", "app_id", "at"),
    Index("journal_by_integration", "integration", "at"),
    sqlite_autoincrement=True,
)

resends = Table(
    "resends",
    metadata,
    # Dead letters of an integration that a person had sent again at once; exceptions.resend_id leads here.
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("by", Text, nullable=False),
    Column("events", BigInteger, nullable=False),
    # So many of them were refused again and have been sent once more since, or dismissed with another resend.
    Column("moved", BigInteger, nullable=False, server_default="0"),
    Index("resends_by_integration", "integration_id", "at"),
    sqlite_autoincrement=True,
)

comparison_requests = Table(
    "comparison_requests",
    metadata,
    # A day (its first microsecond) that a person wants compared with what Amplitude holds, as soon as possible.
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("day", BigInteger, nullable=False),
    Column("asked_at", BigInteger, nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("ended_at", BigInteger),
    # Why it could not be compared; null where it was.
    Column("error", Text),
    Index("comparison_requests_by_integration", "integration_id", "id"),
    sqlite_autoincrement=True,
)
