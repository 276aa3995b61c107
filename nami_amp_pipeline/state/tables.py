"""The tables of the state store. Times are microseconds since the epoch, structured values are JSON text.

Segments and outboxes themselves are files; a row here is what makes a file count. Rows are few: one per file, per
request, per user that changed, per exception. Never one per event.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy import false as sa_false

SCHEMA_VERSION = 4
"""Of these tables; each has its revision in ``migrations/versions``, which brings older stores to it."""

metadata = MetaData()

_Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself for INTEGER only

schema_version = Table("nami_amp_schema", metadata, Column("version", Integer, nullable=False))

apps = Table(
    "apps",
    metadata,
    Column("app_id", Text, primary_key=True),
    Column("plan", Text, nullable=False, server_default="paid"),
    # Everything below this ingested_at has been read for good: no transaction can still add to it.
    Column("frontier", BigInteger, nullable=True),
    # The newest ingested_at captured; what people see.
    Column("watermark", BigInteger, nullable=True),
    # When it was read last.
    Column("captured_at", BigInteger, nullable=True),
)

observations = Table(
    "warehouse_observations",
    metadata,
    Column("observed_at", BigInteger, primary_key=True),
    Column("max_ingested_at", BigInteger, nullable=False),
)

integrations = Table(
    "integrations",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("app_id", Text, ForeignKey("apps.app_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("api_key", Text, nullable=False),
    Column("secret_key", Text),
    Column("user_id_kind", Text, nullable=False),
    Column("anonymous", Text, nullable=False),
    Column("events", Text, nullable=False),
    Column("rename", Text, nullable=False),
    Column("start_from", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("prepared_through", _Key, nullable=False, server_default="0"),
    Column("halted_reason", Text),
    Column("halted_at", BigInteger),
    Column("last_error", Text),
    Column("destination", Text, nullable=False, server_default="amplitude"),
    Column("sandbox", Text, nullable=False, server_default="send"),
    # Payload fields that never leave, or only hashed; the salt is encrypted like the keys.
    Column("exclude", Text, nullable=False, server_default="[]"),
    Column("hash", Text, nullable=False, server_default="[]"),
    Column("hash_salt", Text),
    Column("revenue", Text, nullable=False, server_default="gross"),
    # The store's share of a price by event_platform, where it is not the default.
    Column("store_fees", Text, nullable=False, server_default="{}"),
    # Raised by every change.
    Column("version", BigInteger, nullable=False, server_default="1"),
    UniqueConstraint("app_id", "name"),
    sqlite_autoincrement=True,
)

integration_changes = Table(
    "integration_changes",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    # Its <app_id>/<name>: the history outlives the integration.
    Column("integration", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("by", Text, nullable=False),
    # Field to [before, after]; of keys only that they changed.
    Column("what", Text, nullable=False),
    Index("integration_changes_by_integration", "integration", "id"),
    sqlite_autoincrement=True,
)

segments = Table(
    "segments",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("file", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("captured_at", BigInteger, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("in_ledger", Boolean, nullable=False, server_default=sa_false()),
    sqlite_autoincrement=True,
)

captured_ids = Table(
    "captured_ids",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("file", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    # When the first and the last of its ids were captured.
    Column("oldest", BigInteger, nullable=False),
    Column("newest", BigInteger, nullable=False),
    Column("max_ingested_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

rereads = Table(
    "rereads",
    metadata,
    # An app that is read once more from further back, for a new integration; the older ones are not sent it again.
    Column("integration_id", _Key, primary_key=True, autoincrement=False),
    Column("app_id", Text, nullable=False),
    Column("frontier", BigInteger, nullable=False),
    Column("after_segment", _Key, nullable=False),
)

segment_apps = Table(
    "segment_apps",
    metadata,
    Column("segment_id", ForeignKey("segments.id", ondelete="CASCADE"), primary_key=True),
    Column("app_id", Text, primary_key=True),
    Column("rows", BigInteger, nullable=False),
    Column("types", Text, nullable=False),
    Column("malformed", BigInteger, nullable=False),
    Column("min_ingested_at", BigInteger, nullable=False),
    Column("max_ingested_at", BigInteger, nullable=False),
    Column("min_created_date", BigInteger, nullable=False),
    Column("max_created_date", BigInteger, nullable=False),
    Column("snapshot_file", Text),
    Column("truncated_arrays", BigInteger),
    Index("segment_apps_by_app", "app_id", "segment_id"),
)

user_property_snapshots = Table(
    "user_property_snapshots",
    metadata,
    Column("app_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("external_id", Text),
    Column("external_id_date", BigInteger),
    Column("external_id_event", Text),
    Column("as_of_date", BigInteger),
    Column("as_of_event", Text),
    # The values of each group of contract.PROPERTIES as one JSON object, so that all come from the same event.
    Column("entitlements", Text),
    Column("entitlements_date", BigInteger),
    Column("entitlements_event", Text),
    Column("devices", Text),
    Column("devices_date", BigInteger),
    Column("devices_event", Text),
    Column("journey", Text),
    Column("journey_date", BigInteger),
    Column("journey_event", Text),
    sqlite_with_rowid=False,
)

sent_states = Table(
    "sent_states",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("as_of_date", BigInteger, nullable=False),
    Column("as_of_event", Text, nullable=False),
    sqlite_with_rowid=False,
)

outboxes = Table(
    "outboxes",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("segment_id", _Key, nullable=False),
    Column("file", Text, nullable=False),
    Column("others_batch", Integer),
    Column("rows", BigInteger, nullable=False),
    Column("prepared_at", BigInteger, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("done_at", BigInteger),
    Column("receipts_file", Text),
    Index("outboxes_by_integration", "integration_id", "id"),
    sqlite_autoincrement=True,
)

lanes = Table(
    "lanes",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("outbox_id", ForeignKey("outboxes.id", ondelete="CASCADE"), nullable=False),
    Column("batch", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    # Rows before next_row have their end state; rows up to attempt_end may have been posted since unknown_since.
    Column("next_row", BigInteger, nullable=False),
    Column("attempt_end", BigInteger, nullable=False),
    Column("unknown_since", BigInteger),
    Index("lanes_by_outbox", "outbox_id"),
    sqlite_autoincrement=True,
)

requests = Table(
    "requests",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("lane_id", _Key),
    Column("first_row", BigInteger),
    Column("end_row", BigInteger),
    Column("events", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("status", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("answer", Text),
    Column("sent_at", BigInteger, nullable=False),
    Column("answered_at", BigInteger, nullable=False),
    Column("run_id", Text, nullable=False),
    Index("requests_by_lane", "lane_id", "first_row"),
    Index("requests_by_integration", "integration_id", "sent_at"),
    sqlite_autoincrement=True,
)

exceptions = Table(
    "exceptions",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    # dead: a dead letter; held: still to be posted, after not_before, in order and before newer ones of its user
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("identity", Text, nullable=False),
    Column("created_date", BigInteger, nullable=False),
    Column("payload", Text),
    Column("body", Text),
    Column("answer", Text),
    Column("lane_id", _Key),
    Column("lane_row", BigInteger),
    Column("segment_id", _Key),
    Column("request_id", _Key),
    Column("run_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("unknown_since", BigInteger),
    Column("first_sent_at", BigInteger),
    Index("exceptions_by_integration", "integration_id", "state", "identity", "created_date", "event_id"),
    Index("exceptions_by_lane", "lane_id", "lane_row"),
    Index("exceptions_by_event", "event_id"),
    sqlite_autoincrement=True,
)

pauses = Table(
    "pauses",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    Column("identity", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("until", BigInteger, nullable=False),
)

counts = Table(
    "integration_counts",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    # captured, delivered, skipped or dead; reason is empty for the first two
    Column("state", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("events", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    # How many transactions its holder has committed under it: shows whether a seemingly failed commit went through.
    Column("commits", BigInteger, nullable=False, server_default="0"),
)

run_troubles = Table(
    "run_troubles",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("run_id", Text, nullable=False),
    Column("asset", Text, nullable=False),
    # The app or integration that it was about; null for what all share.
    Column("partition", Text),
    # The name of the error's class.
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("run_troubles_by_run", "run_id"),
    sqlite_autoincrement=True,
)

unreadable_rows = Table(
    "unreadable_rows",
    metadata,
    # Rows of the warehouse that cannot be captured, by why; the app is empty where the row has none.
    Column("app_id", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("rows", BigInteger, nullable=False),
    # Names one of them.
    Column("example", Text, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("kind", Text, primary_key=True),
    # an integration, an app or a job
    Column("subject", Text, primary_key=True),
    Column("summary", Text, nullable=False),
    # The causes of a failed run, as a JSON list: a new cause is reported again.
    Column("causes", Text, nullable=False),
    Column("page", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    # When it was reported, and whether its end is still to be reported. The row is deleted after both.
    Column("told_at", BigInteger),
    Column("ended_at", BigInteger),
)
