-- The rows to capture, whole. Views given: source, fresh (rid), macro bucket_of(app_id, user_id).
SELECT
    * EXCLUDE (fields),
    -- An object is what begins like one, once it is known to be JSON.
    fields IS NOT NULL AND starts_with(ltrim(payload, ' ' || chr(9) || chr(10) || chr(13)), '{') AS well_formed,
    -- Fields in the order in which they stand.
    hash(fields) AS shape,
    -- DuckDB reads more than JSON is: trailing commas, NaN and Infinity in any case. What looks so is looked at again;
    -- three patterns that begin with a character of their own are found several times faster than one for all.
    regexp_matches(payload, ',\s*(?:[\]}]|-?(?:[nN][aA]|[iI]))')
        OR regexp_matches(payload, ':\s*-?(?:[nN][aA]|[iI])')
        OR regexp_matches(payload, '\[\s*-?(?:[nN][aA]|[iI])') AS suspicious
FROM (
    SELECT
        app_id,
        replace(id, chr(0), '') AS id,
        coalesce(event_type, '') AS event_type,
        replace(coalesce(user_id, ''), chr(0), '') AS user_id,
        coalesce(created_date, ingested_at) AS created_date,
        ingested_at,
        payload::VARCHAR AS payload,
        try(json_keys(payload::VARCHAR)) AS fields,
        bucket_of(app_id, replace(coalesce(user_id, ''), chr(0), '')) AS bucket
    FROM source
    SEMI JOIN fresh USING (rid)
);
