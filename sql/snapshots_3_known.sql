-- What was known, before this segment, of the users whose events lack something: of each group the newest.
-- Tables given: carried_by_event; stored (rows of user_property_snapshots: groups as JSON text, times in µs since the epoch).
CREATE TEMP TABLE known AS
WITH read_groups AS (
    SELECT
        * REPLACE (
            from_json(entitlements, {{ entitlements_structure }}) AS entitlements,
            from_json(devices, {{ devices_structure }}) AS devices,
            from_json(journey, {{ journey_structure }}) AS journey
        )
    FROM stored
)
SELECT
    app_id, user_id, make_timestamptz(entitlements_date) AS created_date, entitlements_event AS id,
    true AS has_entitlements, false AS has_devices, false AS has_journey,
    {{ stored_entitlements }} AS entitlements
FROM read_groups WHERE entitlements_date IS NOT NULL
UNION ALL BY NAME
SELECT
    app_id, user_id, make_timestamptz(devices_date) AS created_date, devices_event AS id,
    false AS has_entitlements, true AS has_devices, false AS has_journey,
    {{ stored_devices }} AS devices
FROM read_groups WHERE devices_date IS NOT NULL
UNION ALL BY NAME
SELECT
    app_id, user_id, make_timestamptz(journey_date) AS created_date, journey_event AS id,
    false AS has_entitlements, false AS has_devices, true AS has_journey,
    {{ stored_journey }} AS journey
FROM read_groups WHERE journey_date IS NOT NULL;

-- The users with an event older than that, which needs what was newest before *it*.
CREATE TEMP TABLE late AS
SELECT DISTINCT app_id, user_id FROM carried_by_event c
WHERE is_user AND EXISTS (
    FROM known k WHERE k.app_id = c.app_id AND k.user_id = c.user_id
    AND (k.created_date, k.id) > (c.created_date, c.id)
    AND ((k.has_entitlements AND NOT c.has_entitlements) OR (k.has_devices AND NOT c.has_devices)
        OR (k.has_journey AND NOT c.has_journey))
);
