-- The snapshots as they are written. Table given: snapshots.
SELECT
    app_id, id, user_id, created_date, row,
    namiml_active_entitlements, namiml_active_skus, namiml_device_ids, namiml_device_platforms,
    namiml_former_subscriber, namiml_in_grace_period, namiml_in_trial_period, namiml_in_intro_offer_period,
    concat(
        '{',
        concat_ws(
            ',',
            '"namiml_active_entitlements":' || entitlements_text,
            '"namiml_active_skus":' || skus_text,
            '"namiml_device_ids":' || device_ids_text,
            '"namiml_device_platforms":' || device_platforms_text,
            '"namiml_former_subscriber":' || namiml_former_subscriber::VARCHAR,
            '"namiml_in_grace_period":' || namiml_in_grace_period::VARCHAR,
            '"namiml_in_trial_period":' || namiml_in_trial_period::VARCHAR,
            '"namiml_in_intro_offer_period":' || namiml_in_intro_offer_period::VARCHAR
        ),
        '}'
    ) AS user_properties,
    former_subscriber, has_active_entitlement, has_entitlements, has_devices, has_journey, has_scalar_group,
    truncated_arrays
FROM (
    SELECT
        *,
        CASE WHEN former_subscriber IS NULL THEN NULL
            ELSE former_subscriber AND NOT coalesce(has_active_entitlement, false)
        END AS namiml_former_subscriber
    FROM snapshots
);
