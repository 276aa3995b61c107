-- The snapshots as they are written. Tables given: snapshots; enriched, if enrichments are declared.
SELECT
    * EXCLUDE (entitlements, devices, journey{{ no_enriched_text }}),
    concat('{', concat_ws(',', {{ user_properties }}{{ sent_enriched }}), '}') AS user_properties
FROM (
    SELECT
        app_id, id, user_id, created_date, row, entitlements, devices, journey,
        {{ columns }},
        has_entitlements, has_devices, has_journey, has_scalar_group, truncated_arrays{{ enriched_columns }}
    FROM snapshots{{ with_enriched }}
);
