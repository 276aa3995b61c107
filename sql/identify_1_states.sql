-- The current state of users as it is sent. Table given: stored (rows of user_property_snapshots of one app).
CREATE TEMP TABLE states AS
WITH read_groups AS (
    SELECT
        * REPLACE (
            from_json(entitlements, {{ entitlements_structure }}) AS entitlements,
            from_json(devices, {{ devices_structure }}) AS devices,
            from_json(journey, {{ journey_structure }}) AS journey{{ enriched_group }}
        )
    FROM stored
    WHERE as_of_date IS NOT NULL
),
groups AS (
    SELECT
        app_id, user_id, as_of_date, as_of_event,
        {{ stored_entitlements }} AS entitlements,
        {{ stored_devices }} AS devices,
        {{ stored_journey }} AS journey{{ also_enriched_text }}
    FROM read_groups
),
shown AS (
    SELECT *, {{ columns }} FROM groups
)
SELECT
    row_number() OVER (ORDER BY user_id) - 1 AS row, app_id, user_id, as_of_date, as_of_event,
    concat('{', concat_ws(',', {{ user_properties }}{{ sent_enriched }}), '}') AS user_properties
FROM shown;
