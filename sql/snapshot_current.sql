-- What moves the current snapshot of each user forward: of each group the newest that an event carries itself.
-- Table given: carried_by_event. Times in µs since the epoch, arrays as JSON text.
WITH newest AS (
    SELECT
        app_id, user_id,
        max({'at': created_date, 'id': id}) FILTER (is_user) AS as_of,
        max({'at': created_date, 'id': id, 'row': row}) FILTER (external_id IS NOT NULL) AS x,
        max({'at': created_date, 'id': id, 'row': row}) FILTER (is_user AND has_entitlements) AS e,
        max({'at': created_date, 'id': id, 'row': row}) FILTER (is_user AND has_devices) AS d,
        max({'at': created_date, 'id': id, 'row': row}) FILTER (is_user AND has_journey) AS j
    FROM carried_by_event
    GROUP BY app_id, user_id
)
SELECT
    n.app_id, n.user_id,
    x.external_id, epoch_us(n.x.at) AS external_id_date, n.x.id AS external_id_event,
    epoch_us(n.as_of.at) AS as_of_date, n.as_of.id AS as_of_event,
    e.entitlements_text AS namiml_active_entitlements,
    e.skus_text AS namiml_active_skus,
    e.has_active_entitlement,
    epoch_us(n.e.at) AS entitlements_date, n.e.id AS entitlements_event,
    d.device_ids_text AS namiml_device_ids,
    d.device_platforms_text AS namiml_device_platforms,
    epoch_us(n.d.at) AS devices_date, n.d.id AS devices_event,
    j.former_subscriber, j.namiml_in_grace_period, j.namiml_in_trial_period, j.namiml_in_intro_offer_period,
    epoch_us(n.j.at) AS journey_date, n.j.id AS journey_event
FROM newest n
LEFT JOIN carried_by_event x ON x.row = n.x.row
LEFT JOIN carried_by_event e ON e.row = n.e.row
LEFT JOIN carried_by_event d ON d.row = n.d.row
LEFT JOIN carried_by_event j ON j.row = n.j.row
WHERE n.as_of IS NOT NULL OR n.x IS NOT NULL
ORDER BY n.app_id, n.user_id;
