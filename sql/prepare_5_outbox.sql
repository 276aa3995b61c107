-- The rows of the outbox that are to be written next, in no order.
-- Given: decided, portion (number, integration_id, lane), history (number), portion_bodies (of these rows,
-- at least), released, the macros skip_sync, sent_rest.
SELECT
    d.integration_id, p.lane,
    d.id, d.event_type, d.user_id, d.identity, d.created_date, d.state, d.reason, d.row, d.exception_id,
    CASE d.state
        WHEN 'send' THEN concat(
            ',{"event_type":', to_json(d.name),
            ',"user_id":' || to_json(d.amplitude_user_id),
            CASE WHEN h.number IS NOT NULL THEN skip_sync() END,
            sent_rest(h.number IS NOT NULL, coalesce(b.rest, r.rest))
        )
        WHEN 'waiting' THEN coalesce(b.rest, r.rest)
    END AS body
FROM portion p
JOIN decided d ON d.rowid = p.number
LEFT JOIN history h ON h.number = p.number
LEFT JOIN portion_bodies b ON b.body = d.body
LEFT JOIN released r ON r.exception_id = d.exception_id;
