-- The events that waited for a login that is known by now are decided on too.
-- Given: decided, judged(source), targets, selected, released (exception_id, integration_id, id, event_type, user_id,
-- created_date, rest).
CREATE TEMP VIEW chosen_released AS
SELECT
    t.integration_id, t.user_id_kind, t.anonymous, t.sandbox, NULL::BIGINT AS body, t.app_id,
    NULL::BIGINT AS row, r.exception_id, r.id, r.event_type, coalesce(c.name, r.event_type) AS name, r.user_id, r.created_date,
    true AS well_formed, NULL::VARCHAR AS problem, NULL::VARCHAR AS device_id,
    false AS has_reserved_device, NULL::VARCHAR AS environment
FROM released r
JOIN targets t ON t.integration_id = r.integration_id
LEFT JOIN selected c ON c.integration_id = t.integration_id AND c.event_type = r.event_type;

INSERT INTO decided FROM judged('chosen_released');
