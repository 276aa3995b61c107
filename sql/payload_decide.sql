-- What each integration does with each selected event.
-- Given: segment, bodies, targets (integration_id, app_id, user_id_kind, anonymous, start_from in µs or NULL, lanes_at_most,
-- lane_rows), selected (integration_id, event_type, name), identities (app_id, user_id, external_id), sent
-- (integration_id, user_id, as_of_date, as_of_event), released (exception_id, integration_id, id, event_type,
-- user_id, created_date, rest), reserved (id).
CREATE TEMP TABLE decided AS
WITH chosen AS (
    SELECT
        t.integration_id, t.user_id_kind, t.anonymous, s.app_id, s.row, s.id, s.event_type, c.name, s.user_id,
        s.created_date, s.well_formed, starts_with(s.event_type, 'user.') AS is_user, b.device_id,
        NULL::BIGINT AS exception_id
    FROM segment s
    JOIN targets t ON t.app_id = s.app_id
    JOIN selected c ON c.integration_id = t.integration_id AND c.event_type = s.event_type
    LEFT JOIN bodies b ON b.row = s.row
    WHERE t.start_from IS NULL OR epoch_us(s.ingested_at) >= t.start_from
    UNION ALL BY NAME
    SELECT
        t.integration_id, t.user_id_kind, t.anonymous, t.app_id, NULL AS row, r.id, r.event_type,
        coalesce(c.name, r.event_type) AS name, r.user_id, r.created_date, true AS well_formed,
        starts_with(r.event_type, 'user.') AS is_user, NULL AS device_id, r.exception_id
    FROM released r
    JOIN targets t ON t.integration_id = r.integration_id
    LEFT JOIN selected c ON c.integration_id = t.integration_id AND c.event_type = r.event_type
),
named AS (
    SELECT
        c.*,
        CASE
            WHEN c.user_id_kind = 'nami_user_id' THEN stripped(c.user_id)
            WHEN i.external_id IS NOT NULL THEN i.external_id
            WHEN c.anonymous = 'nami_user_id' THEN stripped(c.user_id)
        END AS amplitude_user_id
    FROM chosen c LEFT JOIN identities i ON i.app_id = c.app_id AND i.user_id = c.user_id
),
judged AS (
    SELECT
        n.*,
        CASE
            WHEN NOT well_formed THEN 'malformed_payload'
            WHEN lower(amplitude_user_id) IN (SELECT id FROM reserved) THEN 'reserved_user_id'
        END AS dead,
        amplitude_user_id IS NULL AND NOT (anonymous = 'device_id' AND device_id IS NOT NULL) AS nobody
    FROM named n
)
SELECT
    j.* EXCLUDE (dead, nobody),
    CASE
        WHEN dead IS NOT NULL THEN 'dead'
        WHEN nobody AND anonymous = 'wait_for_login' THEN 'waiting'
        WHEN nobody THEN 'skipped'
        ELSE 'send'
    END AS state,
    coalesce(dead, CASE WHEN nobody THEN 'no_external_id' END) AS reason,
    coalesce('u:' || amplitude_user_id, 'd:' || device_id) AS identity,
    -- History must not overwrite a profile that has newer state already.
    coalesce(is_user AND s.as_of_date IS NOT NULL AND (s.as_of_date, s.as_of_event) > (epoch_us(j.created_date), j.id), false) AS is_history
FROM judged j
LEFT JOIN sent s ON s.integration_id = j.integration_id AND s.user_id = j.amplitude_user_id;

-- A lane's events are posted one request after the other, so whatever must keep its order shares a lane: all events of an
-- Amplitude user; and of events with a device alone all those of a Nami user, and of users that share a device.
CREATE TEMP TABLE shared_devices AS
SELECT DISTINCT integration_id, user_id
FROM decided
SEMI JOIN (
    SELECT integration_id, identity
    FROM decided
    WHERE state = 'send' AND amplitude_user_id IS NULL
    GROUP BY integration_id, identity
    HAVING count(DISTINCT user_id) > 1
) shared USING (integration_id, identity)
WHERE state = 'send' AND amplitude_user_id IS NULL;

CREATE TEMP TABLE lane_counts AS
SELECT
    d.integration_id,
    greatest(1, least(any_value(t.lanes_at_most), ceil(count(*) / any_value(t.lane_rows)))::INTEGER) AS lanes
FROM decided d JOIN targets t USING (integration_id)
WHERE d.state = 'send'
GROUP BY d.integration_id;

-- Lane -1 holds what is not posted.
CREATE TEMP TABLE placed AS
SELECT
    d.rowid AS number, d.integration_id,
    CASE
        WHEN d.state <> 'send' THEN -1
        WHEN d.amplitude_user_id IS NOT NULL THEN (hash(d.amplitude_user_id) % l.lanes)::INTEGER
        WHEN s.user_id IS NOT NULL THEN 0
        ELSE (hash(d.user_id) % l.lanes)::INTEGER
    END AS lane
FROM decided d
LEFT JOIN lane_counts l ON l.integration_id = d.integration_id
LEFT JOIN shared_devices s ON s.integration_id = d.integration_id AND s.user_id = d.user_id
    AND d.amplitude_user_id IS NULL AND d.state = 'send';
