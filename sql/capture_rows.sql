-- The rows to capture, whole. Views given: source, fresh (rid), macro bucket_of(app_id, user_id).
SELECT
    app_id,
    id,
    coalesce(event_type, '') AS event_type,
    coalesce(user_id, '') AS user_id,
    coalesce(created_date, ingested_at) AS created_date,
    ingested_at,
    payload::VARCHAR AS payload,
    coalesce(CASE WHEN json_valid(payload) THEN json_type(payload) = 'OBJECT' END, false) AS well_formed,
    bucket_of(app_id, coalesce(user_id, '')) AS bucket
FROM source
SEMI JOIN fresh USING (rid);
