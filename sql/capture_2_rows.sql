-- The rows to capture, whole. Given: the view source, the macro bucket_of(app_id, user_id).
-- ``problem`` is why a row cannot be sent, where that is seen here; ``doubtful`` says that its payload has to be looked at
-- by itself.
SELECT
    app_id, id, event_type, user_id, created_date, ingested_at, bucket,
    -- What could never be sent is not even kept.
    CASE WHEN problem IS DISTINCT FROM 'too_large' THEN payload END AS payload,
    problem,
    -- An object is what begins like one, once it is known to be JSON. (Trimming would copy each payload.)
    problem IS NULL AND fields IS NOT NULL AND CASE
        WHEN ascii(payload) = ascii('{{') THEN true
        ELSE starts_with(ltrim(payload, ' ' || chr(9) || chr(10) || chr(13)), '{{')
    END AS well_formed,
    -- Fields in the order in which they stand.
    hash(fields) AS shape,
    -- DuckDB reads more than JSON is: trailing commas, NaN and Infinity in any case. What looks so is looked at again;
    -- three patterns that begin with a character of their own are found several times faster than one for all.
    problem IS NULL AND payload IS NOT NULL AND CASE
        WHEN fields IS NULL THEN true
        ELSE regexp_matches(payload, ',\s*(?:[\]}}]|-?(?:[nN][aA]|[iI]))')
            OR regexp_matches(payload, ':\s*-?(?:[nN][aA]|[iI])')
            OR regexp_matches(payload, '\[\s*-?(?:[nN][aA]|[iI])')
    END AS doubtful
FROM (
    -- (A CASE around the list would copy it.)
    SELECT *, try(json_keys(CASE WHEN problem IS NULL THEN payload END)) AS fields
    FROM (
        SELECT
            app_id,
            replace(id, chr(0), '') AS id,
            CASE WHEN strlen(event_type) > {max_type_characters} THEN event_type[:{max_type_characters}]
                ELSE coalesce(event_type, '') END AS event_type,
            CASE WHEN problem = 'long_user_id' THEN user_id[:{max_id_bytes} // 8] ELSE user_id END AS user_id,
            CASE WHEN created_date >= '{first_moment}'::TIMESTAMPTZ AND created_date < '{last_moment}'::TIMESTAMPTZ
                THEN created_date ELSE ingested_at END AS created_date,
            ingested_at,
            payload,
            problem,
            bucket_of(app_id, user_id) AS bucket
        FROM (
            SELECT
                * REPLACE (replace(coalesce(user_id, ''), chr(0), '') AS user_id, payload::VARCHAR AS payload),
                CASE
                    WHEN strlen(payload::VARCHAR) > {max_payload_bytes} THEN 'too_large'
                    WHEN strlen(user_id) > {max_id_bytes} THEN 'long_user_id'
                    WHEN user_id IS NULL OR (ascii(user_id) = 0 AND replace(user_id, chr(0), '') = '') THEN 'no_user_id'
                    WHEN created_date IS NULL OR created_date < '{first_moment}'::TIMESTAMPTZ
                        OR created_date >= '{last_moment}'::TIMESTAMPTZ THEN 'bad_date'
                END AS problem
            FROM source
        )
    )
)
WHERE {wanted};
