-- What moves the current snapshot of each user forward: of each group the newest that an event carries itself.
-- Tables given: carried_by_event; enriched, if enrichments are declared. Times in µs since the epoch; a group's values are one JSON text.
WITH aged AS (
    SELECT app_id, user_id, row, is_user, has_entitlements, has_devices, has_journey, external_id IS NOT NULL AS has_login,
        row_number() OVER (ORDER BY created_date, id) AS age
    FROM carried_by_event
),
newest AS (
    -- Of whole numbers: an aggregate over structs keeps each group's bytes in memory that cannot spill.
    SELECT
        app_id, user_id,
        arg_max(row, age) FILTER (is_user) AS as_of_row,
        arg_max(row, age) FILTER (has_login) AS x_row,
        arg_max(row, age) FILTER (is_user AND has_entitlements) AS e_row,
        arg_max(row, age) FILTER (is_user AND has_devices) AS d_row,
        arg_max(row, age) FILTER (is_user AND has_journey) AS j_row
    FROM aged
    GROUP BY app_id, user_id
),
written AS (
    -- What the texts are made of, without the lists.
    SELECT
        row, id, created_date, external_id,
        {{ written }}
    FROM carried_by_event
)
SELECT
    n.app_id, n.user_id,
    x.external_id, epoch_us(x.created_date) AS external_id_date, x.id AS external_id_event,
    epoch_us(a.created_date) AS as_of_date, a.id AS as_of_event,
    {{ entitlements_text }} AS entitlements,
    epoch_us(e.created_date) AS entitlements_date, e.id AS entitlements_event,
    {{ devices_text }} AS devices,
    epoch_us(d.created_date) AS devices_date, d.id AS devices_event,
    {{ journey_text }} AS journey,
    epoch_us(j.created_date) AS journey_date, j.id AS journey_event{{ enriched_current }}
FROM newest n
LEFT JOIN written a ON a.row = n.as_of_row
LEFT JOIN written x ON x.row = n.x_row
LEFT JOIN written e ON e.row = n.e_row
LEFT JOIN written d ON d.row = n.d_row
LEFT JOIN written j ON j.row = n.j_row
{{ with_enriched_current }}
WHERE n.as_of_row IS NOT NULL OR n.x_row IS NOT NULL
ORDER BY n.app_id, n.user_id;
