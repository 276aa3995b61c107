-- The snapshots as they are written. Table given: snapshots.
SELECT
    app_id, id, user_id, created_date, row,
    namiml_active_entitlements, namiml_active_skus, namiml_device_ids, namiml_device_platforms,
    CASE WHEN former_subscriber IS NULL THEN NULL
        ELSE former_subscriber AND NOT coalesce(has_active_entitlement, false)
    END AS namiml_former_subscriber,
    namiml_in_grace_period, namiml_in_trial_period, namiml_in_intro_offer_period,
    former_subscriber, has_active_entitlement, has_entitlements, has_devices, has_journey, truncated_arrays
FROM snapshots;
