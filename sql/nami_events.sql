-- The warehouse table that the pipeline reads. Append-only; the same id may stand in several rows.
CREATE TABLE IF NOT EXISTS nami_events (
    id           text NOT NULL,
    app_id       text NOT NULL,
    event_type   text NOT NULL,
    user_id      text NOT NULL,
    created_date timestamp with time zone NOT NULL,
    ingested_at  timestamp with time zone NOT NULL,
    payload      text
);
