-- The state of each user as of each of its events: what the event does not carry itself comes from the newest earlier
-- event that has it. Tables given: carried_by_event; incomplete; earlier (what was known of the users of incomplete
-- events before this segment: one row per event that has a group, with the columns of carried_by_event that say so).
-- Most users are told whole by each of their events: those are not copied.
CREATE TEMP TABLE completed AS
WITH lives AS (
    SELECT * FROM carried_by_event SEMI JOIN incomplete USING (app_id, user_id) WHERE is_user
    UNION ALL BY NAME
    SELECT * FROM earlier SEMI JOIN incomplete USING (app_id, user_id)
),
groups AS (
    SELECT
        *,
        last_value(CASE WHEN has_entitlements THEN {
            'active': has_active_entitlement,
            'entitlements': namiml_active_entitlements, 'entitlements_text': entitlements_text,
            'skus': namiml_active_skus, 'skus_text': skus_text
        } END IGNORE NULLS) OVER life AS e,
        last_value(CASE WHEN has_devices THEN {
            'ids': namiml_device_ids, 'ids_text': device_ids_text,
            'platforms': namiml_device_platforms, 'platforms_text': device_platforms_text
        } END IGNORE NULLS) OVER life AS d,
        last_value(CASE WHEN has_journey THEN {
            'former': former_subscriber,
            'grace': namiml_in_grace_period,
            'trial': namiml_in_trial_period,
            'intro': namiml_in_intro_offer_period
        } END IGNORE NULLS) OVER life AS j
    FROM lives
    WINDOW life AS (
        PARTITION BY app_id, user_id ORDER BY created_date, id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
)
SELECT
    row, app_id, id, user_id, created_date,
    has_entitlements, has_devices, has_journey, has_scalar_group,
    e.active AS has_active_entitlement,
    e.entitlements AS namiml_active_entitlements, e.entitlements_text AS entitlements_text,
    e.skus AS namiml_active_skus, e.skus_text AS skus_text,
    d.ids AS namiml_device_ids, d.ids_text AS device_ids_text,
    d.platforms AS namiml_device_platforms, d.platforms_text AS device_platforms_text,
    j.former AS former_subscriber,
    j.grace AS namiml_in_grace_period,
    j.trial AS namiml_in_trial_period,
    j.intro AS namiml_in_intro_offer_period,
    truncated_arrays
FROM groups
WHERE row IS NOT NULL;

CREATE TEMP VIEW snapshots AS
SELECT * EXCLUDE (is_user, external_id) FROM carried_by_event ANTI JOIN incomplete USING (app_id, user_id) WHERE is_user
UNION ALL BY NAME
FROM completed;
