-- The warehouse table in PostgreSQL, with what the pipeline needs to read it cheaply.
-- Another schema or table: NAMI_AMP_WAREHOUSE_SCHEMA, NAMI_AMP_WAREHOUSE_TABLE.
CREATE TABLE IF NOT EXISTS nami_events (
    id           text NOT NULL,
    app_id       text NOT NULL,
    event_type   text NOT NULL,
    user_id      text NOT NULL,
    created_date timestamp with time zone NOT NULL,
    -- Of the load, not of the event. now() is when a transaction began: its rows become visible only when it commits.
    ingested_at  timestamp with time zone NOT NULL DEFAULT now(),
    payload      text -- or json, or jsonb
);

-- Needed: each run reads an app's rows from where the last one stopped.
-- On a table that is being written to, add CONCURRENTLY.
CREATE INDEX IF NOT EXISTS nami_events_app_id_ingested_at ON nami_events (app_id, ingested_at);

-- Only for `nami-amp trace`, which looks for one event. Without it, that finds in a large table the row that was
-- captured and what is new; for all rows of an id it reads the whole table, if it is told to.
-- CREATE INDEX IF NOT EXISTS nami_events_id ON nami_events (id);

-- The pipeline's role needs this and nothing else:
-- GRANT USAGE ON SCHEMA public TO nami_amp;
-- GRANT SELECT ON nami_events TO nami_amp;
