-- What depends on what was decided of earlier segments, and which lane each event takes.
-- Given: decided, sent (integration_id, user_id, as_of_date, as_of_event), targets (integration_id, lanes_at_most,
-- lane_rows), the macro is_history.

-- History must not overwrite a profile that has newer state already.
CREATE TEMP TABLE history AS
SELECT d.rowid AS number
FROM decided d JOIN sent s ON s.integration_id = d.integration_id AND s.user_id = d.amplitude_user_id
WHERE d.is_user AND is_history(s.as_of_date, s.as_of_event, epoch_us(d.created_date), d.id);

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
