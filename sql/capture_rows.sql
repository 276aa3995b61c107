-- The rows to capture, whole. Views given: source, fresh (rid), macro bucket_of(app_id, user_id).
SELECT
    app_id,
    id,
    coalesce(event_type, '') AS event_type,
    coalesce(user_id, '') AS user_id,
    coalesce(created_date, ingested_at) AS created_date,
    ingested_at,
    payload::VARCHAR AS payload,
    -- DuckDB reads more than JSON is; what looks so is looked at again.
    regexp_matches(payload, ',\s*[\]}]') OR (
        (contains(payload, 'an') OR contains(payload, 'aN') OR contains(payload, 'AN') OR contains(payload, 'nf')
            OR contains(payload, 'NF'))
        AND regexp_matches(payload, '[:\[,]\s*-?(?:[nN][aA]|[iI])')
    )
        AS suspicious,
    coalesce(CASE WHEN json_valid(payload) THEN json_type(payload) = 'OBJECT' END, false) AS well_formed,
    bucket_of(app_id, coalesce(user_id, '')) AS bucket
FROM source
SEMI JOIN fresh USING (rid);
