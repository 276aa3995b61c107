-- The current snapshots as people ask for them. Table given: stored (rows of user_property_snapshots of one app).
WITH read_groups AS (
    SELECT
        * REPLACE (
            from_json(entitlements, {{ entitlements_structure }}) AS entitlements,
            from_json(devices, {{ devices_structure }}) AS devices,
            from_json(journey, {{ journey_structure }}) AS journey{{ enriched_group }}
        )
    FROM stored
)
SELECT user_id, external_id, make_timestamptz(as_of_date) AS as_of, {{ properties }}
FROM read_groups
ORDER BY user_id;
