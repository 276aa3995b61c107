"""The tables of the people who sign in to the Control Center."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Table, Text

from nami_amp_pipeline.state.table_metadata import metadata

people = Table(
    "people",
    metadata,
    # Who may sign in to the Control Center with a password; the role is viewer or editor.
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    # SHA-256 of what the browser has: nobody who reads this table can take a session over.
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    # Of somebody whom another system vouches for; null of those in people, whose role is there.
    Column("role", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("ends_at", BigInteger, nullable=False),
    Index("sessions_by_name", "name"),
)

sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    # Whose sign-ins are counted: a name, an address, or both.
    Column("subject", Text, primary_key=True),
    Column("failures", BigInteger, nullable=False),
    Column("since", BigInteger, nullable=False),
)
