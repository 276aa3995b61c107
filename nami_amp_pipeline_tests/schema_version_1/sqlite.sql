-- What the program made of an empty store while the schema had version 1. Not to be changed.

CREATE TABLE apps (
    app_id TEXT NOT NULL,
    "plan" TEXT DEFAULT 'paid' NOT NULL,
    frontier BIGINT,
    watermark BIGINT,
    PRIMARY KEY (app_id)
);

CREATE TABLE leases (
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    fence BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (name)
);

CREATE TABLE nami_amp_schema (
    version INTEGER NOT NULL
);

CREATE TABLE segments (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    file TEXT NOT NULL,
    rows BIGINT NOT NULL,
    captured_at BIGINT NOT NULL,
    run_id TEXT NOT NULL
);

CREATE TABLE user_property_snapshots (
    app_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    external_id TEXT,
    external_id_date BIGINT,
    external_id_event TEXT,
    as_of_date BIGINT,
    as_of_event TEXT,
    namiml_active_entitlements TEXT,
    namiml_active_skus TEXT,
    has_active_entitlement BOOLEAN,
    entitlements_date BIGINT,
    entitlements_event TEXT,
    namiml_device_ids TEXT,
    namiml_device_platforms TEXT,
    devices_date BIGINT,
    devices_event TEXT,
    former_subscriber BOOLEAN,
    namiml_in_grace_period BOOLEAN,
    namiml_in_trial_period BOOLEAN,
    namiml_in_intro_offer_period BOOLEAN,
    journey_date BIGINT,
    journey_event TEXT,
    PRIMARY KEY (app_id, user_id)
)
 WITHOUT ROWID;

CREATE TABLE warehouse_observations (
    observed_at BIGINT NOT NULL,
    max_ingested_at BIGINT NOT NULL,
    PRIMARY KEY (observed_at)
);

CREATE TABLE integrations (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    app_id TEXT NOT NULL,
    name TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    endpoint TEXT NOT NULL,
    api_key TEXT NOT NULL,
    secret_key TEXT,
    user_id_kind TEXT NOT NULL,
    anonymous TEXT NOT NULL,
    events TEXT NOT NULL,
    "rename" TEXT NOT NULL,
    start_from BIGINT,
    created_at BIGINT NOT NULL,
    prepared_through INTEGER DEFAULT '0' NOT NULL,
    halted_reason TEXT,
    halted_at BIGINT,
    last_error TEXT,
    UNIQUE (app_id, name),
    FOREIGN KEY(app_id) REFERENCES apps (app_id)
);

CREATE TABLE segment_apps (
    segment_id INTEGER NOT NULL,
    app_id TEXT NOT NULL,
    rows BIGINT NOT NULL,
    types TEXT NOT NULL,
    malformed BIGINT NOT NULL,
    min_ingested_at BIGINT NOT NULL,
    max_ingested_at BIGINT NOT NULL,
    min_created_date BIGINT NOT NULL,
    max_created_date BIGINT NOT NULL,
    snapshot_file TEXT,
    truncated_arrays BIGINT,
    PRIMARY KEY (segment_id, app_id),
    FOREIGN KEY(segment_id) REFERENCES segments (id) ON DELETE CASCADE
);

CREATE INDEX segment_apps_by_app ON segment_apps (app_id, segment_id);

CREATE TABLE exceptions (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_id INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    user_id TEXT NOT NULL,
    identity TEXT NOT NULL,
    created_date BIGINT NOT NULL,
    payload TEXT,
    body TEXT,
    answer TEXT,
    lane_id INTEGER,
    lane_row BIGINT,
    segment_id INTEGER,
    request_id INTEGER,
    run_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    unknown_since BIGINT,
    first_sent_at BIGINT,
    FOREIGN KEY(integration_id) REFERENCES integrations (id) ON DELETE CASCADE
);

CREATE INDEX exceptions_by_event ON exceptions (event_id);

CREATE INDEX exceptions_by_integration ON exceptions (integration_id, state, identity, created_date, event_id);

CREATE INDEX exceptions_by_lane ON exceptions (lane_id, lane_row);

CREATE TABLE integration_counts (
    integration_id INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    events BIGINT NOT NULL,
    PRIMARY KEY (integration_id, state, reason),
    FOREIGN KEY(integration_id) REFERENCES integrations (id) ON DELETE CASCADE
);

CREATE TABLE outboxes (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_id INTEGER NOT NULL,
    segment_id INTEGER NOT NULL,
    file TEXT NOT NULL,
    others_batch INTEGER,
    rows BIGINT NOT NULL,
    prepared_at BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    done_at BIGINT,
    receipts_file TEXT,
    FOREIGN KEY(integration_id) REFERENCES integrations (id) ON DELETE CASCADE
);

CREATE INDEX outboxes_by_integration ON outboxes (integration_id, id);

CREATE TABLE pauses (
    integration_id INTEGER NOT NULL,
    identity TEXT NOT NULL,
    reason TEXT NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (integration_id, identity),
    FOREIGN KEY(integration_id) REFERENCES integrations (id) ON DELETE CASCADE
);

CREATE TABLE requests (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    integration_id INTEGER NOT NULL,
    lane_id INTEGER,
    first_row BIGINT,
    end_row BIGINT,
    events BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    answer TEXT,
    sent_at BIGINT NOT NULL,
    answered_at BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    FOREIGN KEY(integration_id) REFERENCES integrations (id) ON DELETE CASCADE
);

CREATE INDEX requests_by_integration ON requests (integration_id, sent_at);

CREATE INDEX requests_by_lane ON requests (lane_id, first_row);

CREATE TABLE sent_states (
    integration_id INTEGER NOT NULL,
    user_id TEXT NOT NULL,
    as_of_date BIGINT NOT NULL,
    as_of_event TEXT NOT NULL,
    PRIMARY KEY (integration_id, user_id),
    FOREIGN KEY(integration_id) REFERENCES integrations (id) ON DELETE CASCADE
)
 WITHOUT ROWID;

CREATE TABLE lanes (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    outbox_id INTEGER NOT NULL,
    batch INTEGER NOT NULL,
    rows BIGINT NOT NULL,
    next_row BIGINT NOT NULL,
    attempt_end BIGINT NOT NULL,
    unknown_since BIGINT,
    FOREIGN KEY(outbox_id) REFERENCES outboxes (id) ON DELETE CASCADE
);

CREATE INDEX lanes_by_outbox ON lanes (outbox_id);

INSERT INTO nami_amp_schema (version) VALUES (1);
