-- The outbox in posting order; lane -1 holds what is not posted. Given: decided, shared_devices, lane_counts, bodies,
-- released.
SELECT
    d.integration_id,
    CASE
        WHEN d.state <> 'send' THEN -1
        WHEN d.amplitude_user_id IS NOT NULL THEN (hash(d.amplitude_user_id) % l.lanes)::INTEGER
        WHEN s.user_id IS NOT NULL THEN 0
        ELSE (hash(d.user_id) % l.lanes)::INTEGER
    END AS lane,
    d.id, d.event_type, d.user_id, d.identity, d.created_date, d.state, d.reason, d.row, d.exception_id,
    CASE d.state
        WHEN 'send' THEN concat(
            ',{"event_type":', to_json(d.name),
            ',"user_id":' || to_json(d.amplitude_user_id),
            CASE WHEN d.is_history THEN ',"$skip_user_properties_sync":true' END,
            coalesce(b.rest, r.rest)
        )
        WHEN 'waiting' THEN coalesce(b.rest, r.rest)
    END AS body
FROM decided d
LEFT JOIN bodies b ON b.row = d.row
LEFT JOIN released r ON r.exception_id = d.exception_id
LEFT JOIN lane_counts l ON l.integration_id = d.integration_id
LEFT JOIN shared_devices s ON s.integration_id = d.integration_id AND s.user_id = d.user_id
    AND d.amplitude_user_id IS NULL AND d.state = 'send'
ORDER BY d.integration_id, lane, d.created_date, d.id;
