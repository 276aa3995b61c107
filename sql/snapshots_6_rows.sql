-- The snapshots as they are written. Table given: snapshots.
SELECT
    * EXCLUDE (entitlements, devices, journey),
    concat('{', concat_ws(',', {{ user_properties }}), '}') AS user_properties
FROM (
    SELECT
        app_id, id, user_id, created_date, row, entitlements, devices, journey,
        {{ columns }},
        has_entitlements, has_devices, has_journey, has_scalar_group, truncated_arrays
    FROM snapshots
);
