-- The users of whom not every event tells all. Table given: carried_by_event.
CREATE TEMP TABLE incomplete AS
SELECT DISTINCT app_id, user_id
FROM carried_by_event
WHERE is_user AND NOT (has_entitlements AND has_devices AND has_journey);
