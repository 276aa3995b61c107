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
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy import false as sa_false

from nami_amp_pipeline.state.count_tables import counts as counts
from nami_amp_pipeline.state.count_tables import hourly_counts as hourly_counts
from nami_amp_pipeline.state.journal_tables import comparison_requests as comparison_requests
from nami_amp_pipeline.state.journal_tables import journal as journal
from nami_amp_pipeline.state.journal_tables import resends as resends
from nami_amp_pipeline.state.people_tables import people as people
from nami_amp_pipeline.state.people_tables import sessions as sessions
from nami_amp_pipeline.state.reconciliation_tables import reconciled_classes as reconciled_classes
from nami_amp_pipeline.state.reconciliation_tables import reconciled_days as reconciled_days
from nami_amp_pipeline.state.reconciliation_tables import reconciled_samples as reconciled_samples
from nami_amp_pipeline.state.table_metadata import KEY
from nami_amp_pipeline.state.table_metadata import metadata as metadata

SCHEMA_VERSION = 15
"""Of all tables; each has its revision in ``migrations/versions``, which brings older stores to it."""

_FAILED = text("outcome <> 'delivered'")
_RESENT = text("resend_id IS NOT NULL")
_OPEN = text("done_at IS NULL")
_NEW = text("snapshot_file IS NULL")

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
    # How many events a month Amplitude takes under its organisation's plan, as a person said.
    Column("monthly_quota", BigInteger),
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
    Column("id", KEY, primary_key=True, autoincrement=True),
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
    Column("prepared_through", KEY, nullable=False, server_default="0"),
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
    # A backfill of that integration delivers through this row; its settings are those of the integration.
    Column("backfill_of", KEY),
    # Since when its events are counted by hour, of those that are older than such counts.
    Column("counted_since", BigInteger),
    Column("managed_by", Text),  # the name of the file that its settings come from
    # The fields that its destination has of its own, as JSON by name; secrets are encrypted like the keys.
    Column("fields", Text, nullable=False, server_default="{}"),
    Column("secret_fields", Text, nullable=False, server_default="{}"),
    UniqueConstraint("app_id", "name"),
    sqlite_autoincrement=True,
)

integration_changes = Table(
    "integration_changes",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
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
    Column("id", KEY, primary_key=True, autoincrement=True),
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
    Column("id", KEY, primary_key=True, autoincrement=True),
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
    Column("integration_id", KEY, primary_key=True, autoincrement=False),
    Column("app_id", Text, nullable=False),
    Column("frontier", BigInteger, nullable=False),
    Column("after_segment", KEY, nullable=False),
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
    # By property, how many events go without it because its SQL or its enrichment failed, as JSON; null for none.
    Column("events_without", Text),
    Index("segment_apps_by_app", "app_id", "segment_id"),
    Index("segment_apps_new", "segment_id", sqlite_where=_NEW, postgresql_where=_NEW),
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
    # The values that enrichments gave of the newest event that they were asked about.
    Column("enrichments", Text),
    Column("enrichments_date", BigInteger),
    Column("enrichments_event", Text),
    sqlite_with_rowid=False,
)

sent_states = Table(
    "sent_states",
    metadata,
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("as_of_date", BigInteger, nullable=False),
    Column("as_of_event", Text, nullable=False),
    # The insert id of the identify that gave the user that state; null where an event did.
    Column("identify_id", Text),
    sqlite_with_rowid=False,
)

outboxes = Table(
    "outboxes",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("segment_id", KEY, nullable=False),
    Column("file", Text, nullable=False),
    Column("others_batch", Integer),
    Column("rows", BigInteger, nullable=False),
    Column("prepared_at", BigInteger, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("done_at", BigInteger),
    Column("receipts_file", Text),
    # The hour in which its events count, see hourly_counts; null if they are not counted by hour.
    Column("hour", BigInteger),
    Index("outboxes_by_integration", "integration_id", "id"),
    Index("outboxes_open", "integration_id", "id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    sqlite_autoincrement=True,
)

lanes = Table(
    "lanes",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
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
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("lane_id", KEY),
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
    Index("requests_failed", "integration_id", "sent_at", sqlite_where=_FAILED, postgresql_where=_FAILED),
    sqlite_autoincrement=True,
)

exceptions = Table(
    "exceptions",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    # dead: a dead letter; held: still to be posted, after not_before, in order and before newer ones of its user;
    # skipped: of an identify whose user was given newer state before it was posted
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
    Column("lane_id", KEY),
    Column("lane_row", BigInteger),
    Column("segment_id", KEY),
    Column("request_id", KEY),
    Column("run_id", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("unknown_since", BigInteger),
    Column("first_sent_at", BigInteger),
    # Of a dead letter: when a person marked it as seen, and who. It counts only if it did not die again since (at).
    Column("dismissed_at", BigInteger),
    Column("dismissed_by", Text),
    # As of an outbox.
    Column("hour", BigInteger),
    Column("resend_id", BigInteger),  # with which of the resends it was sent again last
    Index("exceptions_by_resend", "resend_id", sqlite_where=_RESENT, postgresql_where=_RESENT),
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

backfills = Table(
    "backfills",
    metadata,
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("integration_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    Column("channel_id", ForeignKey("integrations.id", ondelete="CASCADE"), nullable=False),
    # backfill or identify; both are posted in the same way.
    Column("kind", Text, nullable=False, server_default="backfill"),
    # The window, and which time of a row counts: created_date or ingested_at. Of an identify, since is the time from
    # which on its users were sent nothing, or 0 for all users, and the others say nothing.
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("by", Text, nullable=False),
    Column("events", Text),
    # Whether events are sent that Amplitude would store a second time.
    Column("resend", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    Column("run_id", Text),
    Column("events_in_window", BigInteger),
    Column("plan", Text),
    # How far the integration was prepared when what is to be posted was last compared with the states of users.
    Column("compared_through", KEY),
    Column("error", Text),
    Index("backfills_by_integration", "integration_id", "id"),
    sqlite_autoincrement=True,
)

backfill_files = Table(
    "backfill_files",
    metadata,
    # Rows of the warehouse for a share of the users: each has their whole life until the end of the window.
    Column("id", KEY, primary_key=True, autoincrement=True),
    Column("backfill_id", ForeignKey("backfills.id", ondelete="CASCADE"), nullable=False),
    Column("file", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False),
    # When its outbox was written, and by what was found of them how many events of the window (JSON); null until then.
    Column("prepared_at", BigInteger),
    Column("found", Text),
    Index("backfill_files_by_backfill", "backfill_id", "id"),
    sqlite_autoincrement=True,
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
    Column("id", KEY, primary_key=True, autoincrement=True),
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

SILENCED = "silenced"
"""The kind of the rows of silences in the table of alerts; no alert has it."""

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
