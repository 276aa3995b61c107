-- What an identify does with each user of one file.
-- Given: decided, states, the macros of the contract and of the settings (is_history, shown_user_properties), the
-- variables integration (its key) and only_known; sent (user_id, as_of_date, as_of_event, identify_id), pending_users
-- (user_id, of Nami), pending_identities (identity), dead_identifies (id).

-- The same for the same state of the same user, and for no other: a repeat is a repeat.
CREATE TEMP MACRO identify_id(person, moment, source, properties) AS
    'nami-identify-' || sha256(to_json([getvariable('integration'), person, moment::VARCHAR, source, properties])::VARCHAR)[:40];

CREATE TEMP TABLE choice AS
WITH people AS (
    SELECT
        d.row, d.state, d.reason, d.amplitude_user_id, d.identity, s.as_of_date, s.as_of_event,
        shown_user_properties(s.user_properties)::VARCHAR AS properties,
        d.user_id IN (SELECT user_id FROM pending_users) AS is_pending
    FROM decided d JOIN states s USING (row)
),
ranked AS (
    -- Several Nami users may be one user of Amplitude, whose state is then the newest of theirs.
    SELECT
        *,
        row_number() OVER (PARTITION BY amplitude_user_id ORDER BY as_of_date DESC, as_of_event DESC) AS place,
        bool_or(is_pending) OVER (PARTITION BY amplitude_user_id) AS waits
    FROM people
)
SELECT
    r.row, r.amplitude_user_id, r.as_of_date, r.as_of_event, r.properties,
    identify_id(r.amplitude_user_id, r.as_of_date, r.as_of_event, r.properties) AS id,
    CASE
        WHEN r.state <> 'send' THEN r.reason
        WHEN r.place > 1 THEN 'same_user'
        WHEN r.properties IS NULL OR r.properties = '{}' THEN 'no_state'
        WHEN r.waits OR r.identity IN (SELECT identity FROM pending_identities) THEN 'left_to_events'
        WHEN getvariable('only_known') AND s.user_id IS NULL THEN 'never_sent'
        WHEN s.user_id IS NOT NULL AND is_history(s.as_of_date, s.as_of_event, r.as_of_date, r.as_of_event) THEN 'newer_sent'
        WHEN s.identify_id = identify_id(r.amplitude_user_id, s.as_of_date, s.as_of_event, r.properties)
            AND s.identify_id NOT IN (SELECT id FROM dead_identifies) THEN 'unchanged'
        ELSE 'new'
    END AS class
FROM ranked r LEFT JOIN sent s ON s.user_id = r.amplitude_user_id;
