-- Users in the shape of a segment and its bodies, so that prepare_2_decide finds out who they are in Amplitude.
-- Table given: states.
CREATE TEMP VIEW segment AS
SELECT
    row, app_id, user_id AS id, '$identify' AS event_type, user_id, make_timestamptz(as_of_date) AS created_date,
    make_timestamptz(as_of_date) AS ingested_at, true AS well_formed, NULL::VARCHAR AS problem
FROM states;

CREATE TEMP MACRO body_of(row, variant) AS row;
CREATE TEMP TABLE bodies AS
SELECT
    row AS body, row, NULL::VARCHAR AS device_id, false AS has_reserved_device, NULL::VARCHAR AS environment,
    NULL::VARCHAR AS rest
FROM states;
