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
states AS (
    SELECT
        * REPLACE (
            last_value(CASE WHEN has_entitlements THEN entitlements END IGNORE NULLS) OVER life AS entitlements,
            last_value(CASE WHEN has_devices THEN devices END IGNORE NULLS) OVER life AS devices,
            last_value(CASE WHEN has_journey THEN journey END IGNORE NULLS) OVER life AS journey
        )
    FROM lives
    WINDOW life AS (
        PARTITION BY app_id, user_id ORDER BY created_date, id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
)
SELECT * EXCLUDE (is_user, external_id) FROM states WHERE row IS NOT NULL;

CREATE TEMP VIEW snapshots AS
SELECT * EXCLUDE (is_user, external_id) FROM carried_by_event ANTI JOIN incomplete USING (app_id, user_id) WHERE is_user
UNION ALL BY NAME
FROM completed;
