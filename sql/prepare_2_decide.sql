-- What each integration does with each selected event of a segment.
-- Given: segment, bodies (body, device_id, has_reserved_device, environment, rest), targets (integration_id,
-- app_id, user_id_kind, anonymous, sandbox, variant, start_from in µs or NULL), selected (integration_id, event_type,
-- name), identities (app_id, user_id, external_id), the macros of the contract (carries_state, is_reserved), body_of.
CREATE TEMP MACRO judged(source) AS TABLE
WITH named AS (
    SELECT
        c.*,
        amplitude_user_of(c.user_id_kind, i.external_id, c.anonymous, c.user_id) AS amplitude_user_id
    FROM query_table(source) c LEFT JOIN identities i ON i.app_id = c.app_id AND i.user_id = c.user_id
),
found AS (
    SELECT
        n.*,
        CASE
            WHEN sandbox = 'skip' AND environment = 'sandbox' THEN 'sandbox'
            WHEN sandbox = 'only' AND environment = 'production' THEN 'production'
        END AS unwanted,
        CASE
            WHEN NOT well_formed THEN coalesce(problem, 'malformed_payload')
            WHEN is_reserved(amplitude_user_id) THEN 'reserved_user_id'
            WHEN amplitude_user_id IS NULL AND anonymous = 'device_id' AND has_reserved_device THEN 'reserved_device_id'
            WHEN strlen(amplitude_user_id) > 1024
                OR (amplitude_user_id IS NULL AND anonymous = 'device_id' AND strlen(device_id) > 1024)
                THEN 'long_user_id'
        END AS dead,
        amplitude_user_id IS NULL AND NOT (anonymous = 'device_id' AND device_id IS NOT NULL) AS nobody
    FROM named n
)
SELECT
    integration_id, body, row, exception_id, id, event_type, name, user_id, created_date, amplitude_user_id,
    carries_state(event_type) AS is_user,
    CASE
        WHEN unwanted IS NOT NULL THEN 'skipped'
        WHEN dead IS NOT NULL THEN 'dead'
        WHEN nobody AND anonymous = 'wait_for_login' THEN 'waiting'
        WHEN nobody THEN 'skipped'
        ELSE 'send'
    END AS state,
    coalesce(unwanted, dead, CASE WHEN nobody THEN 'no_external_id' END) AS reason,
    -- What no index of a store can hold is not kept as one.
    CASE WHEN strlen(coalesce(amplitude_user_id, device_id)) <= 1024
        THEN coalesce('u:' || amplitude_user_id, 'd:' || device_id)
    END AS identity
FROM found;

CREATE TEMP VIEW chosen AS
SELECT
    t.integration_id, t.user_id_kind, t.anonymous, t.sandbox, body_of(s.row, t.variant) AS body,
    s.app_id, s.row, NULL::BIGINT AS exception_id,
    s.id, s.event_type, c.name, s.user_id, s.created_date, s.well_formed, s.problem, b.device_id,
    b.has_reserved_device, b.environment
FROM segment s
JOIN targets t ON t.app_id = s.app_id
JOIN selected c ON c.integration_id = t.integration_id AND c.event_type = s.event_type
LEFT JOIN bodies b ON b.body = body_of(s.row, t.variant)
WHERE t.start_from IS NULL OR epoch_us(s.ingested_at) >= t.start_from;

CREATE TEMP TABLE decided AS FROM judged('chosen');
